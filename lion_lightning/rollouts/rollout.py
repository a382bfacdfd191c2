"""A prompt with its sampled answers, their scores and what is trained of them, and the steps that add it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.tokenizer import end_of_turn_id
from lion_lightning.sampling.answers import to_answer
from lion_lightning.types import Answer, Prompt


@dataclass(frozen=True)
class Rollout:
    """A prompt with its answers, their scores, and which of them are trained on.

    Attributes:
        prompt: The prompt.
        answers: The answers; their ``token_ids`` are set.
        group: 16-byte hash of the prompt, which its pairs share.
        monitor: Marks a monitor prompt: every round answers it, and no answer is trained on. From the second round on,
            an answer of the first round follows the new ones.
        seed: Seed that the answers were sampled with.
        num_added: Answers at the end that this round did not sample: the row's own, or that of the first round.
        scores: Score of each answer, after reward shaping: what is trained.
        by_judge: Score of each answer by each judge, where several were combined, and what each shaping added.
        right: Whether each answer is right; empty where no verifier says so.
        final_answers: What each answer comes to, for a majority to be counted; empty where none is counted.
        usable: Positions of the answers that may be trained on, ascending; none for a monitor prompt.
        pairs: Positions of chosen and rejected answer, a tuple per pair; none in a round for groups.
        left_out: Why nothing of it is trained on, in a few words, even if it has pairs or usable answers; empty if
            something is.
    """

    prompt: Prompt
    answers: tuple[Answer, ...] = ()
    group: bytes = bytes(16)
    monitor: bool = False
    seed: int = 0
    num_added: int = 0
    scores: tuple[float, ...] = ()
    by_judge: Mapping[str, Sequence[float]] = field(default_factory=dict)
    right: tuple[bool, ...] = ()
    final_answers: tuple[str, ...] = ()
    usable: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    left_out: str = ""

    @property
    def num_sampled(self) -> int:
        """Number of answers that this round sampled: the first ones."""
        return len(self.answers) - self.num_added

    @property
    def sampled(self) -> tuple[Answer, ...]:
        """The answers that this round sampled."""
        return self.answers[: self.num_sampled]

    @property
    def sampled_scores(self) -> tuple[float, ...]:
        """Their scores; empty before they are judged."""
        return self.scores[: self.num_sampled]

    @property
    def sampled_right(self) -> tuple[bool, ...]:
        """Whether they are right; empty where no verifier says so."""
        return self.right[: self.num_sampled]


def with_answers(rollout: Rollout, answers: Sequence[Any], policy: RolloutPolicy, add_original: bool) -> Rollout:
    """Add the answers to a rollout, each with tokens.

    Args:
        rollout: The prompt.
        answers: From a sampler: answers, objects with their attributes, or texts.
        policy: The policy, whose tokenizer encodes answers without tokens.
        add_original: Add the row's own answer after the sampled ones.

    Raises:
        ValueError: An answer has no text, or tokens outside the policy's vocabulary.
    """
    prompt, tokenizer = rollout.prompt, policy.tokenizer
    found = [to_answer(answer, prompt.where, policy) for answer in answers]
    num_added = int(add_original and prompt.original is not None)
    if num_added:
        found.append(Answer(str(prompt.original), "original"))
    for number, answer in enumerate(found):
        if not answer.token_ids:
            ids = tokenizer.encode(answer.text, add_special_tokens=False)
            end = end_of_turn_id(tokenizer) if prompt.messages else tokenizer.eos_token_id
            if end is not None and answer.finish_reason != "length":  # an answer that was cut off has no end to learn
                ids = [*ids, end]
            found[number] = answer._replace(token_ids=tuple(ids))
    return replace(rollout, answers=tuple(found), num_added=num_added)


def with_first_answer(rollout: Rollout, first: Mapping[bytes, Answer]) -> Rollout:
    """Add the first round's answer to a monitor prompt, after the new ones; other rollouts stay as they are."""
    if not rollout.monitor or rollout.group not in first:
        return rollout
    return replace(rollout, answers=(*rollout.answers, first[rollout.group]), num_added=1)


def with_usable(rollout: Rollout, usable: Callable[[Answer], bool]) -> Rollout:
    """Add which answers may be trained on, or the reason why too few may; monitor prompts get neither.

    Args:
        rollout: With answers.
        usable: True for answers that may be trained on.
    """
    if rollout.monitor:
        return rollout
    positions = tuple(position for position, answer in enumerate(rollout.answers) if usable(answer))
    reason = "" if len(positions) > 1 else "fewer than two answers that are complete and not empty"
    return replace(rollout, usable=positions, left_out=reason)


def with_pairs(
    rollout: Rollout,
    make_pairs: Callable[[Prompt, Sequence[Answer], Sequence[float]], Sequence[tuple[int, int]]],
) -> Rollout:
    """Add the pairs among two or more usable answers, or say that there are none.

    Args:
        rollout: With scores, see :func:`with_usable`.
        make_pairs: From prompt, usable answers and their scores to positions of chosen and rejected.
    """
    if len(rollout.usable) < 2:
        return rollout
    answers = [rollout.answers[position] for position in rollout.usable]
    scores = [rollout.scores[position] for position in rollout.usable]
    pairs = make_pairs(rollout.prompt, answers, scores)
    found = tuple((rollout.usable[chosen], rollout.usable[rejected]) for chosen, rejected in pairs)
    return replace(rollout, pairs=found, left_out="" if found else "the pairing made no pair")


def has_spread(rollout: Rollout) -> bool:
    """True if something can be learned from a prompt: two answers of a pair, or of its group, differ in score.

    Args:
        rollout: With scores and usable answers, and with pairs if the round is for pairs.
    """
    if rollout.left_out:
        return False
    compared = rollout.pairs or (rollout.usable,)  # without pairs: all of the group
    return any(len({rollout.scores[place] for place in places}) > 1 for places in compared)
