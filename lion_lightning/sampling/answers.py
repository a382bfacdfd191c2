"""What samplers of any make give, as answers that can be judged, written down and trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lion_lightning.sampling.base import Sampler, vocabulary_size
from lion_lightning.types import Answer, Prompt

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


def one_each(sampler: Sampler, prompts: Sequence[Prompt], seed: int, policy: RolloutPolicy | None) -> list[Answer]:
    """One answer to each prompt.

    Args:
        sampler: What answers.
        prompts: What is asked.
        seed: Of the draw.
        policy: What is sampled from; None where tokens do not matter.

    Raises:
        ValueError: There are too few or too many, or one is none.
    """
    given = list(sampler.sample(prompts, 1, seed))
    if len(given) != len(prompts) or not all(len(row) == 1 for row in given):
        counts = sorted({len(row) for row in given})
        raise ValueError(
            f"{type(sampler).__name__} was asked for one answer to each of {len(prompts)} prompts, and gave "
            f"{len(given)} rows of {counts} answers; give a row of one answer to each"
        )
    return [as_answer(row[0], prompt.where, policy) for prompt, row in zip(prompts, given, strict=True)]


def as_answer(given: Any, where: str, policy: RolloutPolicy | None) -> Answer:
    """An answer, anything with its attributes, or a bare text.

    Args:
        given: What a sampler gave.
        where: The prompt, for messages.
        policy: What was sampled from; None to leave tokens out.

    Raises:
        ValueError: It has no text, or tokens that are none of the policy's.
    """
    text = given if isinstance(given, str) else getattr(given, "text", None)
    if not isinstance(text, str) or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"{where}: the sampler gave {str(given)[:60]!r}; an answer is a text, or has `text`")
    ids = getattr(given, "token_ids", None)
    checked = None if ids is None or policy is None else _ids(ids, where, vocabulary_size(policy))
    return Answer(text, str(getattr(given, "finish_reason", "stop")), checked)


def _ids(given: Any, where: str, vocabulary: int) -> tuple[int, ...]:
    ids = tuple(int(token) for token in given)
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise ValueError(
            f"{where}: the sampler gave the token {wrong}, and the policy has {vocabulary}; sample from the policy's "
            "own model, or leave `token_ids` out"
        )
    return ids
