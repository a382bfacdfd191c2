"""DPO killed anywhere and resumed, under every kind of reference: the same pairs, weights and losses, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lion_lightning import (
    AdapterOffReference,
    CachedReference,
    DPOModule,
    FrozenReference,
    MixedReference,
    PolicySpec,
    Reference,
    RefreshedReference,
    TokenizerSpec,
)
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.losses.pairs.preference import PreferenceLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.types import PairLogps, Sample, SampleSegment
from tests import tiny
from tests.marks import exhaustive

pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS, EPOCHS, BATCHES = 11, 3, 4
REFERENCES: dict[str, Callable[[], Reference]] = {
    "cached": CachedReference,
    "frozen": FrozenReference,
    "mixed": partial(MixedReference, alpha=0.5, every_n_steps=2),
    "refreshed": RefreshedReference,
    "adapters off": AdapterOffReference,
}


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved after it."""


class Kill(Callback):
    """Writes down the losses, and kills the run before the batch of this number, counted over epochs."""

    def __init__(self, kill: int | None) -> None:
        self.kill = kill
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch * BATCHES + batch_idx == self.kill:
            raise KilledError

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


class Remembering(PreferenceLoss):
    """A loss with a state: how many pairs all steps together have seen."""

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)
        self.register_buffer("seen", torch.zeros(()))
        self.now = 0

    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        if self.training:
            self.now += len(policy.chosen.sums)
        assert isinstance(self.seen, Tensor)
        return torch.nn.functional.softplus(self.seen / 10 - self.rewards(policy, reference).margin)

    def after_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        assert isinstance(self.seen, Tensor)
        self.seen += add_up(torch.tensor(float(self.now)))
        self.now = 0


def samples() -> list[Sample]:
    rng = np.random.default_rng(1)

    def piece(length: int, parent: int) -> SampleSegment:
        ids = rng.integers(3, tiny.VOCABULARY, length).astype(np.int32)
        return SampleSegment(ids, np.full(length, parent >= 0), parent)

    return [
        Sample(
            tuple(piece(int(n), parent) for n, parent in zip(rng.integers(1, 7, 3), (-1, 0, 0), strict=True)),
            number,
            pairs=((0, 1),),
        )
        for number in range(PAIRS)
    ]


class Runs:
    """Makes runs of three epochs, each in a folder; a run goes on from the last checkpoint of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(folder / "tokenizer")))
        self.samples = samples()
        self.wholes: dict[str, tuple[dict[str, Tensor], list[float]]] = {}

    def whole(self, kind: str) -> tuple[dict[str, Tensor], list[float]]:
        """The run that nobody stops."""
        if kind not in self.wholes:
            self.wholes[kind] = self.fit(f"whole {kind}", kind)
        return self.wholes[kind]

    def fit(self, name: str, kind: str, kill: int | None = None) -> tuple[dict[str, Tensor], list[float]]:
        torch.manual_seed(0)
        adapters = LoRASpec(r=4) if kind == "adapters off" else None
        module = DPOModule(
            PolicySpec(config=tiny.config(num_hidden_layers=1), lora=adapters),
            tokenizer=self.tokenizer,
            loss=Remembering(0.5),
            reference=REFERENCES[kind](),
            optimizer=partial(torch.optim.AdamW, lr=1e-2),
        )
        killer = Kill(kill)
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
        lengths = np.array([sample.length for sample in self.samples])
        return PackedLoader(self.samples, lengths, capacity=18, batch_size=2, shuffle=shuffle)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cached", "mixed", "adapters off", "frozen", "refreshed"])
@pytest.mark.parametrize("kill", [4, *exhaustive(2, 9)])
def test_a_killed_run_ends_as_the_one_that_nobody_stopped(runs: Runs, kind: str, kill: int) -> None:
    whole, losses = runs.whole(kind)
    assert len(losses) == EPOCHS * BATCHES
    runs.fit(f"{kind} {kill}", kind, kill=kill)
    resumed, after = runs.fit(f"{kind} {kill}", kind)
    assert after == losses[kill:]
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
