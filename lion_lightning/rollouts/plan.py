"""What a round asks, and what decides what comes of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lion_lightning.cache import hash_json
from lion_lightning.data.on_policy import OnPolicyDataModule
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.printing import without_secrets
from lion_lightning.rollouts.prompt_pool import Asked, PromptPool

logger = logging.getLogger(__name__)


def round_size(wanted: float | None, count: int, rounds: int | None) -> int:
    """Prompts of a round.

    Args:
        wanted: A number, or a share of all prompts if below 1; None to share them out.
        count: All prompts.
        rounds: Rounds of the run; None if it has no known number.

    Raises:
        MisconfigurationException: They cannot be shared out.
    """
    if wanted is not None:
        return max(1, int(wanted * count)) if wanted < 1 else int(wanted)
    if rounds is None:
        raise MisconfigurationException(
            "OnPolicySampling: without trainer.max_epochs prompts cannot be shared out; set prompts_per_round"
        )
    return max(1, count // rounds)


SHARES = ("prompts_per_round", "monitor_prompts")
"""Settings of the callback that decide which prompts a round asks."""

MONITORS = 32
"""Prompts that rounds are compared by, unless that is more than a quarter of all."""


class RoundPrompts(NamedTuple):
    """Which prompts each round of a run asks; positions in the pool.

    Attributes:
        monitors: What every round asks, and nothing is trained on.
        rest: All others, in the order in which they are asked.
        size: Prompts of a round.
    """

    monitors: list[int]
    rest: list[int]
    size: int

    @property
    def shares(self) -> list[int]:
        """How many prompts a round asks, and how many are set aside: these decide which ones each round asks."""
        return [self.size, len(self.monitors)]

    def warn_of_others(self, shares: Sequence[int], number: int) -> None:
        """Say so where the rounds before were shared out otherwise, so that they asked what is to be asked now.

        Args:
            shares: Theirs.
            number: The round's number.
        """
        size, monitors = shares
        if [size, monitors] != self.shares:
            logger.warning(
                "round %d: earlier rounds asked %d prompts each and set %d aside, and now it is %d and %d, so that "
                "prompts of earlier rounds are asked, or watched, again; set prompts_per_round: %d and "
                "monitor_prompts: %d of OnPolicySampling to go on with new ones",
                *(number, size, monitors, *self.shares, size, monitors),
            )

    def of_round(self, turn: int, number: int) -> list[int]:
        """The prompts of a round, which no other round asks.

        Args:
            turn: Rounds before this one.
            number: The round's own number, for messages.

        Raises:
            ValueError: None are left.
        """
        self.require(turn, number)
        chosen = self.rest[turn * self.size : (turn + 1) * self.size]
        if len(chosen) < self.size:
            logger.warning("round %d: only %d prompts are left of %d a round", number, len(chosen), self.size)
        return chosen

    def at_most(self, count: int) -> RoundPrompts:
        """Rounds of no more than so many prompts, and as many monitors, for a ``fast_dev_run``: it has few batches.

        Args:
            count: Prompts.
        """
        return self._replace(monitors=self.monitors[:count], size=min(self.size, count))

    def require(self, turn: int, number: int) -> None:
        """Refuse a round without prompts; see :meth:`of_round`."""
        if len(self.rest) <= turn * self.size:
            raise ValueError(f"no prompts left for round {number}: {self._cause()}")

    def _cause(self) -> str:
        more = "or data.prompts more sources, or a `fraction` above 1 to ask prompts again"
        if not self.rest:
            count = len(self.monitors)
            return f"monitor_prompts sets aside all {count} prompts there are; give OnPolicySampling fewer, {more}"
        aside = f" ({len(self.monitors)} more are set aside by monitor_prompts)" if self.monitors else ""
        return (
            f"{len(self.rest)} prompts{aside} make {-(-len(self.rest) // self.size)} rounds of {self.size}; lower "
            f"trainer.max_epochs, give OnPolicySampling a smaller prompts_per_round, {more}"
        )


def share_out(
    pool: PromptPool, wanted: float | None, monitors: int | None, rounds: int | None, seed: int
) -> RoundPrompts:
    """Share the prompts of a pool out over the rounds of a run.

    Args:
        pool: The prompts.
        wanted: Prompts of a round, see :func:`round_size`.
        monitors: Prompts to set aside; None for :data:`MONITORS`, or a quarter of all where they are few.
        rounds: Rounds of the run; None if it has no known number.
        seed: Of their order.
    """
    apart = min(MONITORS, len(pool) // 4) if monitors is None else monitors
    watched, rest = pool.split(apart, seed)
    return RoundPrompts(watched, rest, round_size(wanted, len(rest), rounds))


def epochs_of(trainer: Trainer) -> int | None:
    """Epochs of a run; None if it has no known number.

    Args:
        trainer: The trainer.
    """
    return trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None


def last_epoch(trainer: Trainer) -> int:
    """The last epoch that a run will come to, as far as that is known: steps or time may end it sooner.

    Args:
        trainer: The trainer.
    """
    callbacks: Sequence[Any] = trainer.callbacks  # type: ignore[attr-defined]
    sooner = trainer.max_steps >= 0 or any(isinstance(each, Timer | EarlyStopping) for each in callbacks)
    return 0 if sooner else (epochs_of(trainer) or 1) - 1


def refuse_nonsense(samples: int, prompts: float | None, original: float, monitors: int | None, chunk: int) -> None:
    """Check the arguments of ``OnPolicySampling``.

    Raises:
        ValueError: One makes no sense.
    """
    checks = (
        (samples >= 2, f"num_samples is {samples}; a pair needs 2 answers at least"),
        (prompts is None or prompts > 0, f"prompts_per_round is {prompts}; give a share below 1 or a number above 0"),
        (0 <= original <= 1, f"original_chosen is {original}; give a share of the prompts, 0 to 1"),
        (monitors is None or monitors >= 0, f"monitor_prompts is {monitors}; give 0 or more"),
        (chunk >= 1, f"chunk_size is {chunk}; give at least 1"),
    )
    for good, complaint in checks:
        if not good:
            raise ValueError(f"OnPolicySampling: {complaint}")


def what_decides(
    callback: Any, served: RolloutPolicy, data: OnPolicyDataModule, asked: Sequence[Asked]
) -> dict[str, Any]:
    """What decides what comes of a round, as plain data.

    Args:
        callback: The ``OnPolicySampling``.
        served: The policy.
        data: Where prompts come from.
        asked: The prompts.
    """
    own = settings_that_decide(callback)
    return own | {
        "policy": served.digest(),
        "prompts": hash_json([[a.prompt.text, a.prompt.input_ids, dict(a.prompt.row)] for a in asked]),
        "longest": data.max_prompt_length or data.max_length - 1,
    }


def settings_that_decide(callback: Any) -> dict[str, Any]:
    """What of the callback's own settings decides what comes of a round, as plain data.

    Args:
        callback: The ``OnPolicySampling``.
    """
    names = ("num_samples", "original_chosen", "keep_unfinished", "chunk_size", "seed")
    own = {
        "sampler": identity_of(callback.sampler),
        "judge": identity_of(callback.judge),
        "pairing": callback.pairing.identity(),
        "callback": type(callback).__qualname__,
        **{name: getattr(callback, name) for name in names},
    }
    plain: dict[str, Any] = json.loads(json.dumps(own, default=str))
    return plain


def identity_of(part: Any) -> Any:
    """What decides what a sampler or judge does: what it says itself, else its name. It is kept with the round."""
    if not hasattr(part, "identity"):
        return f"{type(part).__module__}.{type(part).__qualname__}"
    return without_secrets(part.identity())  # a verifier of the user's may hold a key


def on_policy_data(trainer: Trainer) -> OnPolicyDataModule:
    """The trainer's data module, which pulls its pairs.

    Raises:
        MisconfigurationException: It is of another kind.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, OnPolicyDataModule):
        raise MisconfigurationException(
            f"OnPolicySampling: the data is {type(data).__name__}, which trains on what lies on disk; use "
            "lion_lightning.OnPolicyDataModule, which pulls each epoch's pairs from this callback"
        )
    return data
