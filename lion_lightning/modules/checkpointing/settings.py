"""The settings that shape training, as plain values by dotted name: what checkpoints keep of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch.optim import Optimizer

from lion_lightning.cache import hash_json
from lion_lightning.distributed.same_settings import argument_names, flat
from lion_lightning.models.tokenizer import TokenizerSpec

Settings = dict[str, Any]
"""Plain values by dotted name."""

OF_THE_RUN = (
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "overfit_batches",
)
"""Settings of a Trainer that change the training."""

SHAPING = (EarlyStopping, GradientAccumulationScheduler, StochasticWeightAveraging, WeightAveraging)
"""Lightning's callbacks that shape training. Others say so by a method ``training_settings``."""

GROUP = "model.optimizer.group "
"""Begins the names of a further parameter group's arguments; the first one's have the optimizer's own."""

PLACES = ("cache_dir", "trust_remote_code", "verbose")
"""Arguments that decide where and whether, not what."""


def plain(parts: Mapping[str, Any]) -> Settings:
    """Settings of objects, by dotted name."""
    found: Settings = {}
    for part, owner in parts.items():
        for name, value in flat(part, owner):
            if name.rpartition(".")[2] not in PLACES:
                # As Python's own types, which checkpoints load: numpy's numbers and enumerations are of others.
                kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
                found[name] = value if kind is None else kind(value)
    return found


def run_settings(trainer: Trainer) -> Settings:
    """Those of the trainer, its callbacks and the seed.

    Args:
        trainer: Set up, and nothing restored yet: callbacks take old settings out of checkpoints.
    """
    own = {name: getattr(trainer, name) for name in OF_THE_RUN}
    shaping: dict[str, Any] = {}
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            own.pop("accumulate_grad_batches", None)  # it is the epoch's
        if hasattr(callback, "training_settings"):
            shaping[f"callbacks.{type(callback).__name__}"] = callback.training_settings()
        elif isinstance(callback, SHAPING):
            shaping[f"callbacks.{type(callback).__name__}"] = callback
    return plain({"trainer": own, **shaping, "seed_everything": os.environ.get("PL_GLOBAL_SEED")})


def tokenizer_settings(spec: TokenizerSpec) -> Settings:
    """Settings of a tokenizer: template and special tokens, long texts by name and digest."""
    tokenizer = spec.load()
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    texts = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    known = {name: part for name, part in texts.items() if name not in ("truncation", "padding")}
    template = f"{spec.chat_template or 'its own'}{f' with {spec.template_kwargs}' if spec.template_kwargs else ''}"
    return {
        "model.tokenizer.path": f"{spec.path} {_digest(json.dumps(known, sort_keys=True))}",
        "model.tokenizer.chat_template": f"{template} {_digest(str(tokenizer.chat_template))}",
        "model.tokenizer.eos_token": f"{tokenizer.eos_token} {_digest(str(tokenizer.special_tokens_map))}",
    }


def optimizer_settings(optimizers: Iterable[Optimizer]) -> Settings:
    """Arguments of optimizers, as their parameter groups have them; the rate is the schedule's peak."""
    found: Settings = {}
    for optimizer in optimizers:
        first, *others = (arguments(optimizer, group) for group in optimizer.param_groups)
        found |= plain({"model.optimizer": {"class_path": type(optimizer).__qualname__, **first}})
        for number, other in enumerate(others, start=1):
            found |= plain({f"{GROUP}{number}": other})
    return found


def arguments(optimizer: Optimizer, group: Mapping[str, Any]) -> Settings:
    """Of a parameter group, what is an argument of the optimizer's class, and not a state that some keep there."""
    names = argument_names(type(optimizer)) - {"params", "defaults"}
    own = {name: value for name, value in group.items() if name in names}
    return own | {"lr": group.get("initial_lr", group["lr"])} if "lr" in group else own


def schedule_settings(schedules: Iterable[Any], factory: Any) -> Settings:
    """Arguments of learning-rate schedules, as far as they or what made them keep them."""
    found = plain({"model.lr_scheduler": factory}) if isinstance(factory, partial) else {}
    for schedule in schedules:
        found |= plain({"model.lr_scheduler": schedule})
    left_out = ("model.lr_scheduler.optimizer", "model.lr_scheduler.last_epoch")
    return {name: value for name, value in found.items() if not name.startswith(left_out)}


def _digest(text: str) -> str:
    return hash_json(text)[:16]
