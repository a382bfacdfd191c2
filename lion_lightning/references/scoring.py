"""A pass of a model over batches that are only scored: no gradients, every rank in step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from tqdm import tqdm

from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.references.store import Keys, PairStore, pair_keys
from lion_lightning.types import PackedBatch, PairLogps

FLUSH_SECONDS = 30.0
"""How much work a killed pass loses at most."""


class Process:
    """A process's place among the others; this one is alone. Modules make one that knows their trainer.

    Args:
        device: Where the model is.
        precision: Name of the precision that :meth:`autocast` gives; a part of what values come from.
    """

    def __init__(self, device: torch.device | str = "cpu", precision: str = "32-true") -> None:
        self.device, self.precision = device, precision

    @property
    def is_first(self) -> bool:
        """Whether this process shows progress."""
        return True

    def autocast(self) -> AbstractContextManager[Any]:
        """Precision of a forward."""
        return nullcontext()

    def all_agree(self, flag: bool) -> bool:
        """Whether the flag is set in every process."""
        return flag

    def wait(self) -> None:
        """Wait for the others."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for the others at the end, and fail where one of them does, so that none goes on alone.

        Raises:
            OSError: Another process has failed, and tells itself why.
        """
        try:
            yield
        except Exception:
            self.all_agree(False)
            raise
        if not self.all_agree(True):
            raise OSError("another process has failed; its own message says why")


def missing(store: PairStore, batches: Iterable[PackedBatch], process: Process, title: str) -> Iterator[Any]:
    """Batches of which some process lacks a pair, with their keys: the same number in every process.

    Args:
        store: What is known.
        batches: As many in every process.
        process: This one.
        title: What the batches are, for the progress bar.
    """
    for batch in tqdm(batches, f"reference log-probs: {title}", delay=2, disable=not process.is_first):
        keys = pair_keys(batch)
        if not process.all_agree(bool(store.has(keys).all())):
            yield batch, keys


@torch.no_grad()
def score(store: PairStore, model: PolicyModel, batches: Iterable[tuple[PackedBatch, Keys]], process: Process) -> None:
    """Compute the log-probs of batches and put them into the store, a file at least every ``FLUSH_SECONDS``.

    Args:
        store: Where to.
        model: What scores.
        batches: From :func:`missing`.
        process: This process.
    """
    flushed = time.monotonic()
    for batch, keys in batches:
        store.add(keys, _logps(model, batch.to(process.device), process))
        if time.monotonic() - flushed > FLUSH_SECONDS:
            store.flush()
            flushed = time.monotonic()
    store.flush()
    process.wait()
    store.reload()


def _logps(model: PolicyModel, batch: PackedBatch, process: Process) -> PairLogps:
    with process.autocast():
        return pair_logps(model(batch), batch)
