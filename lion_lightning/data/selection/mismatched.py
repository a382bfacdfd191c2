"""Answers to other prompts, from which KTO estimates the KL divergence of policy and reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lion_lightning.data.packing.best_fit import Integers
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.spans import sort_hashes


def add_mismatched(selection: Selection, max_length: int) -> Selection:
    """Give each tree an answer of the next tree with another prompt, with an unknown value; the first follows the last.

    Which one follows from the data alone, so that a reference that was computed once knows it in all epochs. Trees take
    the first, second, ... answer of the next in turns, so that wanted and unwanted answers are drawn alike. An answer
    is truncated to the room behind the prompt; one without a target then is not added. Trees
    of one prompt alone get none.

    Args:
        selection: Trees of single answers.
        max_length: Most tokens of a prompt with one answer.
    """
    spans = selection.spans
    count = len(spans.numbers)
    following = _following(selection)
    if following is None:
        return selection
    sizes = np.diff(spans.offsets)
    answers = spans.offsets[following] + 1 + np.arange(count) % (sizes[following] - 1)
    room = max_length - spans.segment_lengths[spans.offsets[:-1]]
    stops = np.minimum(spans.stops[answers], spans.starts[answers] + room)
    none = np.zeros(count, np.bool_)
    known = selection.table.targets(spans.rows[answers], spans.starts[answers], stops, none) > 0
    # Behind the last segment of each tree that gets one.
    places = spans.offsets[1:][known]
    columns = {
        name: np.insert(getattr(spans, name), places, found[known])
        for name, found in (("rows", spans.rows[answers]), ("starts", spans.starts[answers]), ("stops", stops))
    }
    values = np.insert(spans.values.astype(np.float64), places, np.nan)
    offsets = np.cumsum(np.concatenate([[0], sizes + known]))
    return replace(selection, spans=spans._replace(**columns, values=values, offsets=offsets).compact())


def _following(selection: Selection) -> Integers | None:
    """``(documents,)`` the next document with another prompt; None where there is one prompt alone."""
    groups = selection.groups
    order, new = sort_hashes(groups)
    if new.sum() < 2:
        return None
    labels = np.zeros(len(order), np.int64)
    labels[order] = np.cumsum(new)
    # Twice around, so that the last document has others behind it: the next change of label is looked for.
    twice = np.concatenate([labels, labels])
    changes = np.flatnonzero(twice[1:] != twice[:-1]) + 1
    found: Integers = changes[np.searchsorted(changes, np.arange(len(labels)), side="right")] % len(labels)
    return found
