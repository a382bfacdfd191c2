"""Checks of numbers, callbacks and precisions; errors name the key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lion_lightning.models.weights.dtensor import to_local
from lion_lightning.modules.checkpointing.settings import GROUP, Settings, optimizer_settings, plain
from lion_lightning.modules.trainer.batches import data_source

LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
}
"""Of a Trainer's numbers that Lightning lets pass, the least that means something."""

LEAST_OF_STEPS = {
    **dict.fromkeys(("dampening", "eps", "lr", "momentum", "weight_decay"), 0),
    **dict.fromkeys(("T_0", "T_max", "step_size", "total_iters", "total_steps"), 1),
}
"""The same of the arguments of torch's optimizers and schedules."""


def made(name: str, factory: Callable[[Any], Any], argument: Any) -> Any:
    """The product of a factory; errors name the key of the config, where torch names only the argument."""
    if not callable(factory):  # what a config gives a module whose argument has no type
        argument_name = name.rpartition(".")[2]
        kind = {"optimizer": "OptimizerCallable"}.get(argument_name, "LRSchedulerCallable")
        raise ValueError(
            f"{name} is a {type(factory).__name__} and no function: give the argument its type in your module "
            f"(`{argument_name}: {kind} | None = None`, from lightning.pytorch.cli), or leave it to **kwargs"
        )
    if isinstance(factory, partial):
        require_arguments(plain({name: factory.keywords}))
    try:
        return factory(argument)
    except (TypeError, ValueError) as error:
        said = str(error)
        raise ValueError(said if said.startswith(name.rpartition(".")[2]) else f"{name}: {said}") from error


def require_trainer_numbers(trainer: Trainer) -> None:
    """Refuse numbers that Lightning lets pass, and that turn gradients round or divide by zero."""
    for name, least in LEAST.items():
        value = getattr(trainer, name, None)
        if value is not None and not least <= value < math.inf:
            raise MisconfigurationException(f"trainer.{name} is {value}; give a number of at least {least}")
    if trainer.val_check_interval == 0:
        raise MisconfigurationException(
            "trainer.val_check_interval is 0; give a share of an epoch or a number of batches, or "
            "trainer.limit_val_batches: 0 for no validation"
        )


def require_finite_settings(settings: Settings) -> None:
    """Refuse NaN and infinity among a model's settings."""
    for name, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; give a finite number")


def require_optimizer_numbers(optimizer: Optimizer) -> None:
    """Refuse what torch's optimizers let pass: infinite rates and decays, some of them negative ones."""
    found = optimizer_settings([optimizer])
    require_arguments({name: value for name, value in found.items() if not name.startswith(GROUP)})


def require_arguments(settings: Settings) -> None:
    """Refuse arguments of an optimizer or a schedule that are not finite, or too small to make sense."""
    require_finite_settings(settings)
    for name, value in settings.items():
        least = LEAST_OF_STEPS.get(name.rpartition(".")[2], -math.inf)
        if isinstance(value, int | float) and value < least:
            raise ValueError(f"{name} is {value}; give a number of at least {least}")


def require_finite_loss(loss: float, trainer: Trainer) -> None:
    """Stop before a step whose loss is not a number, and say whether the weights were right until then.

    Under ``16-mixed`` the scaler leaves such steps out, and lowers its scale.
    """
    if math.isfinite(loss) or getattr(trainer.precision_plugin, "scaler", None) is not None:
        return
    parameters = trainer.lightning_module.parameters()
    finite = all(bool(to_local(parameter.detach()).isfinite().all()) for parameter in parameters)
    remedy = "a lower learning rate, a longer warmup, or trainer.gradient_clip_val: 1.0"
    if trainer.strategy.reduce_boolean_decision(finite):  # of all ranks: each may hold a part of the weights
        cause = f"which was not made: the weights, and the checkpoints so far, are of the step before. Try {remedy}"
    elif trainer.global_step:
        cause = (
            "because weights are NaN or infinite already: a step before had a gradient that was not finite. Go back to "
            f"a checkpoint of before, and try {remedy}"
        )
    else:
        cause = "because weights of the model are NaN or infinite before any step: load another one"
    raise ValueError(f"train/loss is {loss} in step {trainer.global_step + 1} (epoch {trainer.current_epoch}), {cause}")


