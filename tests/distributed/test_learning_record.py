"""Losses of documents on two ranks: those of one process, and the same file from a run that was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lion_lightning import PolicySpec, SFTDataModule, SFTModule, Source, TokenizerSpec
from lion_lightning.callbacks import LearningRecord
from lion_lightning.data.learning.record import RecordedLosses
from lion_lightning.strategies import FSDP2Strategy
from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.marks import exhaustive
from tests.unit.data.letters import byte_tokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

STRATEGIES: dict[str, Any] = {
    "ddp": lambda: "ddp",
    "fsdp2": FSDP2Strategy,
    "tensor parallel": lambda: FSDP2Strategy(tensor_parallel_size=2),
}
TEXTS = ["a short text", "another one", "the text that is split over all rows, so that its parts go to two ranks"]


def fit(rank: int, world: int, folder: Path, strategy: str) -> None:
    """Train two epochs, at once and in two parts."""
    for name, epochs in (("whole", (2,)), ("parts", (1, 2))):
        for last in epochs:
            torch.manual_seed(0)
            module = SFTModule(
                PolicySpec(config=tiny.shallow(vocab_size=258)),
                tokenizer=TokenizerSpec(str(folder / "tokenizer")),
                optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
            )
            data = SFTDataModule(
                [Source(str(folder / "texts.jsonl"))],
                TokenizerSpec(str(folder / "tokenizer")),
                max_length=32,
                overlong="split",
                cache_dir=folder / "cache",
            )
            saver = ModelCheckpoint(folder / strategy / name, filename=str(last), every_n_epochs=1)
            options = {"devices": world, "strategy": STRATEGIES[strategy]()} if world > 1 else {}
            trainer = tiny.trainer(
                max_epochs=last,
                accumulate_grad_batches=2 if strategy in ("one process", "tensor parallel") else 1,
                enable_checkpointing=True,
                callbacks=[LearningRecord(), saver],
                default_root_dir=folder / (strategy if world > 1 else "one") / name,
                **options,
            )
            trainer.fit(module, datamodule=data, ckpt_path=saver_path(folder / strategy / name, last))


def saver_path(folder: Path, last: int) -> Path | None:
    path = folder / f"{last - 1}.ckpt"
    return path if path.exists() else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learning")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    fit(0, 1, folder, "one process")
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", *exhaustive("tensor parallel")])
def test_two_ranks_record_what_one_process_does(strategy: str, folder: Path, tmp_path: Path) -> None:
    run_ranks(fit, tmp_path, folder, strategy)
    one = RecordedLosses.read(folder / "one" / "whole" / "learning.arrow")
    two = RecordedLosses.read(folder / strategy / "whole" / "learning.arrow")
    assert two.moments == one.moments == ((0, 0.0), (2, 1.0), (4, 1.0))
    # all bytes of a text and its end, but for the first token of each of its parts of 32
    assert two.targets.tolist() == one.targets.tolist() == [12, 11, len(TEXTS[2]) + 1 - 3]
    np.testing.assert_array_equal(two.digests, one.digests)
    np.testing.assert_allclose(two.nll, one.nll, atol=1e-4)
    assert np.abs(one.nll[0] - one.nll[2]).min() > 0.1  # it has trained
    whole, parts = (folder / strategy / name / "learning.arrow" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
