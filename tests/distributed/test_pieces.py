"""A stored model on two ranks: it is read from disk once, between them, and neither ever holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.fsdp import Sharding, decoder_layers
from lion_lightning.models.weights.sharded_loading import WeightFiles
from tests.distributed.ranks import run_ranks
from tests.tiny import LiveTensors, policy

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

LAYERS = 12
MODELS: dict[str, tuple[bool, LoRASpec | None]] = {
    "tied": (True, None),
    "untied": (False, None),
    "lora": (True, LoRASpec(r=4)),
    "layers shared": (True, None),  # by tensor parallelism
}


def nbytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def build(rank: int, world: int, folder: Path) -> dict[str, dict[str, int]]:
    """What this rank reads of each model, and the most bytes that it holds meanwhile."""
    torch.distributed.init_process_group("gloo")
    all_ranks, device = init_device_mesh("cpu", (world,)), torch.device("cpu")
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("data", "tensor"))
    shared = Sharding(mesh["data"], device, tensor_mesh=mesh["tensor"])
    read: list[int] = []
    part_of = WeightFiles.part

    def part(self: WeightFiles, name: str, *index: slice) -> torch.Tensor:
        found = part_of(self, name, *index)
        read.append(found.numel())
        return found

    WeightFiles.part = part  # type: ignore[method-assign]
    made = {}
    for name, (tied, lora) in MODELS.items():
        spec = PolicySpec(path=str(folder / f"tied {tied}"), lora=lora)
        with LiveTensors() as live:
            model = spec.build(sharding=shared if name == "layers shared" else Sharding(all_ranks, device))
        sizes = {"all": nbytes(model), "layer": nbytes(decoder_layers(model.causal_lm)[0])}
        made[name] = {"read": sum(read), "held": live.most, **sizes}
        read.clear()
    return made


def test_ranks_read_a_model_once_between_them_and_hold_their_rows_and_a_layer(tmp_path: Path) -> None:
    stored: dict[bool, dict[str, Any]] = {}
    for tied in (True, False):
        whole = policy(tie_word_embeddings=tied, num_hidden_layers=LAYERS, vocab_size=102)
        whole.causal_lm.save_pretrained(tmp_path / f"tied {tied}")
        stored[tied] = load_file(tmp_path / f"tied {tied}" / "model.safetensors")
    ranks = run_ranks(build, tmp_path, tmp_path)
    for name, (tied, _) in MODELS.items():
        assert tied != ("lm_head.weight" in stored[tied])
        read = sum(tensor.numel() for tensor in stored[tied].values())
        if name == "layers shared":  # norms are whole on both
            read += sum(tensor.numel() for tensor in stored[tied].values() if tensor.dim() == 1)
        assert sum(rank[name]["read"] for rank in ranks) == read
        for sizes in (rank[name] for rank in ranks):
            assert sizes["all"] / 2 < sizes["held"] <= bound(sizes["all"], sizes["layer"]) < sizes["all"]


def bound(whole: int, layer: int) -> float:
    """Bytes that one of two ranks may hold while it builds a model, the run of a few tokens at the end included.

    Its half of everything, what is outside of the layers, and of the layers the one that runs, the next (which is
    gathered meanwhile), what this one was gathered into, and two for the activations of the 25 tokens of the probe.
    """
    return whole / 2 + (whole - LAYERS * layer) + 5 * layer
