"""A pass of a model over batches that are only scored: no gradients, every rank in step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tqdm import tqdm

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.references.store import Keys, PairStore, pair_keys
from lion_lightning.types import PackedBatch, PairLogps

FLUSH_SECONDS = 30.0
"""How much work a killed pass loses at most."""


def missing(store: PairStore, batches: Iterable[PackedBatch], ranks: Ranks, title: str) -> Iterator[Any]:
    """Batches of which some rank lacks a pair, with their keys: as many on every rank.

    Args:
        store: What is known.
        batches: As many on every rank.
        ranks: This process among the ranks of the run.
        title: What the batches are, for the progress bar.
    """
    for batch in tqdm(batches, f"reference log-probs: {title}", delay=2, disable=not ranks.is_first):
        keys = pair_keys(batch)
        if not ranks.all_agree(bool(store.has(keys).all())):
            yield batch, keys


@torch.no_grad()
def score(store: PairStore, model: PolicyModel, batches: Iterable[tuple[PackedBatch, Keys]], ranks: Ranks) -> None:
    """Compute the log-probs of batches and put them into the store, a file at least every ``FLUSH_SECONDS``.

    Args:
        store: Where to.
        model: What scores.
        batches: From :func:`missing`.
        ranks: This process among the ranks of the run.
    """
    flushed = time.monotonic()
    for batch, keys in batches:
        store.add(keys, _logps(model, batch.to(ranks.device), ranks))
        if time.monotonic() - flushed > FLUSH_SECONDS:
            store.flush()
            flushed = time.monotonic()
    store.flush()
    ranks.barrier()
    store.reload()


def _logps(model: PolicyModel, batch: PackedBatch, ranks: Ranks) -> PairLogps:
    with ranks.autocast():
        return pair_logps(model(batch), batch)
