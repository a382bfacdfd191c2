"""Scoring: a model computes the log-probs of batches for the store, without gradients, all ranks in step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from tqdm import tqdm

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.policy import PolicyModel
from lion_lightning.references.answer_file import Keys
from lion_lightning.references.store import AnswerStore, answer_counts, answer_keys
from lion_lightning.types import PackedBatch, keep_answers

FLUSH_SECONDS = 30.0
"""Most work that a kill can lose."""


def uncached(
    store: AnswerStore, batches: Iterable[PackedBatch], ranks: Ranks, title: str
) -> Iterator[tuple[PackedBatch, Keys]]:
    """The answers of each batch that the store lacks, with their keys.

    Batches of which no rank lacks an answer are skipped; of the others every rank gets one, for sharded models.
    """
    for batch in tqdm(batches, title, delay=2, disable=not ranks.is_first):
        keys = answer_keys(batch)
        lacking = np.flatnonzero(~store.has(keys))
        _, first = np.unique(keys[lacking, 0], return_index=True)  # an answer may be in a batch twice
        positions = np.sort(lacking[first])
        if not ranks.all_agree(not len(positions)):
            if answer_counts(batch)[positions].sum() < len(batch.targets):
                batch = keep_answers(batch, positions.tolist())
            yield batch, keys[positions]


@torch.no_grad()
def score(store: AnswerStore, model: PolicyModel, batches: Iterable[tuple[PackedBatch, Keys]], ranks: Ranks) -> None:
    """Compute log-probs and add them to the store; they are written every ``FLUSH_SECONDS``."""
    flushed = time.monotonic()
    for batch, keys in batches:
        moved = batch.to(ranks.device)
        with ranks.autocast():
            logps = model(moved)
        store.add(keys, answer_counts(batch), logps)
        if time.monotonic() - flushed > FLUSH_SECONDS:
            store.flush()
            flushed = time.monotonic()
    store.flush()
    store.reload(ranks.all_gather(store.own))  # every rank's file is on disk before any rank reads it
