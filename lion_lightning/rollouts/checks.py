"""Checks of the trainer, module, data and arguments of on-policy sampling."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from lion_lightning.data.formats.pairing import Pairing
from lion_lightning.data.on_policy import RoundDataModule
from lion_lightning.distributed.replicas import tensor_parallel_size
from lion_lightning.judges.base import Judge
from lion_lightning.models.generation.trained import builds_early, find_policy
from lion_lightning.rollouts.prompts.curriculum import Curriculum
from lion_lightning.rollouts.rewards.shaping import RewardShaping
from lion_lightning.sampling.base import ChecksDistribution, Sampler
from lion_lightning.sampling.pool.pooled import PooledSampler

logger = logging.getLogger(__name__)


def on_policy_data(trainer: Trainer) -> RoundDataModule:
    """The trainer's data module."""
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, RoundDataModule):
        raise MisconfigurationException(
            f"OnPolicySampling: the data is {type(data).__name__}, which trains on answers from disk; use "
            "lion_lightning.OnPolicyDataModule (of groups: OnPolicyGroupDataModule), which takes each epoch's answers "
            "from this callback"
        )
    return data


def require_on_policy(trainer: Trainer, module: LightningModule) -> RoundDataModule:
    """Refuse a trainer, module or data module that on-policy sampling can't work with; the data module, if they fit."""
    if tensor_parallel_size(trainer.strategy) > 1:  # such ranks share a layer, and so run the same rows
        raise MisconfigurationException(
            "OnPolicySampling: each rank samples answers of its own, which ranks that share layers cannot; leave "
            "tensor_parallel_size at 1"
        )
    data = on_policy_data(trainer)
    if trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
        raise MisconfigurationException(
            "OnPolicySampling: each epoch trains on new answers, so its loader has to be made anew; add the line "
            "`reload_dataloaders_every_n_epochs: 1` under `trainer:`"
        )
    if builds_early(module):
        find_policy(module, "OnPolicySampling")
    return data


def require_own_answers(module: Any, sampler: Sampler, original_chosen: float) -> None:
    """Refuse answers that the policy has not drawn from its own distribution, for a module that trains on its tokens.

    Raises:
        ValueError: A setting of sampler or callback changes the distribution, or adds answers of others.
    """
    if not getattr(module, "own_answers", False):
        return
    name = type(module).__name__
    if original_chosen:
        raise ValueError(
            f"OnPolicySampling: original_chosen is {original_chosen}, and {name} trains on answers that the policy has "
            "drawn itself; leave it out"
        )
    if isinstance(sampler, ChecksDistribution):
        sampler.check_distribution()


def refuse_pairs(data: RoundDataModule, pairing: Pairing | None, own: bool) -> None:
    """Refuse what makes pairs, for data that trains on groups.

    Args:
        data: The data.
        pairing: Argument of ``OnPolicySampling``.
        own: Whether a subclass makes pairs itself.
    """
    if own or pairing is not None:
        raise MisconfigurationException(
            f"{type(data).__name__} trains on all usable answers to a prompt, so no pairs are made: remove "
            f"{'make_pairs' if own else 'pairing'} of OnPolicySampling, or use lion_lightning.OnPolicyDataModule"
        )


def check_arguments(
    num_samples: int,
    prompts_per_round: float | None,
    original_chosen: float,
    monitor_prompts: int | None,
    chunk_size: int,
) -> None:
    """Check the numbers that ``OnPolicySampling`` is given."""
    checks = (
        (num_samples >= 2, f"num_samples is {num_samples}; give at least 2 answers to compare"),
        (
            prompts_per_round is None or prompts_per_round > 0,
            f"prompts_per_round is {prompts_per_round}; give a share below 1 or a number above 0",
        ),
        (0 <= original_chosen <= 1, f"original_chosen is {original_chosen}; give a share of the prompts, 0 to 1"),
        (monitor_prompts is None or monitor_prompts >= 0, f"monitor_prompts is {monitor_prompts}; give 0 or more"),
        (chunk_size >= 1, f"chunk_size is {chunk_size}; give at least 1"),
    )
    for good, message in checks:
        if not good:
            raise ValueError(f"OnPolicySampling: {message}")


def check_rewards(shaping: Sequence[RewardShaping], monitor_samples: int, monitor_prompts: int | None) -> None:
    """Check what ``OnPolicySampling`` is given for its rewards and monitor prompts."""
    names = [type(one).__name__ for one in shaping]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"OnPolicySampling: shaping has {names.count(name)} of {name}; give one, or subclass it")
    if monitor_samples < 1:
        raise ValueError(f"OnPolicySampling: monitor_samples is {monitor_samples}; give at least 1")
    if monitor_samples > 1 and monitor_prompts == 0:
        asked = f"monitor_samples is {monitor_samples}, and monitor_prompts 0"
        raise ValueError(f"OnPolicySampling: {asked}; give some prompts, or leave monitor_samples out")


def check_pool(sampler: Sampler, num_samples: int, monitor_prompts: int | None, monitor_samples: int) -> None:
    """Check the numbers that ``OnPolicySampling`` is given against a pool of samplers."""
    if isinstance(sampler, PooledSampler):
        sampler.check_numbers(num_samples, monitor_prompts, monitor_samples)


def check_curriculum(curriculum: Curriculum | None, judge: Judge) -> None:
    """Refuse a curriculum that measures nothing in the rounds of a judge."""
    if curriculum is not None and (problem := curriculum.misfit(judge)):
        raise ValueError(f"OnPolicySampling.curriculum: {type(curriculum).__name__}: {problem}")


def warn_of_long_groups(data: RoundDataModule, sampler: Sampler, num_samples: int) -> None:
    """Warn if the longest answers that a sampler may give would be more than a row of the data holds."""
    limit = getattr(getattr(sampler, "sampling", None), "max_new_tokens", None)
    longest = num_samples * min(limit or 0, data.max_length - 1)
    if longest > data.row_length:
        logger.warning(
            "%d answers of up to %d tokens (max_new_tokens) may have %d, and a prompt with all of its answers has to "
            "fit a row: data.row_length is %d, and a round with a longer group ends the run with an error; raise it, "
            "or lower num_samples or max_new_tokens",
            *(num_samples, limit, longest, data.row_length),
        )


def warn_of_misfits(shaping: Sequence[RewardShaping], sampler: Sampler, keep_unfinished: bool) -> None:
    """Warn of shapings that do not fit the sampler's limit or the rule for answers that were cut off."""
    limit = getattr(getattr(sampler, "sampling", None), "max_new_tokens", None)
    for one in shaping:
        if misfit := one.misfit(limit, keep_unfinished):
            logger.warning("%s: %s", type(one).__name__, misfit)
