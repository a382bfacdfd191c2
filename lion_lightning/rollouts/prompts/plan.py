"""Which prompts each round of a run asks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lion_lightning.data.formats.pairing import Pairing
from lion_lightning.data.on_policy import RoundDataModule
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.rollouts.rollout import Rollout

logger = logging.getLogger(__name__)


MAX_MONITOR_PROMPTS = 32
"""Monitor prompts of a run by default, unless that is more than a quarter of all prompts."""


class RoundPrompts(NamedTuple):
    """The prompts of each round of a run, as positions in the pool.

    Attributes:
        monitors: Prompts that every round answers and none trains on.
        others: All other prompts, in the order in which rounds take them.
        size: Prompts per round.
    """

    monitors: list[int]
    others: list[int]
    size: int

    @property
    def shares(self) -> list[int]:
        """Prompts per round and number of monitor prompts: these two decide which prompts each round takes."""
        return [self.size, len(self.monitors)]

    def warn_of_repeats(self, earlier: Sequence[int], number: int) -> None:
        """Warn if earlier rounds had other shares: then some of their prompts come again."""
        size, monitors = earlier
        if [size, monitors] != self.shares:
            logger.warning(
                "round %d: earlier rounds asked %d prompts each and set %d aside as monitor prompts, and now it is %d "
                "and %d, so that some prompts of earlier rounds come again; to go on with new prompts set "
                "prompts_per_round: %d and monitor_prompts: %d of OnPolicySampling",
                *(number, size, monitors, *self.shares, size, monitors),
            )

    def of_round(self, rounds_before: int, number: int) -> list[int]:
        """The prompts of a round, which no other round takes."""
        self.require(rounds_before, number)
        chosen = self.others[rounds_before * self.size : (rounds_before + 1) * self.size]
        if len(chosen) < self.size:
            logger.warning("round %d: only %d prompts are left of %d per round", number, len(chosen), self.size)
        return chosen

    def rollouts(self, pool: PromptPool, rounds_before: int, number: int, max_prompt_length: int) -> list[Rollout]:
        """Read the prompts of a round, then its monitor prompts; see :meth:`of_round`."""
        rollouts = []
        for prompt, group in pool.take(self.of_round(rounds_before, number)):
            too_long = len(prompt.input_ids) > max_prompt_length
            left_out = f"prompt longer than {max_prompt_length} tokens" if too_long else ""
            rollouts.append(Rollout(prompt, group=group, left_out=left_out))
        for prompt, group in pool.take(self.monitors):
            rollouts.append(Rollout(prompt, group=group, monitor=True))
        return rollouts

    def at_most(self, count: int) -> RoundPrompts:
        """Limit the prompts, and the monitor prompts, of a round, for a ``fast_dev_run`` with its few batches."""
        return self._replace(monitors=self.monitors[:count], size=min(self.size, count))

    def require(self, rounds_before: int, number: int) -> None:
        """Raise the error of :meth:`of_round` if no prompts are left."""
        if len(self.others) > rounds_before * self.size:
            return
        fix = "or data.prompts more sources, or a `fraction` above 1 to ask prompts again"
        if self.others:
            aside = f" ({len(self.monitors)} more are monitor prompts)" if self.monitors else ""
            reason = (
                f"{len(self.others)} prompts{aside} make {math.ceil(len(self.others) / self.size)} rounds of "
                f"{self.size}; lower trainer.max_epochs, give OnPolicySampling a smaller prompts_per_round, {fix}"
            )
        else:
            reason = f"all {len(self.monitors)} prompts are monitor prompts; lower monitor_prompts, {fix}"
        raise ValueError(f"no prompts left for round {number}: {reason}")


def share_out(
    pool: PromptPool, prompts_per_round: float | None, monitor_prompts: int | None, rounds: int | None, seed: int
) -> RoundPrompts:
    """Divide the prompts of a pool among the rounds of a run.

    Args:
        pool: The prompts.
        prompts_per_round: A number, or a share of all prompts if below 1; None to divide them evenly.
        monitor_prompts: Number of monitor prompts; None for :data:`MAX_MONITOR_PROMPTS`, or a quarter of few prompts.
        rounds: Rounds of the run; None if unknown.
        seed: Seed of their order.
    """
    if monitor_prompts is None:
        monitor_prompts = min(MAX_MONITOR_PROMPTS, len(pool) // 4)
    monitors, others = pool.split(monitor_prompts, seed)
    if prompts_per_round is None and rounds is None:
        raise MisconfigurationException(
            "OnPolicySampling: without trainer.max_epochs prompts cannot be shared out; set prompts_per_round"
        )
    if prompts_per_round is None:
        size = len(others) // (rounds or 1)
    else:
        size = int(prompts_per_round * len(others)) if prompts_per_round < 1 else int(prompts_per_round)
    return RoundPrompts(monitors, others, max(1, size))


def num_epochs(trainer: Trainer) -> int | None:
    """Epochs of a run; None if unknown."""
    return trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None


def last_epoch(trainer: Trainer) -> int:
    """The last epoch that a run will surely reach: 0 if a limit of steps or time may end it sooner."""
    callbacks: Sequence[Any] = trainer.callbacks  # type: ignore[attr-defined]
    may_end_sooner = trainer.max_steps >= 0 or any(isinstance(one, Timer | EarlyStopping) for one in callbacks)
    return 0 if may_end_sooner else (num_epochs(trainer) or 1) - 1


def on_policy_data(trainer: Trainer) -> RoundDataModule:
    """The trainer's data module."""
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, RoundDataModule):
        raise MisconfigurationException(
            f"OnPolicySampling: the data is {type(data).__name__}, which trains on answers from disk; use "
            "lion_lightning.OnPolicyDataModule, which takes each epoch's answers from this callback"
        )
    return data


def require_on_policy(trainer: Trainer, module: LightningModule) -> RoundDataModule:
    """Refuse a trainer, module or data module that on-policy sampling can't work with; the data module, if they fit."""
    data = on_policy_data(trainer)
    if trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
        raise MisconfigurationException(
            "OnPolicySampling: each epoch trains on new answers, so its loader has to be made anew; add the line "
            "`reload_dataloaders_every_n_epochs: 1` under `trainer:`"
        )
    if not hasattr(type(module), "policy_model"):
        raise MisconfigurationException(
            f"OnPolicySampling: {type(module).__name__} is not an AlignmentModule, so it has no policy to sample from; "
            "use OnlineDPOModule, or subclass one"
        )
    return data


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
