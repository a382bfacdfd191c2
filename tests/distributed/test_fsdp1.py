"""Lightning's FSDPStrategy on two CPU processes: losses and weights of one process, checkpoints that are exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lion_lightning.models.checkpoints import read_checkpoint
from lion_lightning.models.export import export_checkpoint
from lion_lightning.models.pieces import whole_parameters
from tests.distributed.fsdp1 import FSDPOnCPU
from tests.distributed.ranks import run_ranks
from tests.distributed.test_fsdp2 import CASES, ROWS, assert_same, module
from tests.tiny import Rows, policy, tokenizer_folder, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

NAMES = ("from a folder", "random weights", "new tokens", "lora")


def fit(rank: int, world: int, folder: Path, name: str) -> dict[str, Any]:
    trained = module(folder, "tied", rank=rank, **CASES[name])
    ranks = {"strategy": FSDPOnCPU(state_dict_type="sharded"), "devices": world} if world > 1 else {}
    run = trainer(max_epochs=1, accumulate_grad_batches=4 // world, gradient_clip_val=0.5, **ranks)
    run.fit(trained, Rows(ROWS, rank, world), Rows(ROWS, rank, world))
    if name == "from a folder":
        run.save_checkpoint(folder / f"{world}.ckpt")
    return {
        "metrics": {key: value.item() for key, value in run.callback_metrics.items()},
        "weights": {key: tensor.clone() for key, tensor in whole_parameters(trained.policy_model)},
        "decayed": [len(group["params"]) for group in run.optimizers[0].param_groups],
    }


def fit_all(rank: int, world: int, folder: Path) -> dict[str, dict[str, Any]]:
    return {name: fit(rank, world, folder, name) for name in NAMES}


def test_two_ranks_train_as_one_process_and_write_what_is_exported(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path)
    policy(tie_word_embeddings=True).causal_lm.save_pretrained(tmp_path / "tied")
    one, two = fit_all(0, 1, tmp_path), run_ranks(fit_all, tmp_path, tmp_path)
    for rank in two:
        for name in NAMES:
            assert_same(rank[name], one[name])
            assert rank[name]["decayed"] == one[name]["decayed"]  # flat pieces have one dimension, matrices had two
    assert (
        read_checkpoint(tmp_path / "2.ckpt")["state_dict"].keys()
        <= read_checkpoint(tmp_path / "1.ckpt")["state_dict"].keys()
    )
    ids = ROWS[0].input_ids[None, :12]
    exported = [export_checkpoint(tmp_path / f"{world}.ckpt", tmp_path / f"export {world}") for world in (1, 2)]
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits for folder in exported]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)
