"""Padded batches of other projects as packed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lion_lightning.ops.layout import RowLayout
from lion_lightning.types import PackedBatch, segment_table


def pack_padded(batch: Mapping[str, Any]) -> PackedBatch:
    """The sequences of a padded batch, as the models of transformers take it, laid end to end without the padding.

    Targets are those of transformers' own loss: the tokens whose label is not -100, but for the first of a sequence.
    Padding may be on either side.

    Args:
        batch: ``input_ids``, ``(sequences, length)``; ``attention_mask`` of that shape, 0 at padding, without which
            (or with None) there is no padding; and ``labels``, without which there are no targets.

    Raises:
        ValueError: There are no ``input_ids``, shapes differ, or a sequence has no tokens.
    """
    ids, mask, labels = _tensors(batch)
    lengths = mask.sum(1).tolist()
    if not all(lengths):
        raise ValueError(f"sequence {lengths.index(0)} of a padded batch is padding alone")
    segments = segment_table(lengths, [-1] * len(lengths))
    layout = RowLayout(segments, ids.device)
    owners = torch.arange(len(lengths), device=ids.device).repeat_interleave(mask.sum(1))  # (tokens,)
    supervised = (labels[mask] != -100) & (layout.positions > 0)
    places = supervised.nonzero().flatten()
    return PackedBatch(
        input_ids=ids[mask].long(),
        position_ids=layout.positions,
        segments=segments,
        logit_positions=places - 1,
        targets=labels[mask][places].long(),
        target_segments=owners[places],
        segment_samples=tuple(range(len(lengths))),
        sample_indices=tuple(range(len(lengths))),
        sources=("",) * len(lengths),
        capacity=ids.numel(),
    )


def _tensors(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask (False at padding) and labels, each ``(sequences, length)``."""
    ids, mask, labels = (batch.get(name) for name in ("input_ids", "attention_mask", "labels"))
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(f"a padded batch has `input_ids` of shape (sequences, length); this one has {sorted(batch)}")
    # collators leave the others out, or give None
    mask = torch.ones_like(ids).bool() if mask is None else mask.bool()
    labels = torch.full_like(ids, -100) if labels is None else labels
    if not ids.shape == mask.shape == labels.shape:
        shapes = ", ".join(f"{tuple(each.shape)}" for each in (ids, mask, labels))
        raise ValueError(f"input_ids, attention_mask and labels of a padded batch have other shapes: {shapes}")
    return ids, mask, labels


def as_packed(batch: Any, reader: object) -> PackedBatch:
    """A batch of a Trainer's loader, packed if it is not.

    Args:
        batch: A :class:`~lion_lightning.types.PackedBatch`, or a padded batch as for :func:`pack_padded`.
        reader: Who reads it, for the error.

    Raises:
        MisconfigurationException: It is neither.
    """
    if isinstance(batch, PackedBatch):
        return batch
    try:
        if isinstance(batch, Mapping):
            return pack_padded(batch)
        problem = f"this one is a {type(batch).__name__}"
    except ValueError as error:
        problem = str(error)
    name = type(reader).__name__
    raise MisconfigurationException(
        f"{name} reads packed batches, as the data modules of lion_lightning give them, or padded ones with input_ids, "
        f"attention_mask and labels ({problem}); take {name} out of trainer.callbacks, or change the loader"
    )
