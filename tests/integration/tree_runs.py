"""Runs over trees that are killed within an epoch and go on, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lion_lightning import AlignmentModule, TokenizerSpec
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.types import Sample, SampleSegment
from tests import tiny

EPOCHS = 3
Make = Callable[..., AlignmentModule]
"""From a tokenizer and an optimizer, by keyword, to the module that is trained."""


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved after it."""


class Kill(Callback):
    """Writes down the losses, and kills the run before the batch of this number, counted over epochs."""

    def __init__(self, kill: int | None, batches: int) -> None:
        self.kill, self.batches = kill, batches
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch * self.batches + batch_idx == self.kill:
            raise KilledError

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def random_trees(values: Sequence[tuple[float, ...]], pairs: tuple[tuple[int, int], ...] = ()) -> list[Sample]:
    """Trees of random tokens.

    Args:
        values: Of the answers, for each tree.
        pairs: Of each tree.
    """
    rng = np.random.default_rng(1)
    samples = []
    for number, each in enumerate(values):
        parts = []
        for place, length in enumerate(rng.integers(1, 7, 1 + len(each))):
            ids = rng.integers(3, tiny.VOCABULARY, int(length)).astype(np.int32)
            parts.append(SampleSegment(ids, np.full(int(length), place > 0), 0 if place else -1))
        samples.append(Sample(tuple(parts), number, values=each, pairs=pairs))
    return samples


class TreeRuns:
    """Makes runs of three epochs, each in a folder; a run goes on from the last checkpoint of its folder.

    Args:
        folder: Of all runs.
        samples: What is trained on.
        kinds: Makes a module, by the name of a kind of run.
        capacity: Tokens of a row; two rows are a micro-batch.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], kinds: Mapping[str, Make], capacity: int = 18) -> None:
        self.folder, self.samples, self.kinds, self.capacity = folder, samples, kinds, capacity
        self.tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(folder / "tokenizer")))
        self.batches = len(self.loader(True))
        self.wholes: dict[str, tuple[dict[str, Tensor], list[float]]] = {}

    def fit(self, name: str, kind: str, kill: int | None = None) -> tuple[dict[str, Tensor], list[float]]:
        """Train until the end or the kill; weights, buffers and moments, and the losses."""
        torch.manual_seed(0)
        module = self.kinds[kind](tokenizer=self.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2))
        killer = Kill(kill, self.batches)
        saver = ModelCheckpoint(self.folder / name, save_last=True, save_top_k=-1, every_n_train_steps=1)
        trainer = tiny.trainer(max_epochs=EPOCHS, callbacks=[saver, killer], enable_checkpointing=True)
        try:
            trainer.fit(module, self.loader(True), self.loader(False), ckpt_path="last")
        except KilledError:
            assert kill is not None
        moments = trainer.optimizers[0].state_dict()["state"]
        state = {f"{k} {n}": torch.as_tensor(v) for k, values in moments.items() for n, v in values.items()}
        return dict(module.state_dict()) | state, killer.losses

    def loader(self, shuffle: bool) -> PackedLoader:
        """Batches of two rows."""
        lengths = np.array([sample.length for sample in self.samples])
        return PackedLoader(self.samples, lengths, capacity=self.capacity, batch_size=2, shuffle=shuffle)

    def assert_ends_equal(self, kind: str, kill: int) -> None:
        """Kill a run, go on with it, and compare with the run that nobody stopped, bit for bit."""
        if kind not in self.wholes:
            self.wholes[kind] = self.fit(f"whole {kind}", kind)
        whole, losses = self.wholes[kind]
        assert len(losses) == EPOCHS * self.batches
        self.fit(f"{kind} {kill}", kind, kill=kill)
        resumed, after = self.fit(f"{kind} {kill}", kind)
        assert after == losses[kill:]
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())
