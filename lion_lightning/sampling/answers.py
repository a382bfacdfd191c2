"""Checks of what a sampler returns, which may be a user's class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lion_lightning.sampling.base import Sampler, vocabulary_size
from lion_lightning.types import Answer, Prompt

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


def sample_one_each(
    sampler: Sampler, prompts: Sequence[Prompt], seed: int, policy: RolloutPolicy | None
) -> list[Answer]:
    """Sample one answer per prompt."""
    given = list(sampler.sample(prompts, 1, seed))
    counts = sorted(set(map(len, given)))
    if len(given) != len(prompts) or counts not in ([], [1]):
        raise ValueError(
            f"{type(sampler).__name__}.sample() returned {len(given)} lists of {counts} answers for {len(prompts)} "
            "prompts and n=1; return one list with one answer per prompt"
        )
    return [to_answer(row[0], prompt.where, policy) for prompt, row in zip(prompts, given, strict=True)]


def to_answer(given: Any, where: str, policy: RolloutPolicy | None) -> Answer:
    """Convert what a sampler returned (a string, or an object with the attributes of an answer) to an answer.

    Args:
        given: What the sampler returned.
        where: Location of the prompt, for error messages.
        policy: The policy that was sampled from; None to drop token ids.

    Raises:
        ValueError: It has no text, or token ids outside of the policy's vocabulary.
    """
    text = given if isinstance(given, str) else getattr(given, "text", None)
    if not isinstance(text, str) or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"{where}: the sampler returned {str(given)[:60]!r}; return a string or an object with `text`")
    reason, ids = str(getattr(given, "finish_reason", "stop")), getattr(given, "token_ids", None)
    answer = Answer(text, reason, model=str(getattr(given, "model", "")))
    if ids is None or policy is None:
        return answer
    ids, vocabulary = tuple(map(int, ids)), vocabulary_size(policy)
    for token in ids:
        if not 0 <= token < vocabulary:
            raise ValueError(
                f"{where}: the sampler returned token id {token}, but the policy's vocabulary has {vocabulary} tokens; "
                "sample from the policy's own model, or leave `token_ids` out"
            )
    return answer._replace(token_ids=ids)
