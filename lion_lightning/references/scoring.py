"""A pass of a model over batches that are only scored: no gradients, every rank in step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tqdm import tqdm

from lion_lightning.distributed.ranks import Process
from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.references.store import Keys, PairStore, pair_keys
from lion_lightning.types import PackedBatch, PairLogps

FLUSH_SECONDS = 30.0
"""How much work a killed pass loses at most."""


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
