"""Views of the data and of rounds for detectors, from what is there anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from lion_lightning.callbacks.monitors.health.detector import MOST_ROWS, Pairs, Sampled
from lion_lightning.data.reports.tree_reports import PairReport
from lion_lightning.rollouts.rounds import Round

MOST_PAIRS = 1000
"""Prompts whose pairs are read, evenly drawn."""

LEAST_PROMPTS = 16
"""A round of fewer prompts says too little."""


def pairs_of(trainer: Trainer) -> Pairs | None:
    """The pairs of the data; None where the data module is not ours, streams, samples its pairs or has none."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    mixture = getattr(data, "train_mixture", None)
    if mixture is None or getattr(data, "rounds", None) is not None:
        return None
    reports = [report for report in mixture.reports if isinstance(report, PairReport)]
    if not reports:
        return None
    left_out: Counter[str] = Counter()
    for report in reports:
        left_out.update({cause: counts.documents for cause, counts in report.left_out.items()})
    documents = mixture.documents
    drawn = np.linspace(0, len(documents) - 1, min(MOST_PAIRS, len(documents))).astype(int).tolist()
    answers, places = [], []
    for position in drawn:
        sample = documents[position]
        for chosen, rejected in sample.pairs:  # positions among the answers, which follow the prompt
            answers.append(tuple(sample.segments[1 + place].input_ids.tolist() for place in (chosen, rejected)))
            places.append(position)
    read = sum(report.read.documents for report in reports)
    return Pairs(read, left_out, answers, lambda number: documents.where(places[number]))


def sampled_of(finished: Round, step: int) -> Sampled | None:
    """The answers of a round; None if it is too small to say anything.

    Args:
        finished: The round.
        step: Optimizer steps made when its epoch begins.
    """
    rollouts = [rollout for rollout in finished.rollouts if rollout.sampled_scores and not rollout.monitor]
    return Sampled(step, finished.number, rollouts) if len(rollouts) >= LEAST_PROMPTS else None


def places(trainer: Trainer, samples: Iterable[int]) -> tuple[str, ...]:
    """Places of the first of some training samples, by their numbers; none where the data is not ours, or streams."""
    mixture = getattr(trainer.datamodule, "train_mixture", None)  # type: ignore[attr-defined]
    if mixture is None:
        return ()
    found = np.flatnonzero(np.isin(mixture.documents.numbers, list(samples)))
    return tuple(mixture.documents.where(position) for position in found[:MOST_ROWS].tolist())
