"""Kinds of batches, and the module that trains on each: a module refuses those that are for another one."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from lion_lightning.types import PackedBatch


class BatchKind(NamedTuple):
    """Contents of rows.

    Attributes:
        name: In the plural.
        module: Module that trains on it.
        data: Data module that gives it.
    """

    name: str
    module: str
    data: str


DOCUMENTS = BatchKind("documents", "SFTModule", "SFTDataModule")
PAIRS = BatchKind("preference pairs", "DPOModule", "PreferenceDataModule")
LABELED = BatchKind("labeled answers", "KTOModule", "UnpairedDataModule")
GROUPS = BatchKind("groups of scored answers", "GroupModule", "GroupDataModule")


def require_packed(batch: PackedBatch) -> None:
    """Refuse anything but a batch of packed rows.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(batch, PackedBatch):
        raise ValueError(
            f"the data gives batches of type {type(batch).__name__}, and the modules of lion_lightning train on "
            "PackedBatch: use a data module of lion_lightning, or make batches with lion_lightning.data.packing.collate"
        )


def require_documents(batch: PackedBatch, module: object) -> None:
    """Refuse answers that share a prompt: as documents, rejected ones would be trained as well.

    Args:
        batch: What the data gives.
        module: What is to train on it.

    Raises:
        ValueError: The batch holds something else.
    """
    _require(batch, DOCUMENTS, module, unlike=kind_of(batch) is not DOCUMENTS)


def require_pairs(batch: PackedBatch, module: object) -> None:
    """Refuse a batch without pairs, or with weights of targets; see :func:`require_documents`."""
    _require(batch, PAIRS, module, unlike=kind_of(batch) is not PAIRS)


def require_labels(batch: PackedBatch, module: object) -> None:
    """Refuse a batch of anything but answers of value 1 or 0 (NaN: mismatched); see :func:`require_documents`."""
    _require(batch, LABELED, module, unlike=kind_of(batch) is not LABELED)
    if batch.values and all(map(math.isnan, batch.values)):
        raise ValueError(f"{type(module).__name__}: no answer of the batch has a label; use {LABELED.data}")


def require_groups(batch: PackedBatch, module: object) -> None:
    """Refuse a batch of anything but prompts with two valued answers or more; see :func:`require_documents`."""
    _require(batch, GROUPS, module, unlike=kind_of(batch) not in (GROUPS, LABELED))
    sizes = Counter(batch.segments[segment].parent for segment in batch.answers)
    if any(map(math.isnan, batch.values)) or min(sizes.values(), default=2) < 2:
        name = type(module).__name__
        raise ValueError(
            f"{name} compares the answers to a prompt by their values, and the batch has prompts with a single answer "
            f"or answers without a value; use {GROUPS.data}, or {LABELED.module} for {LABELED.name}"
        )


def kind_of(batch: PackedBatch) -> BatchKind:
    """Kind of a batch, as far as it shows: groups whose scores are all 1 or 0 may be labeled answers as well."""
    require_packed(batch)
    parents = [segment.parent for segment in batch.segments if segment.parent >= 0]
    parted = len({*parents}) == len(parents) and all(batch.segments[parent].bidirectional for parent in parents)
    if parted and all(map(math.isnan, batch.values)):  # at most in a prefix and what follows it
        return DOCUMENTS
    if batch.pairs:
        return PAIRS
    return LABELED if all(value in (0.0, 1.0) or math.isnan(value) for value in batch.values) else GROUPS


def _require(batch: PackedBatch, wanted: BatchKind, module: object, unlike: bool) -> None:
    if not len(batch.targets):  # what a rank runs that has no rows left
        return
    name, found = type(module).__name__, kind_of(batch)
    if unlike:
        raise ValueError(
            f"{name} trains on {wanted.name}, and the batch holds {found.name}; use {wanted.data}, or {found.module} "
            f"for {found.name}"
        )
    if wanted is not DOCUMENTS and batch.target_weights is not None:
        raise ValueError("target_weights are for documents: answers are judged by all their tokens alike")
