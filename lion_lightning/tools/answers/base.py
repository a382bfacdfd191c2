"""What the formats of benchmarks have in common."""

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
    """What a benchmark asks.

    Attributes:
        id: What its answer is found again by.
        turns: What the user says, turn after turn; each is answered before the next one is said.
        row: The whole row that it was read from.
        where: Place of the row, ``path:line``; errors name it.
        temperature: That the benchmark's own tool has this question answered at; None if it leaves that open.
    """

    id: Hashable
    turns: tuple[str, ...]
    row: Row
    where: str
    temperature: float | None = None


class Finished(NamedTuple):
    """A question with its answers.

    Attributes:
        question: The question.
        answers: An answer to each of its turns.
    """

    question: Question
    answers: tuple[str, ...]


class Format(Protocol):
    """The files of a benchmark. The model's name in them is the answer file's own, without its ending."""

    def questions(self, path: Path) -> list[Question]:
        """Read the questions.

        Args:
            path: The benchmark's question file.

        Raises:
            ValueError: A row is no question of this benchmark, has no id or the id of another one.
        """

    def answered(self, out: Path) -> set[Hashable]:
        """Ids of the questions that have an answer already; none where there is no file.

        Args:
            out: The answer file.

        Raises:
            ValueError: It is not an answer file of this benchmark and model.
        """

    def add(self, out: Path, finished: Sequence[Finished]) -> None:
        """Write further answers, so that a kill at any time loses none that stand already.

        Args:
            out: The answer file; made if needed.
            finished: The answers.

        Raises:
            ValueError: It cannot be written.
        """


class JSONLines(ABC):
    """A benchmark whose questions and answers are rows of JSON lines, one file of answers a model.

    Attributes:
        id_keys: Names that the id of a question goes by, in questions and answers alike.
        model_keys: Names that the model goes by in an answer.
    """

    id_keys: tuple[str, ...] = ("question_id",)
    model_keys: tuple[str, ...] = ("model_id",)

    @abstractmethod
    def question(self, row: Row, where: str) -> Question:
        """The question of a row.

        Args:
            row: A row of the question file, with an id.
            where: Place of the row.
        """

    @abstractmethod
    def record(self, finished: Finished, model: str) -> dict[str, Any]:
        """The row of an answer.

        Args:
            finished: The question and its answers.
            model: Name of the model.
        """

    def questions(self, path: Path) -> list[Question]:
        """See :class:`Format`."""
        return unique(self.question(row, where) for row, where in _rows(path))

    def answered(self, out: Path) -> set[Hashable]:
        """See :class:`Format`. A last line that a killed run left unfinished is cut off."""
        if not out.exists():
            return set()
        _cut_torn_line(out)
        return {self._answered(row, out, where) for row, where in _rows(out)}

    def add(self, out: Path, finished: Sequence[Finished]) -> None:
        """See :class:`Format`; lines are appended and on the disk when this returns."""
        lines = [json.dumps(self.record(one, out.stem), ensure_ascii=False) + "\n" for one in finished]
        with explain_write_errors(out, "answers", "name another file in --out"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())

    def read_id(self, row: Row, where: str) -> str | int:
        """Id of a question.

        Args:
            row: A row of questions or answers.
            where: Its place.

        Raises:
            ValueError: There is none.
        """
        found = next((row[key] for key in self.id_keys if row.get(key) is not None), None)
        if not isinstance(found, str | int) or found == "":
            raise ValueError(f"{where}: no {' or '.join(self.id_keys)}; a question needs an id of its own")
        return found

    def _answered(self, row: Row, out: Path, where: str) -> str | int:
        model = next((row[key] for key in self.model_keys if key in row), None)
        require_same_model(model, out, where)
        return self.read_id(row, where)


def unique(questions: Iterable[Question]) -> list[Question]:
    """The questions, if no two have the same id.

    Raises:
        ValueError: Two have, one asks more than its text says, or there are no questions.
    """
    seen: dict[Hashable, str] = {}
    found = []
    for question in questions:
        if question.id in seen:
            raise ValueError(f"{question.where}: the same question as {seen[question.id]} ({question.id!r}); drop one")
        seen[question.id] = question.where
        require_prompt_kept(question.row, question.where)
        found.append(question)
    if not found:
        raise ValueError("the file of prompts is empty; name the benchmark's question file")
    return found


def require_same_model(model: Any, out: Path, where: str) -> None:
    """Refuse to mix two models' answers.

    Args:
        model: The name in the file.
        out: The file, whose name is the model's.
        where: Place of the row.

    Raises:
        ValueError: They differ.
    """
    if model != out.stem:
        raise ValueError(f"{where}: an answer of the model {model!r} in the file of {out.stem!r}; name another file")


def read_turns(turns: Any, where: str, text: Callable[[Any], Any] = lambda turn: turn) -> tuple[str, ...]:
    """Texts of a question's turns.

    Args:
        turns: What the row has for them.
        where: Its place.
        text: Gets the text out of a turn.

    Raises:
        ValueError: They are no list of texts.
    """
    good = isinstance(turns, list) and turns
    found = tuple(text(turn) for turn in turns) if good else ()
    if not found or not all(isinstance(turn, str) and turn.strip() for turn in found):
        raise ValueError(f"{where}: `turns` is no list of texts; is this the question file of another benchmark?")
    return found


def read_text(path: Path) -> str:
    """Text of a file.

    Raises:
        ValueError: It is not there, or no text.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or str(error)).lower()}; name the benchmark's file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file; name the benchmark's file") from error


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        where = f"{path}:{number}"
        if line.strip():
            yield _row(line, where), where


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except BrokenJSONError as error:
        raise ValueError(f"{where}: broken JSON ({error}); each line has to be one object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__} where an object is expected; each line has to be one")
    return row


def _cut_torn_line(out: Path) -> None:
    content = out.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logger.warning("%s ended in the middle of a line, which is cut off; its question is asked again", out)
        with explain_write_errors(out, "answers", "name another file in --out"):
            os.truncate(out, whole)
