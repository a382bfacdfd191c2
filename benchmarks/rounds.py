"""Rounds of answers that are there already, for a policy gradient that is to be measured or compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import LightningDataModule
from typing_extensions import override


class Rounds(LightningDataModule):
    """One round per epoch, and nothing to sample.

    Args:
        rounds: Micro-batches of each round.
        folder: Where log-probs of a round are kept.
        loader: Makes the loader of a round from its micro-batches.
    """

    items = "groups"

    def __init__(self, rounds: Sequence[Any], folder: str, loader: Callable[[Any], Any]) -> None:
        super().__init__()
        self.rounds, self.folder, self.loader = rounds, folder, loader

    @property
    def current_round(self) -> Any:
        """Number and path of the epoch's round."""
        number = self.trainer.current_epoch  # type: ignore[union-attr]
        return SimpleNamespace(number=number, path=Path(self.folder, f"round-{number}"))

    def is_used_again(self, epoch: int) -> bool:
        """False: every epoch has another round."""
        return False

    @override
    def train_dataloader(self) -> Any:
        return self.loader(self.rounds[self.current_round.number])
