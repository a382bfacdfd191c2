"""Lightning's FSDPStrategy on two CPU processes: losses and weights of one process, checkpoints that are exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.checkpoints.files import read_checkpoint
from lion_lightning.models.weights.dtensor import full_parameters
from tests.distributed.fsdp1 import FSDPOnCPU
from tests.distributed.ranks import run_ranks
from tests.distributed.test_fsdp2 import CASES, ROWS, assert_same, module
from tests.tiny import Rows, policy, tokenizer_folder, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

NAMES = ("from a folder", "random weights", "new tokens", "lora")
SAVED = ("from a folder", "lora")


def fit(rank: int, world: int, folder: Path, name: str, epochs: int = 1, start: Path | None = None) -> dict[str, Any]:
    trained = module(folder, "tied", momentum=0.9, rank=rank, **CASES[name])
    ranks = {"strategy": FSDPOnCPU(), "devices": world} if world > 1 else {}
    run = trainer(max_epochs=epochs, accumulate_grad_batches=4 // world, gradient_clip_val=0.5, **ranks)
    run.fit(trained, Rows(ROWS, rank, world), Rows(ROWS, rank, world), ckpt_path=start)
    if name in SAVED and start is None:
        run.save_checkpoint(checkpoint(folder, world, name))
    return {
        "metrics": {key: value.item() for key, value in run.callback_metrics.items()},
        "weights": {key: tensor.clone() for key, tensor in full_parameters(trained.policy_model)},
        "decayed": [len(group["params"]) for group in run.optimizers[0].param_groups],
    }


def checkpoint(folder: Path, world: int, name: str) -> Path:
    return folder / f"{name} {world}.ckpt"


def fit_all(rank: int, world: int, folder: Path) -> dict[str, dict[str, Any]]:
    made = {name: fit(rank, world, folder, name) for name in NAMES}
    starts = {"2 epochs": world, "2 epochs, the first in one process": 1}
    again = {
        f"{name}, {title}": fit(rank, world, folder, name, 2, checkpoint(folder, of, name))
        for name in SAVED
        for title, of in starts.items()
    }
    return made | again


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ROWS[0].input_ids[None, :12]).logits
        return made


def test_two_ranks_train_as_one_process_and_write_what_is_resumed_and_exported(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path)
    policy(tie_word_embeddings=True).causal_lm.save_pretrained(tmp_path / "tied")
    one, two = fit_all(0, 1, tmp_path), run_ranks(fit_all, tmp_path, tmp_path)
    for rank in two:
        for name in one:
            assert_same(rank[name], one[name])
            assert rank[name]["decayed"] == one[name]["decayed"]  # flat pieces have one dimension, matrices had two
    for name in SAVED:
        kept = [read_checkpoint(checkpoint(tmp_path, world, name))["state_dict"].keys() for world in (1, 2)]
        assert kept[1] <= kept[0]
        assert name != "lora" or all("lora_" in key for key in kept[1])
        exported = [
            export_checkpoint(checkpoint(tmp_path, world, name), tmp_path / f"{name} {world}") for world in (1, 2)
        ]
        torch.testing.assert_close(logits(exported[1]), logits(exported[0]), rtol=1e-5, atol=1e-5)
