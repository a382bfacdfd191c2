"""Our side: what a data module makes of the rows, in their order, through a module under Lightning's Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup
from typing_extensions import override

from benchmarks.oracle.comparison import Settings, Step
from benchmarks.oracle.rows import Prepared, grouped
from benchmarks.rounds import Rounds
from lion_lightning import (
    CachedReference,
    DPOModule,
    GroupDataModule,
    KTOModule,
    PolicyGradientModule,
    PreferenceDataModule,
    RewardModule,
    SFTDataModule,
    SFTModule,
    Source,
    TokenizerSpec,
    UnpairedDataModule,
)
from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.packing.collate import collate
from lion_lightning.losses import AnswerLoss, PolicyGradientLoss, PreferenceLoss, TokenLoss
from lion_lightning.modules.optimization.schedules import LinearWithWarmup
from lion_lightning.types import Sample


class Record(Callback):
    """Keeps what the module logs of each step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.steps):  # micro-batches that end no step log nothing new
            found = trainer.callback_metrics
            self.steps.append(Step(found["train/loss"].item(), found["train/grad_norm"].item()))


def sft(prepared: Prepared, settings: Settings, loss: TokenLoss | None = None, **data: Any) -> list[Step]:
    """Supervised fine-tuning.

    Args:
        prepared: Rows and models.
        settings: Settings of the training.
        loss: Loss per token.
        **data: Arguments of the data module.
    """
    module = SFTModule(str(prepared.model()), loss=loss, **_optimization(settings))
    return _train(module, _samples(prepared, "conversations", SFTDataModule, **data), settings)


def pairs(prepared: Prepared, settings: Settings, loss: PreferenceLoss) -> list[Step]:
    """Preference optimization.

    Args:
        prepared: Rows and models.
        settings: Settings of the training.
        loss: Loss per pair.
    """
    with tempfile.TemporaryDirectory() as cached:
        reference = CachedReference(cache_dir=cached) if loss.needs_reference else None
        module = DPOModule(str(prepared.model()), loss=deepcopy(loss), reference=reference, **_optimization(settings))
        return _train(module, _samples(prepared, "pairs", PreferenceDataModule), settings)


def labeled(prepared: Prepared, settings: Settings, loss: AnswerLoss, rotated: bool = False) -> list[Step]:
    """KTO and its like.

    Args:
        prepared: Rows and models.
        settings: Settings of the training.
        loss: Loss per answer.
        rotated: True to take mismatched answers from the same micro-batch, as TRL does.
    """
    samples = _samples(prepared, "labeled", UnpairedDataModule, mismatched=loss.needs_mismatched)
    if rotated:
        samples = [made for part in grouped(samples[: settings.rows], settings.micro_batch) for made in _rotated(part)]
    with tempfile.TemporaryDirectory() as cached:
        reference = CachedReference(cache_dir=cached)
        module = KTOModule(str(prepared.model()), loss=deepcopy(loss), reference=reference, **_optimization(settings))
        return _train(module, samples, settings)


def reward(prepared: Prepared, settings: Settings, **options: float) -> list[Step]:
    """A reward model.

    Args:
        prepared: Rows and models.
        settings: Settings of the training.
        **options: Arguments of the module.
    """
    module = RewardModule(str(prepared.model("reward")), **options, **_optimization(settings))
    return _train(module, _samples(prepared, "pairs", PreferenceDataModule), settings)


def groups(prepared: Prepared, settings: Settings, loss: PolicyGradientLoss) -> list[Step]:
    """A policy gradient on answers that are given.

    Args:
        prepared: Rows and models.
        settings: Settings of the training; a round is ``updates`` optimizer steps.
        loss: Loss per group.
    """
    samples = _samples(prepared, "groups", GroupDataModule, keep_equal=True)[: settings.rows]
    rounds = grouped(samples, settings.updates * settings.accumulate * settings.micro_batch)
    with tempfile.TemporaryDirectory() as cached:
        reference = CachedReference(cache_dir=cached) if loss.needs_reference else None
        options = {"reference": reference, "kl_batches": 0, **_optimization(settings)}
        module = PolicyGradientModule(str(prepared.model()), loss=deepcopy(loss), **options)
        data = Rounds(rounds, cached, partial(_loader, settings=settings))
        every = {"reload_dataloaders_every_n_epochs": 1}
        return _fit(module, data, settings, max_epochs=len(rounds), **every)


@cache
def _samples(prepared: Prepared, file: str, kind: Callable[..., PackedDataModule], **options: Any) -> list[Sample]:
    """The rows as samples of a data module, in their order."""
    with tempfile.TemporaryDirectory() as stores:
        tokenizer = TokenizerSpec(str(prepared.model()))
        data = kind([Source(str(prepared.file(file)))], tokenizer, cache_dir=stores, **options)
        data.prepare_data()
        data.setup()
        assert data.train_mixture is not None
        documents = data.train_mixture.documents
        return [documents[place] for place in range(len(documents))]


def _rotated(samples: list[Sample]) -> list[Sample]:
    """Each with the answer of the one before it as the mismatched one, the first with the last's."""
    answers = [sample.segments[1] for sample in samples]
    return [
        replace(sample, segments=(*sample.segments[:2], answer))
        for sample, answer in zip(samples, [answers[-1], *answers[:-1]], strict=True)
    ]


def _optimization(settings: Settings) -> dict[str, Any]:
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    made = partial(kinds[settings.optimizer], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    if settings.warmup is None:
        return {"optimizer": made}
    schedule: Any = partial(LinearWithWarmup, warmup=settings.warmup)
    if settings.their_schedule:
        rates = {"num_warmup_steps": settings.warmup, "num_training_steps": settings.steps}
        schedule = partial(get_linear_schedule_with_warmup, **rates)
    return {"optimizer": made, "lr_scheduler": schedule}


def _train(module: LightningModule, samples: list[Sample], settings: Settings) -> list[Step]:
    return _fit(module, _loader(samples[: settings.rows], settings), settings, max_epochs=1)


def _loader(samples: list[Sample], settings: Settings) -> Any:
    """A packed batch a micro-batch."""

    def together(parts: list[list[Sample]]) -> Any:
        return collate(parts[0], sum(len(piece.input_ids) for sample in parts[0] for piece in sample.segments))

    batches: Any = grouped(samples, settings.micro_batch)
    return DataLoader(batches, batch_size=1, collate_fn=together)


def _fit(module: LightningModule, data: Any, settings: Settings, **options: Any) -> list[Step]:
    record = Record()
    trainer = Trainer(
        accelerator="cpu",
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip or None,
        callbacks=[record],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, data)
    return record.steps
