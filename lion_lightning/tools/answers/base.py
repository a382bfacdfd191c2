"""Base classes of benchmark file formats."""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lion_lightning.cache import explain_write_errors
from lion_lightning.data.formats.unused_columns import require_prompt_kept
from lion_lightning.data.sources.json_text import BrokenJSONError, parse_json

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


class Question(NamedTuple):
    """A question of a benchmark.

    Attributes:
        id: Identifier, also of its answer.
        turns: User turns; each is answered before the next one is sent.
        row: The row of the question file.
        where: Location of the row (``path:line``), for error messages.
        temperature: The benchmark's sampling temperature for this question; None if it has none.
    """

    id: Hashable
    turns: tuple[str, ...]
    row: Row
    where: str
    temperature: float | None = None


class AnsweredQuestion(NamedTuple):
    """A question with one answer per turn."""

    question: Question
    answers: tuple[str, ...]


class Format(Protocol):
    """The file format of a benchmark. Answer files are named after the model."""

    def questions(self, path: Path) -> list[Question]:
        """Read the questions.

        Args:
            path: The benchmark's question file.

        Raises:
            ValueError: A row is not a question of this benchmark, or its id is missing or not unique.
        """

    def answered(self, out: Path) -> set[Hashable]:
        """Ids of the questions that are already answered.

        Args:
            out: The answer file; it may not exist.

        Raises:
            ValueError: The file is not an answer file of this benchmark and model.
        """

    def add(self, out: Path, finished: Sequence[AnsweredQuestion]) -> None:
        """Add answers to the file; a kill at any time must not lose earlier ones.

        Args:
            out: The answer file; created if needed.
            finished: The answered questions.

        Raises:
            ValueError: The file cannot be written.
        """


class JSONLines(ABC):
    """Base of formats with JSON lines, in one answer file per model.

    Attributes:
        id_keys: Possible keys of the question's id, in questions and answers.
        model_keys: Possible keys of the model's name, in answers.
    """

    id_keys: tuple[str, ...] = ("question_id",)
    model_keys: tuple[str, ...] = ("model_id",)

    @abstractmethod
    def question(self, row: Row, where: str) -> Question:
        """Read a question.

        Args:
            row: A row of the question file.
            where: Location of the row.
        """

    @abstractmethod
    def record(self, finished: AnsweredQuestion, model: str) -> dict[str, Any]:
        """Make a row of the answer file.

        Args:
            finished: The answered question.
            model: Name of the model.
        """

    def questions(self, path: Path) -> list[Question]:
        """Read the questions."""
        return unique(self.question(row, where) for row, where in _rows(path))

    def answered(self, out: Path) -> set[Hashable]:
        """Ids of the questions that are already answered; an incomplete last line is removed."""
        if not out.exists():
            return set()
        _remove_incomplete_line(out)
        return {self._answered(row, out, where) for row, where in _rows(out)}

    def add(self, out: Path, finished: Sequence[AnsweredQuestion]) -> None:
        """Append answers and flush them to disk."""
        lines = [json.dumps(self.record(one, out.stem), ensure_ascii=False) + "\n" for one in finished]
        with explain_write_errors(out, "answers", "give another file in --out"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())

    def read_id(self, row: Row, where: str) -> str | int:
        """Read the id of a question.

        Args:
            row: A row of the question or answer file.
            where: Location of the row.

        Raises:
            ValueError: The row has no id.
        """
        found = next((row[key] for key in self.id_keys if row.get(key) is not None), None)
        if not isinstance(found, str | int) or found == "":
            raise ValueError(f"{where}: {' or '.join(self.id_keys)} is missing; each question needs an id")
        return found

    def _answered(self, row: Row, out: Path, where: str) -> str | int:
        model = next((row[key] for key in self.model_keys if key in row), None)
        require_same_model(model, out, where)
        return self.read_id(row, where)


def unique(questions: Iterable[Question]) -> list[Question]:
    """Return the questions as a list.

    Raises:
        ValueError: Two questions have the same id, a row has a second prompt, or there are no questions.
    """
    seen: dict[Hashable, str] = {}
    found = []
    for question in questions:
        if question.id in seen:
            raise ValueError(f"{question.where}: duplicate of {seen[question.id]} ({question.id!r}); remove one")
        seen[question.id] = question.where
        require_prompt_kept(question.row, question.where)
        found.append(question)
    if not found:
        raise ValueError("the question file is empty; give the benchmark's question file")
    return found


def require_same_model(model: Any, out: Path, where: str) -> None:
    """Refuse a file with answers of another model.

    Args:
        model: Name of the model in the row.
        out: The answer file, named after the model.
        where: Location of the row.

    Raises:
        ValueError: The names differ.
    """
    if model != out.stem:
        raise ValueError(f"{where}: an answer of model {model!r} in the file of model {out.stem!r}; give another file")


def read_turns(turns: Any, where: str, text: Callable[[Any], Any] = lambda turn: turn) -> tuple[str, ...]:
    """Read the user turns of a question.

    Args:
        turns: The turns in the row.
        where: Location of the row.
        text: Gets the text of a turn.

    Raises:
        ValueError: The turns are not a list of non-empty texts.
    """
    found = tuple(text(turn) for turn in turns) if isinstance(turns, list) else ()
    if not found or not all(isinstance(turn, str) and turn.strip() for turn in found):
        raise ValueError(f"{where}: `turns` is not a list of strings; is this the question file of another benchmark?")
    return found


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        ValueError: The file cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or str(error)).lower()}; give the benchmark's file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file; give the benchmark's file") from error


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        where = f"{path}:{number}"
        if line.strip():
            yield _row(line, where), where


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except BrokenJSONError as error:
        raise ValueError(f"{where}: broken JSON ({error}); each line must be an object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__}; each line must be an object")
    return row


def _remove_incomplete_line(out: Path) -> None:
    content = out.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        logger.warning("%s: the last line is incomplete; it is removed, and its question is answered again", out)
        with explain_write_errors(out, "answers", "give another file in --out"):
            os.truncate(out, complete)
