"""Estimate how much a stage writes to disk, from its config."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lion_lightning.data.reports.tree_reports import TreeReport
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.base_model import has_stored_base
from lion_lightning.planning.memory_counter import size_of
from lion_lightning.planning.meta_model import meta_model
from lion_lightning.references.answer_file import ANSWER_BYTES, TARGET_BYTES
from lion_lightning.references.cached import CachedReference

GIB = 2**30


class Space(NamedTuple):
    """Bytes of a stage on disk.

    Attributes:
        least: Size of one checkpoint and the export.
        most: Size with every checkpoint that its config keeps, and one more being written.
    """

    least: int
    most: int


def space_of(spec: PolicySpec, trainer: Trainer) -> Space:
    """Estimate the disk space of a stage, with two optimizer values per trained parameter, as Adam has."""
    parameters = list(meta_model(spec).parameters())
    trained = size_of(parameter for parameter in parameters if parameter.requires_grad)
    weights = trained if has_stored_base(spec) else size_of(parameters)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    export = sum(parameter.numel() for parameter in parameters) * dtype.itemsize
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    savers = [each for each in callbacks if isinstance(each, ModelCheckpoint)]
    checkpoint = kept = 0
    for saver in savers:
        checkpoint = max(checkpoint, weights + (0 if saver.save_weights_only else 2 * trained))
        kept += max(1, saver.save_top_k) + (saver.save_last is True)  # "link" takes no space
    return Space(checkpoint + export, (kept + 1) * checkpoint + export if savers else export)


def cached_reference_size(module: Any, data: Any) -> int:
    """Bytes of the cache of a module's reference: those of each target and answer of its data, once that is read.

    Args:
        module: The stage's; without a :class:`CachedReference` there is no cache.
        data: Its data module, after ``setup``; data that is not read yet counts nothing.
    """
    if not isinstance(getattr(module, "reference", None), CachedReference):
        return 0
    reports = [*data.reports, *(data.validation_mixture.reports if data.validation_mixture else [])]
    trees = [report for report in reports if isinstance(report, TreeReport)]
    return sum(TARGET_BYTES * (tree.kept.tokens - tree.prompt) + ANSWER_BYTES * tree.answers for tree in trees)


def free_space(folder: Path) -> int:
    """Bytes that can be written to a folder, which may still have to be made."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free
