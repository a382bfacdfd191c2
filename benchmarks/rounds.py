"""Rounds of answers that are there already, for a policy gradient that is to be measured or compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import LightningDataModule


class Rounds(LightningDataModule):
    """An epoch a round, and nothing to sample.

    Args:
        rounds: Of each its micro-batches.
        folder: Where log-probs of a round are kept.
        loader: From the micro-batches of a round to their batches.
    """

    items = "groups"

    def __init__(self, rounds: Sequence[Any], folder: str, loader: Callable[[Any], Any]) -> None:
        super().__init__()
        self.rounds, self.folder, self.loader = rounds, folder, loader

    @property
    def current_round(self) -> Any:
        """Its number and its path."""
        number = self.trainer.current_epoch  # type: ignore[union-attr]
        return SimpleNamespace(number=number, path=Path(self.folder, f"round-{number}"))

    def is_used_again(self, epoch: int) -> bool:
        """No round is.

        Args:
            epoch: Which.
        """
        return False

    def train_dataloader(self) -> Any:
        """The batches of the round."""
        return self.loader(self.rounds[self.current_round.number])