def refuse_tuners(trainer: Trainer) -> None:
    """Refuse Lightning's tuners, which write what they find into attributes that these modules do not have."""
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, LearningRateFinder):
            raise MisconfigurationException(
                "LearningRateFinder sets an attribute `lr` of the module, and here the rate is an argument of the "
                "optimizer: take the callback out of trainer.callbacks, and set model.optimizer (init_args.lr)"
            )
        if isinstance(callback, BatchSizeFinder):
            raise MisconfigurationException(
                "BatchSizeFinder trains on trial batches and undoes that with its own checkpoint, which is not "
                "supported: take the callback out of trainer.callbacks, and set data.batch_size; `lion plan` estimates "
                "what fits"
            )


def require_monitored(trainer: Trainer, stage: str) -> None:
    """Refuse callbacks and schedules that wait for a metric that is not logged, once the others of its kind are."""
    known = sorted(name for name in trainer.callback_metrics if name.startswith(stage))
    for name, key in monitors(trainer):
        if key.startswith(stage) and key not in trainer.callback_metrics:
            raise MisconfigurationException(f"{name} monitors {key!r}, which nobody logs; there is {', '.join(known)}")


def require_validation(trainer: Trainer) -> None:
    """Refuse callbacks and schedules that wait for a metric of validation, where nothing validates."""
    loaders: Any = trainer.val_dataloaders  # None where none was asked for yet
    defined = data_source(trainer.fit_loop.epoch_loop.val_loop).is_defined() and trainer.limit_val_batches
    if defined and (loaders is None or loaders):
        return
    for name, key in monitors(trainer):
        if key.startswith("val/"):
            raise MisconfigurationException(
                f"{name} monitors {key!r}, and this run does not validate: give data.validation or "
                "data.validation_share (and no trainer.limit_val_batches: 0), or let it monitor train/loss"
            )


def require_same_batches(trainer: Trainer) -> None:
    """Refuse a loader that shuffles where the same batches are to be trained on in every epoch."""
    if getattr(trainer, "overfit_batches", 0) and getattr(trainer.train_dataloader, "shuffle", False):
        raise MisconfigurationException(
            "trainer.overfit_batches trains on the same batches in every epoch, and the loader shuffles; give a "
            "PackedLoader(shuffle=False), or a data module of lion_lightning, which knows of it"
        )


def monitors(trainer: Trainer) -> list[tuple[str, str]]:
    """Who monitors what, callbacks and schedules; but for those that are told to do without."""
    found: list[tuple[str, Any]] = [(type(one).__name__, one) for one in getattr(trainer, "callbacks", [])]
    for config in trainer.lr_scheduler_configs:
        found.append((f"lr_scheduler: {type(config.scheduler).__name__}", config))
    waiting = []
    for name, one in found:
        key = getattr(one, "monitor", None)
        if isinstance(key, str) and getattr(one, "strict", True):
            waiting.append((name, key))
    return waiting


def warn_of_slow_precision(trainer: Trainer) -> None:
    """Say so where bf16 is emulated: a product then takes several times what it takes in fp32."""
    precision, device = str(trainer.precision), trainer.strategy.root_device
    if precision.startswith("bf16") and not has_bf16(device):
        rank_zero_warn(
            f"trainer.precision: this {device.type.upper()} has no instructions for bf16, and {precision} is several "
            "times slower on it than fp32; set trainer.precision: 32-true"
        )


def has_bf16(device: torch.device) -> bool:
    """True if a device has bf16 matrix products in hardware, or where that is unknown."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: Mapping[str, Any] = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return known.get("architecture") != "x86_64" or bool(known.get("avx512_bf16") or known.get("amx_bf16"))
