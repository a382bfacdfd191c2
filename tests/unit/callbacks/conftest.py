"""One tiny fit that the tests of all callbacks run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.sft import SFTModule
from lion_lightning.types import PackedBatch
from tests import tiny

CAPACITY = 32  # of tiny.row's 25 tokens


def batches(count: int = 6) -> list[PackedBatch]:
    return [replace(tiny.row(seed=seed), capacity=CAPACITY, sample_indices=(0, 1, 2)) for seed in range(count)]


class Bench:
    """Makes modules and trainers that are equal from test to test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(folder / "tokenizer")))

    def rows(self) -> tiny.Rows:
        return tiny.Rows(batches(2))

    def module(self, lora: LoRASpec | None = None) -> SFTModule:
        spec = PolicySpec(config=tiny.shallow(tie_word_embeddings=True, eos_token_id=2, pad_token_id=2), lora=lora)
        optimizer: Callable[..., Any] = lambda groups: torch.optim.AdamW(groups, lr=1e-2)  # noqa: E731
        return SFTModule(spec, tokenizer=self.tokenizer, optimizer=optimizer)

    def trainer(self, *callbacks: Callback, **options: Any) -> Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": -1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": self.folder / "run",
            "logger": CSVLogger(self.folder / "logs"),
        }
        return Trainer(callbacks=list(callbacks), **settings | options)

    def fit(self, trainer: Trainer, module: Any = None, train: Sequence[Any] | None = None, **options: Any) -> Any:
        torch.manual_seed(0)
        module = self.module() if module is None else module
        trainer.fit(module, tiny.Rows(train or batches()), tiny.Rows(batches(2)), **options)
        return module


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
