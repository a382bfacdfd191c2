"""Micro-batches of rows: dealt out to ranks, the same whatever reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lion_lightning.data.packing.best_fit import Unpacked
from lion_lightning.data.packing.sampler import PackedBatchSampler


def sampler(documents: int = 5, **options: Any) -> PackedBatchSampler:
    """One document of 2 tokens per row."""
    return PackedBatchSampler(np.full(documents, 2), capacity=2, packing=Unpacked(), **options)


def documents(batches: PackedBatchSampler) -> list[list[int]]:
    return [[span.document for row in batch for span in row.spans] for batch in batches]


def test_ranks_take_turns_and_the_last_ones_repeat_a_batch_without_supervision() -> None:
    first, second = (sampler(batch_size=2, rank=rank, world_size=2) for rank in (0, 1))
    assert documents(first) == [[0, 1], [4]]
    assert documents(second) == [[2, 3], [0, 1]]
    assert [[row.supervised for row in batch] for batch in second] == [[True, True], [False, False]]


def test_only_the_next_iteration_resumes_and_a_second_iterator_of_it_is_not_lost() -> None:
    made = sampler()
    made.resume(3)
    iter(made)  # as a DataLoader with workers does
    assert documents(made) == [[3], [4]]
    assert documents(made) == [[0], [1], [2], [3], [4]]


def test_another_epoch_begins_at_its_first_batch() -> None:
    made = sampler(shuffle=True, seed=1)
    made.resume(3)
    made.set_epoch(1)
    found = documents(made)
    assert sorted(found) == [[0], [1], [2], [3], [4]]
    made.set_epoch(0)
    assert documents(made) != found
