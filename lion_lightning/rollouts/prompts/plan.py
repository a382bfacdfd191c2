"""Which round each epoch of a run trains on, and which prompts a round asks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lion_lightning.rollouts.prompts.history import PromptHistory
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.rollouts.rollout import Rollout

logger = logging.getLogger(__name__)


MAX_MONITOR_PROMPTS = 32
"""Monitor prompts of a run by default, unless that is more than a quarter of all prompts."""


class PromptCandidates(NamedTuple):
    """Prompts that a round may ask.

    Attributes:
        prompts: Those to train on, in the order in which they are asked.
        monitors: Monitor prompts.
        size: Prompts that a round asks; dynamic sampling may ask more of them, and has more to ask.
        kept: Prompts that were not given to this round, since later ones need them; 0 if it has all that it may ask.
    """

    prompts: list[Rollout]
    monitors: list[Rollout]
    size: int
    kept: int = 0


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
        self._warn_if_few(chosen, number)
        return chosen

    def of_rest(self, rest: Sequence[int], number: int, most: float, later: int) -> tuple[list[int], int]:
        """The prompts that a round may ask, by what earlier rounds have left.

        Args:
            rest: What they have left, in order.
            number: Number of the round.
            most: At most so many times the prompts of a round.
            later: Number of later rounds, which are to have their prompts, too.

        Returns:
            The prompts, and how many others are kept for the later rounds.
        """
        if not rest:
            raise ValueError(self._nothing_left(number))
        # Later rounds get their prompts first; but a round asks its own number, as long as any are left.
        allowed = min(math.ceil(most * self.size), len(rest))
        count = min(allowed, max(len(rest) - later * self.size, self.size))
        if most == 1:  # with more, a warning comes once the round is made
            self._warn_if_few(rest[:count], number)
        return list(rest[:count]), allowed - count

    def _warn_if_few(self, chosen: Sequence[int], number: int) -> None:
        if len(chosen) < self.size:
            logger.warning("round %d: only %d prompts are left of %d per round", number, len(chosen), self.size)

    def candidates(
        self, pool: PromptPool, positions: Sequence[int], max_prompt_length: int, kept: int = 0
    ) -> PromptCandidates:
        """Read the prompts that a round may ask, in this order, and its monitor prompts."""
        prompts = []
        for prompt, group in pool.take(positions):
            too_long = len(prompt.input_ids) > max_prompt_length
            left_out = f"prompt longer than {max_prompt_length} tokens" if too_long else ""
            prompts.append(Rollout(prompt, group=group, left_out=left_out))
        monitors = [Rollout(prompt, group=group, monitor=True) for prompt, group in pool.take(self.monitors)]
        return PromptCandidates(prompts, monitors, self.size, kept)

    def at_most(self, count: int) -> RoundPrompts:
        """Limit the prompts, and the monitor prompts, of a round, for a ``fast_dev_run`` with its few batches."""
        return self._replace(monitors=self.monitors[:count], size=min(self.size, count))

    def require(self, rounds_before: int, number: int) -> None:
        """Raise the error of :meth:`of_round` if no prompts are left."""
        if len(self.others) <= rounds_before * self.size:
            raise ValueError(self._nothing_left(number))

    def _nothing_left(self, number: int) -> str:
        fix = "or data.prompts more sources, or a `fraction` above 1 to ask prompts again"
        if self.others:
            aside = f" ({len(self.monitors)} more are monitor prompts)" if self.monitors else ""
            reason = (
                f"{len(self.others)} prompts{aside} make {math.ceil(len(self.others) / self.size)} rounds of "
                f"{self.size}; lower trainer.max_epochs, give OnPolicySampling a smaller prompts_per_round, {fix}"
            )
        else:
            reason = f"all {len(self.monitors)} prompts are monitor prompts; lower monitor_prompts, {fix}"
        return f"no prompts left for round {number}: {reason}"


def share_out(
    pool: PromptPool,
    prompts_per_round: float | None,
    monitor_prompts: int | None,
    rounds: int | None,
    seed: int,
    most: float = 1.0,
) -> RoundPrompts:
    """Divide the prompts of a pool among the rounds of a run.

    Args:
        pool: The prompts.
        prompts_per_round: A number, or a share of all prompts if below 1; None to divide them evenly, so that each
            round may ask ``most`` times its prompts.
        monitor_prompts: Number of monitor prompts; None for :data:`MAX_MONITOR_PROMPTS`, or a quarter of few prompts.
        rounds: Rounds of the run; None if unknown.
        seed: Seed of their order.
        most: At most so many times its prompts are asked by a round.
    """
    if monitor_prompts is None:
        monitor_prompts = min(MAX_MONITOR_PROMPTS, len(pool) // 4)
    monitors, others = pool.split(monitor_prompts, seed)
    if prompts_per_round is None and rounds is None:
        raise MisconfigurationException(
            "OnPolicySampling: without trainer.max_epochs prompts cannot be shared out; set prompts_per_round"
        )
    if prompts_per_round is None:
        size = int(len(others) / ((rounds or 1) * most))  # each round may ask `most` times its prompts
    else:
        size = int(prompts_per_round * len(others)) if prompts_per_round < 1 else int(prompts_per_round)
    return RoundPrompts(monitors, others, max(1, size))


@dataclass(frozen=True)
class RoundSchedule:
    """Which round each epoch of a run trains on, and which prompts are shared out to it.

    Attributes:
        samples: True for an epoch that samples a new round; the first one always does.
        prompts_per_round: As ``OnPolicySampling`` is given it.
        monitor_prompts: The same.
        seed: Seed of the order of the prompts.
        most: At most so many times its prompts are asked by a round.
    """

    samples: Callable[[int], bool]
    prompts_per_round: float | None = None
    monitor_prompts: int | None = None
    seed: int = 0
    most: float = 1.0

    def round_of(self, epoch: int) -> int:
        """Number of the round that an epoch trains on: the epoch that it was sampled for."""
        return max(earlier for earlier in range(epoch + 1) if self._begins(earlier))

    def before(self, epoch: int) -> list[int]:
        """Numbers of the rounds that are sampled before an epoch."""
        return [earlier for earlier in range(epoch) if self._begins(earlier)]

    def _begins(self, epoch: int) -> bool:
        return epoch == 0 or self.samples(epoch)

    def prompts(self, trainer: Trainer, pool: PromptPool) -> RoundPrompts:
        """The prompts of all rounds of a run."""
        epochs = num_epochs(trainer)
        rounds = None if epochs is None else len(self.before(epochs))
        return share_out(pool, self.prompts_per_round, self.monitor_prompts, rounds, self.seed, self.most)

    def choose(
        self, trainer: Trainer, pool: PromptPool, prompts: RoundPrompts, number: int, history: PromptHistory | None
    ) -> tuple[list[int], int]:
        """Choose the prompts that a round may ask; see :meth:`RoundPrompts.of_rest`.

        Args:
            trainer: The trainer, which knows how many rounds come after.
            pool: The pool.
            prompts: The prompts of all rounds.
            number: Number of the round.
            history: What earlier rounds have asked; None for rounds that take their prompts one after the other.
        """
        if history is None:
            return prompts.of_round(len(self.before(number)), number), 0
        end = max(num_epochs(trainer) or 0, number + 1)
        later = len(self.before(end)) - len(self.before(number + 1))
        chosen, kept = prompts.of_rest(history.rest(prompts.others, pool), number, self.most, later)
        history.warn_of_unwanted(chosen[: prompts.size], pool, number)
        return chosen, kept

    def require(self, trainer: Trainer, pool: PromptPool) -> None:
        """Refuse a run that would reach a round without prompts.

        Of a run that a limit of steps or time may end sooner, only the first round is checked.

        Raises:
            ValueError: There are too few.
        """
        last = self.round_of(last_epoch(trainer))
        self.prompts(trainer, pool).require(len(self.before(last)), last)


def num_epochs(trainer: Trainer) -> int | None:
    """Epochs of a run; None if unknown."""
    return trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None


def last_epoch(trainer: Trainer) -> int:
    """The last epoch that a run will surely reach: 0 if a limit of steps or time may end it sooner."""
    callbacks: Sequence[Any] = trainer.callbacks  # type: ignore[attr-defined]
    may_end_sooner = trainer.max_steps >= 0 or any(isinstance(one, Timer | EarlyStopping) for one in callbacks)
    return 0 if may_end_sooner else (num_epochs(trainer) or 1) - 1
