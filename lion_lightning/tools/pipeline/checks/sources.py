"""Check the data of a stage before anything trains."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.on_policy import RoundDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.example_batch import Encoder
from lion_lightning.judges.weighted import WeightedJudge
from lion_lightning.readiness import NUM_PROMPTS, require_ready
from lion_lightning.rollouts.checks import require_on_policy
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.types import Prompt

ALL_ROWS = 20_000
"""Up to this many rows all are tokenized, and kept for the stage; beyond, the first ones of each source."""

FIRST_ROWS = 1000


def check_data(data: PackedDataModule) -> None:
    """Read the sources, as far as that is quick, and mix them where all of them were read. Of streams the first rows.

    Args:
        data: Attached to a trainer of a single process, if to any.

    Raises:
        ValueError: A source or a row is wrong, or nothing is left to train on or to validate on.
    """
    if data.stream:
        data.prepare_data()
        data.setup()
        assert data.streamed is not None
        data.streamed.head(data.row_length)
        return
    data.document_filters.read()
    sources = [*data.sources, *(data.validation or ())]
    if sum(len(source.open()) for source in sources) <= ALL_ROWS:
        data.prepare_data()
        data.setup()
        return
    encoder = data.make_encoder()
    for source in sources:
        check_first_rows(source, encoder)


def planned_steps(trainer: Trainer, data: PackedDataModule) -> float:
    """Optimizer steps of a stage; infinity where they are not known, as of streams and of rounds to be sampled.

    Args:
        trainer: The stage's.
        data: Its data module, after :func:`check_data`.
    """
    if data.stream or isinstance(data, RoundDataModule) or data.train_mixture is None:
        return math.inf
    loader: Any = data.train_dataloader()
    batches = math.ceil(len(loader) / trainer.world_size)
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
    return epochs * math.ceil(batches / trainer.accumulate_grad_batches)


def check_first_rows(source: Source, encoder: Encoder) -> None:
    """Tokenize the first rows of a source, and keep nothing."""
    rows = source.open()
    for row in rows.take(np.asarray(source.choose(len(rows))[:FIRST_ROWS])):
        try:
            examples = source.examples(row, encoder.read)
            encoder.encode_samples(examples, [row.where] * len(examples))
        except ValueError:
            if source.on_bad_row == "error":
                raise


def check_prompts(pool: PromptPool, parts: Sequence[Any], coming: Collection[Path] = ()) -> list[Prompt]:
    """Check that samplers and judges can work on the first prompts, and return these.

    Args:
        pool: All prompts.
        parts: Samplers and judges.
        coming: Folders that will hold a model by then: judges of these are not checked.

    Raises:
        ValueError: A row is wrong, or a sampler or judge is not ready.
    """
    prompts = [asked.prompt for asked in pool.take(range(min(NUM_PROMPTS, len(pool))))]
    require_ready(_made(parts, coming), prompts)
    return prompts


def _made(parts: Sequence[Any], coming: Collection[Path]) -> list[Any]:
    """Samplers and judges without those whose model is still to be trained; of a WeightedJudge, its judges."""
    made: list[Any] = []
    for part in parts:
        if isinstance(part, WeightedJudge):
            made += _made(part.judges, coming)
        elif Path(getattr(part, "path", "")).absolute() not in coming:
            made.append(part)
    return made


def check_rounds(trainer: Trainer, module: Any, data: RoundDataModule, coming: Collection[Path] = ()) -> None:
    """Check that every round of a run has prompts, and that its sampler and judge are ready.

    Args:
        trainer: The stage's.
        module: The stage's.
        data: The stage's.
        coming: Folders that will hold a model by then.

    Raises:
        ValueError: Prompts run out, or a sampler or judge is not ready.
        MisconfigurationException: Trainer, module and data do not fit.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    trainer.datamodule = data  # type: ignore[attr-defined]  # as Lightning attaches it
    for callback in callbacks:
        if isinstance(callback, OnPolicySampling):
            require_on_policy(trainer, module)
            callback.schedule.require(trainer, data.pool)
            check_prompts(data.pool, [callback.sampler, callback.judge], coming)
