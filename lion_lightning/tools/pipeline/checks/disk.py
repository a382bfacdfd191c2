"""Estimate how much a stage writes to disk, from its config."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.base_model import has_stored_base
from lion_lightning.planning.meta_model import meta_model

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
    """Estimate the disk space of a stage, with two optimizer values per trained parameter, as Adam has.

    Args:
        spec: Its policy.
        trainer: With its callbacks.
    """
    parameters = list(meta_model(spec).parameters())
    trained = _bytes(parameter for parameter in parameters if parameter.requires_grad)
    weights = trained if has_stored_base(spec) else _bytes(parameters)
    export = sum(parameter.numel() for parameter in parameters) * _size(spec)
    savers = [each for each in _callbacks(trainer) if isinstance(each, ModelCheckpoint)]
    checkpoint = max((weights + (0 if saver.save_weights_only else 2 * trained) for saver in savers), default=0)
    kept = sum(max(1, saver.save_top_k) + (saver.save_last is True) for saver in savers)
    return Space(checkpoint + export, (kept + 1) * checkpoint + export if savers else export)


def free_space(folder: Path) -> int:
    """Bytes that can be written to a folder, which may still have to be made.

    Args:
        folder: The folder.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _size(spec: PolicySpec) -> int:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return dtype.itemsize


def _bytes(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _callbacks(trainer: Trainer) -> list[Any]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
