"""What was sampled, as rollouts hold it: with tokens, and with the answers that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.tokenizer import end_of_turn_id
from lion_lightning.rollouts.rounds import Rollout, Round, round_path
from lion_lightning.sampling.answers import to_answer
from lion_lightning.types import Answer, Prompt


def answered(rollout: Rollout, answers: Sequence[Any], served: RolloutPolicy, original: bool) -> Rollout:
    """A rollout with its answers, each with tokens.

    Args:
        rollout: The prompt.
        answers: What a sampler gave: answers, anything with their attributes, or bare texts.
        served: The policy, whose tokenizer is for answers that came without tokens.
        original: Whether the row's own answer joins the sampled ones.

    Raises:
        ValueError: An answer is none, or has tokens that the policy has not.
    """
    made = [to_answer(answer, rollout.prompt.where, served) for answer in answers]
    own = rollout.prompt.original
    if original and own is not None:
        made.append(Answer(own, "original"))
    return replace(rollout, answers=tuple(_with_tokens(answer, rollout.prompt, served.tokenizer) for answer in made))


def first_answers(folder: Path, number: int) -> dict[bytes, Answer]:
    """The first round's answer to each monitor prompt, by the prompt's group; none for the first round itself.

    Args:
        folder: Folder of the rounds.
        number: The round that is being made.
    """
    first = round_path(folder, 0)
    if number == 0 or not first.exists():
        return {}
    return {rollout.group: rollout.answers[0] for rollout in Round(first).rollouts if rollout.monitor}


def beside_first(rollout: Rollout, first: dict[bytes, Answer]) -> Rollout:
    """A monitor prompt's rollout with the first round's answer behind its own; any other as it is."""
    before = first.get(rollout.group) if rollout.monitor else None
    return replace(rollout, answers=(*rollout.answers, before)) if before else rollout


def paired(
    rollout: Rollout,
    usable: Callable[[Answer], bool],
    make_pairs: Callable[[Prompt, Sequence[Answer], Sequence[float]], Sequence[tuple[int, int]]],
) -> Rollout:
    """A scored rollout with its pairs, or with the reason why there are none; nothing is made of monitor prompts.

    Args:
        rollout: With answers and scores.
        usable: Whether an answer may be in a pair.
        make_pairs: From prompt, usable answers and their scores to positions of chosen and rejected.
    """
    if rollout.monitor:
        return rollout
    places = [place for place, answer in enumerate(rollout.answers) if usable(answer)]
    if len(places) < 2:
        return replace(rollout, left_out="fewer than two answers that are whole and not empty")
    answers, scores = [rollout.answers[place] for place in places], [rollout.scores[place] for place in places]
    found = [(places[chosen], places[rejected]) for chosen, rejected in make_pairs(rollout.prompt, answers, scores)]
    return replace(rollout, pairs=tuple(found), left_out="" if found else "the pairing made no pair")


def _with_tokens(answer: Answer, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Answer:
    if answer.token_ids:
        return answer
    ids = tokenizer.encode(answer.text, add_special_tokens=False)
    end = end_of_turn_id(tokenizer) if prompt.messages else tokenizer.eos_token_id
    closed = end is not None and answer.finish_reason != "length"
    return answer._replace(token_ids=(*ids, *((end,) if closed else ())))
