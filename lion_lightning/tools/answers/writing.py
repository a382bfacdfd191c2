"""From a question file to an answer file, by any sampler."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.sft import Conversation
from lion_lightning.data.formats.turns import Message
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.sampling.answers import sample_one_each
from lion_lightning.sampling.base import Sampler, SamplingSettings, SyncedSampler
from lion_lightning.tools.answers.base import Finished, Format, Question
from lion_lightning.types import Prompt

logger = logging.getLogger(__name__)


class Asking:
    """Has questions answered, turn after turn; an answer is part of what the next turn is asked with.

    Args:
        sampler: What answers.
        encoder: The model's chat template.
        temperature: Of every answer; None for what the benchmark says of each question, and for the sampler's own
            where it says nothing.
        seed: Of the draws.

    Attributes:
        cut_off: Answers so far that ran into the limit of their length.
    """

    def __init__(self, sampler: Sampler, encoder: ChatEncoder, temperature: float | None = None, seed: int = 0) -> None:
        self.sampler, self.encoder, self.temperature, self.seed = sampler, encoder, temperature, seed
        self.cut_off = 0

    def answer(self, questions: Sequence[Question], number: int) -> list[Finished]:
        """Answers to all turns of the questions, in their order.

        Args:
            questions: What is asked at once.
            number: Of this call: the same seed and number give the same draws.
        """
        answers: list[list[str]] = [[] for _ in questions]
        for turn in range(max(len(question.turns) for question in questions)):
            for places in _alike(questions, turn):
                prompts = [self._prompt(questions[place], answers[place]) for place in places]
                with self._temperature(questions[places[0]].temperature):
                    texts = self._sample(prompts, number, turn, places[0])
                for place, text in zip(places, texts, strict=True):
                    answers[place].append(text)
        return [Finished(question, tuple(said)) for question, said in zip(questions, answers, strict=True)]

    def temperatures(self, questions: Sequence[Question]) -> set[float]:
        """Temperatures that are asked for, other than the sampler's own.

        Args:
            questions: What will be asked.
        """
        asked = {question.temperature if self.temperature is None else self.temperature for question in questions}
        return {temperature for temperature in asked if temperature is not None}

    def _prompt(self, question: Question, answers: Sequence[str]) -> Prompt:
        said = [Message("user", question.turns[0])]
        for answer, next_turn in zip(answers, question.turns[1:], strict=False):
            said += [Message("assistant", answer), Message("user", next_turn)]
        try:
            text, ids = self.encoder.prompt(Conversation(tuple(said), len(said)))
        except ValueError as error:
            raise ValueError(f"{question.where}: {error}") from error
        turns = tuple({"role": message.role, "content": message.content} for message in said)
        return Prompt(text, tuple(ids), turns, question.row, None, question.where)

    def _sample(self, prompts: Sequence[Prompt], *draw: int) -> list[str]:
        seed = int(np.random.SeedSequence([self.seed, *draw]).generate_state(1)[0])
        answers = sample_one_each(self.sampler, prompts, seed, None)
        self.cut_off += sum(answer.finish_reason == "length" for answer in answers)
        return [answer.text.strip() for answer in answers]

    @contextmanager
    def _temperature(self, usual: float | None) -> Iterator[None]:
        wanted = usual if self.temperature is None else self.temperature
        sampler: Any = self.sampler
        if wanted is None or not follows_settings(sampler):
            yield
            return
        before = sampler.sampling
        sampler.sampling = replace(before, temperature=wanted)
        try:
            yield
        finally:
            sampler.sampling = before


def follows_settings(sampler: Any) -> bool:
    """Whether a sampler draws by ``SamplingSettings`` in its attribute ``sampling``, as those of this package do.

    Args:
        sampler: The sampler.
    """
    return isinstance(getattr(sampler, "sampling", None), SamplingSettings)


def write_answers(
    form: Format, prompts: Path, out: Path, policy: RolloutPolicy, asking: Asking, save_every: int = 64
) -> int:
    """Answer a benchmark's questions; what is in the answer file already is not asked again.

    Args:
        form: The benchmark's format.
        prompts: Its question file.
        out: Its answer file, named after the model.
        policy: What a sampler that follows a policy generates from.
        asking: How questions are asked.
        save_every: Questions that are asked at once, and are lost together if the run is killed.

    Returns:
        How many questions were asked.

    Raises:
        ValueError: A file is wrong, a question does not fit the model, or ``save_every`` is below 1.
    """
    if save_every < 1:
        raise ValueError(f"save_every is {save_every}; give at least 1")
    questions, done = form.questions(prompts), form.answered(out)
    pending = [question for question in questions if question.id not in done]
    if len(pending) < len(questions):
        logger.info("%s holds %d of %d answers; the others follow", out, len(questions) - len(pending), len(questions))
    if not pending:
        return 0
    _tell_temperatures(asking, pending)
    with tqdm(desc=f"answers of {out.stem}", total=len(pending), unit=" questions") as bar:
        for chunk in _chunks(asking.sampler, policy, pending, save_every):
            form.add(out, asking.answer(chunk, questions.index(chunk[0])))
            bar.update(len(chunk))
    if asking.cut_off:
        logger.warning("%d answers were cut off; raise the sampler's max_new_tokens", asking.cut_off)
    return len(pending)


def _chunks(sampler: Any, policy: RolloutPolicy, pending: list[Question], size: int) -> Iterator[list[Question]]:
    """Chunks of questions, while the sampler is open."""
    follows = isinstance(sampler, SyncedSampler)
    if follows:
        sampler.open(policy)
    try:
        yield from (pending[start : start + size] for start in range(0, len(pending), size))
    finally:
        if follows:
            sampler.close()


def _alike(questions: Sequence[Question], turn: int) -> list[list[int]]:
    """Places of the questions that have such a turn, those of one temperature together."""
    groups: dict[float | None, list[int]] = {}
    for place, question in enumerate(questions):
        if turn < len(question.turns):
            groups.setdefault(question.temperature, []).append(place)
    return list(groups.values())


def _tell_temperatures(asking: Asking, questions: Sequence[Question]) -> None:
    asked = sorted(asking.temperatures(questions))
    if asked and not follows_settings(asking.sampler):
        name = type(asking.sampler).__name__
        logger.warning("%s has no `sampling` settings, so temperature %s is left to it", name, asked)
    elif asked:
        logger.info("temperature %s, in place of the sampler's own", ", ".join(f"{each:g}" for each in asked))
