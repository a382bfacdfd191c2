"""The loader of an epoch that has nothing to train on."""

from __future__ import annotations

from collections.abc import Iterator

from lion_lightning.types import PackedBatch


class NoBatches:
    """Gives no batch. Its length is one: at a loader of length zero Lightning would end the run."""

    def __len__(self) -> int:
        """One."""
        return 1

    def __iter__(self) -> Iterator[PackedBatch]:
        """Nothing."""
        return iter(())
