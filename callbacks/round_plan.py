"""What a round asks, and what decides what comes of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lion_lightning.data.on_policy import OnPolicyDataModule

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


def round_part(positions: Sequence[int], size: int, turn: int, number: int) -> list[int]:
    """The prompts of a round, which no other round asks.

    Args:
        positions: All prompts, in the order in which they are asked.
        size: Prompts of a round.
        turn: Rounds before this one.
        number: The round's own number, for messages.

    Raises:
        ValueError: None are left.
    """
    chosen = list(positions[turn * size : (turn + 1) * size])
    if not chosen:
        raise ValueError(
            f"no prompts left for round {number}: {len(positions)} prompts make {len(positions) // size} rounds of "
            f"{size}; give OnPolicySampling a smaller prompts_per_round, or data.prompts more sources, or a `fraction` "
            "above 1 to ask prompts again"
        )
    if len(chosen) < size:
        logger.warning("round %d: only %d prompts are left of %d a round", number, len(chosen), size)
    return chosen


def refuse_nonsense(samples: int, prompts: float | None, original: float, monitors: int, chunk: int) -> None:
    """Check the arguments of ``OnPolicySampling``.

    Raises:
        ValueError: One makes no sense.
    """
    checks = (
        (samples >= 2, f"num_samples is {samples}; a pair needs 2 answers at least"),
        (prompts is None or prompts > 0, f"prompts_per_round is {prompts}; give a share below 1 or a number above 0"),
        (0 <= original <= 1, f"original_chosen is {original}; give a share of the prompts, 0 to 1"),
        (monitors >= 0, f"monitor_prompts is {monitors}; give 0 or more"),
        (chunk >= 1, f"chunk_size is {chunk}; give at least 1"),
    )
    for good, complaint in checks:
        if not good:
            raise ValueError(f"OnPolicySampling: {complaint}")


def identity_of(part: Any) -> Any:
    """What decides what a sampler or judge does: what it says itself, else its name."""
    return part.identity() if hasattr(part, "identity") else f"{type(part).__module__}.{type(part).__qualname__}"


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
