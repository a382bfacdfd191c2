"""Answer the questions of a benchmark with a sampler."""

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
from lion_lightning.readiness import opened
from lion_lightning.sampling.answers import sample_one_each
from lion_lightning.sampling.base import Sampler, SamplingSettings
from lion_lightning.tools.answers.base import AnsweredQuestion, Format, Question
from lion_lightning.types import Prompt

logger = logging.getLogger(__name__)


class MultiTurnSampler:
    """Answers questions turn by turn; earlier answers are part of the prompt of the next turn.

    Args:
        sampler: The sampler.
        encoder: Renders and tokenizes prompts.
        temperature: Temperature of all answers; None for that of the question, if it has one, else the sampler's.
        seed: Seed for sampling.

    Attributes:
        truncated: Number of answers so far that reached the maximum length.
    """

    def __init__(self, sampler: Sampler, encoder: ChatEncoder, temperature: float | None = None, seed: int = 0) -> None:
        self.sampler, self.encoder, self.temperature, self.seed = sampler, encoder, temperature, seed
        self.truncated = 0

    def answer(self, questions: Sequence[Question], number: int) -> list[AnsweredQuestion]:
        """Answer all turns of some questions.

        Args:
            questions: The questions.
            number: A number for the random seed: the same seed and number give the same answers.
        """
        answers: list[list[str]] = [[] for _ in questions]
        for turn in range(max(len(question.turns) for question in questions)):
            groups: dict[float | None, list[int]] = {}  # a call of the sampler has one temperature
            for index, question in enumerate(questions):
                if turn < len(question.turns):
                    groups.setdefault(question.temperature, []).append(index)
            for temperature, group in groups.items():
                prompts = [self._prompt(questions[index], answers[index]) for index in group]
                with self._temperature(temperature):
                    texts = self._sample(prompts, number, turn, group[0])
                for index, text in zip(group, texts, strict=True):
                    answers[index].append(text)
        return [AnsweredQuestion(question, tuple(texts)) for question, texts in zip(questions, answers, strict=True)]

    def log_temperatures(self, questions: Sequence[Question]) -> None:
        """Log the temperatures of some questions where they replace the sampler's."""
        asked = {question.temperature if self.temperature is None else self.temperature for question in questions}
        wanted = sorted(temperature for temperature in asked if temperature is not None)
        if wanted and not _has_settings(self.sampler):
            name = type(self.sampler).__name__
            logger.warning("%s has no attribute `sampling`, so temperature %s cannot be set", name, wanted)
        elif wanted:
            logger.info("temperature %s, in place of the sampler's", ", ".join(f"{each:g}" for each in wanted))

    def _prompt(self, question: Question, answers: Sequence[str]) -> Prompt:
        messages = [Message("user", question.turns[0])]
        for answer, next_turn in zip(answers, question.turns[1:], strict=False):
            messages += [Message("assistant", answer), Message("user", next_turn)]
        try:
            text, ids = self.encoder.prompt(Conversation(tuple(messages), len(messages)))
        except ValueError as error:
            raise ValueError(f"{question.where}: {error}") from error
        # A judge or server sees the turns; the sampler of this process the text and its tokens.
        turns = tuple({"role": message.role, "content": message.content} for message in messages)
        return Prompt(text, tuple(ids), turns, question.row, None, question.where)

    def _sample(self, prompts: Sequence[Prompt], *draw: int) -> list[str]:
        seed = int(np.random.SeedSequence([self.seed, *draw]).generate_state(1)[0])
        answers = sample_one_each(self.sampler, prompts, seed, None)
        self.truncated += sum(answer.finish_reason == "length" for answer in answers)
        return [answer.text.strip() for answer in answers]

    @contextmanager
    def _temperature(self, default: float | None) -> Iterator[None]:
        wanted = default if self.temperature is None else self.temperature
        sampler: Any = self.sampler
        if wanted is None or not _has_settings(sampler):
            yield
            return
        before = sampler.sampling
        sampler.sampling = replace(before, temperature=wanted)
        try:
            yield
        finally:
            sampler.sampling = before


def _has_settings(sampler: Any) -> bool:
    """Return whether a sampler has an attribute ``sampling`` with ``SamplingSettings``, like those of this package."""
    return isinstance(getattr(sampler, "sampling", None), SamplingSettings)


def write_answers(
    form: Format, prompts: Path, out: Path, policy: RolloutPolicy, sampler: MultiTurnSampler, save_every: int = 64
) -> int:
    """Answer the questions of a benchmark that are not answered in its file yet.

    Args:
        form: The benchmark's format.
        prompts: The question file.
        out: The answer file, named after the model.
        policy: The model, for samplers that use it.
        sampler: Answers the questions.
        save_every: Number of questions that are answered and saved together.

    Returns:
        The number of new answers.

    Raises:
        ValueError: A file is invalid, a question does not fit the model, or ``save_every`` is below 1.
    """
    if save_every < 1:
        raise ValueError(f"save_every is {save_every}; give at least 1")
    questions, done = form.questions(prompts), form.answered(out)
    pending = [question for question in questions if question.id not in done]
    if len(pending) < len(questions):
        logger.info("%s has %d of %d answers; sampling the others", out, len(questions) - len(pending), len(questions))
    if not pending:
        return 0
    sampler.log_temperatures(pending)
    bar = tqdm(desc=f"answers of {out.stem}", total=len(pending), unit=" questions")
    with bar, opened(sampler.sampler, policy):
        for start in range(0, len(pending), save_every):
            chunk = pending[start : start + save_every]
            # Numbered by place in the file: a resumed run gives the same answers.
            form.add(out, sampler.answer(chunk, questions.index(chunk[0])))
            bar.update(len(chunk))
    if sampler.truncated:
        logger.warning("%d answers were truncated; raise the sampler's max_new_tokens", sampler.truncated)
    return len(pending)
