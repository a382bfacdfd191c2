"""Base classes of benchmark file formats."""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import override

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


class Format(ABC):
    """The file format of a benchmark. Answer files are named after the model.

    Attributes:
        id_keys: Possible keys of the question's id, in questions and answers.
        model_keys: Possible keys of the model's name, in answers.
    """

    id_keys: tuple[str, ...] = ("question_id",)
    model_keys: tuple[str, ...] = ("model_id",)

    @abstractmethod
    def rows(self, path: Path) -> Iterator[tuple[Row, str]]:
        """Read the rows of a question or answer file, each with its location for error messages.

        Raises:
            ValueError: The file is not of this format.
        """

    @abstractmethod
    def question(self, row: Row, where: str) -> Question:
        """Read a question from a row of the question file."""

    @abstractmethod
    def record(self, finished: AnsweredQuestion, model: str) -> dict[str, Any]:
        """Make a row of the answer file."""

    @abstractmethod
    def add(self, out: Path, finished: Sequence[AnsweredQuestion]) -> None:
        """Add answers to the file, which is created if needed; a kill at any time must not lose earlier ones.

        Raises:
            ValueError: The file cannot be written.
        """

    def questions(self, path: Path) -> list[Question]:
        """Read the questions.

        Raises:
            ValueError: A row is not a question of this benchmark, its id is missing or not unique, its prompt may not
                be used, or there are no rows.
        """
        found: dict[Hashable, Question] = {}
        for row, where in self.rows(path):
            question = self.question(row, where)
            if question.id in found:
                earlier = found[question.id].where
                raise ValueError(f"{where}: duplicate of {earlier} ({question.id!r}); remove one")
            require_prompt_kept(row, where)
            found[question.id] = question
        if not found:
            raise ValueError("the question file is empty; give the benchmark's question file")
        return list(found.values())

    def answered(self, out: Path) -> set[Hashable]:
        """Ids of the questions that are already answered in the file, which may not exist.

        Raises:
            ValueError: The file is not an answer file of this benchmark and model.
        """
        found: set[Hashable] = set()
        for row, where in self.rows(out) if out.exists() else ():
            model = next((row[key] for key in self.model_keys if key in row), None)
            if model != out.stem:
                raise ValueError(
                    f"{where}: an answer of model {model!r} in the file of model {out.stem!r}; give another file"
                )
            found.add(self.read_id(row, where))
        return found

    def read_id(self, row: Row, where: str) -> str | int:
        """Read the id of a question from a row of the question or answer file.

        Raises:
            ValueError: The row has no id.
        """
        found = next((row[key] for key in self.id_keys if row.get(key) is not None), None)
        if not isinstance(found, str | int) or found == "":
            raise ValueError(f"{where}: {' or '.join(self.id_keys)} is missing; each question needs an id")
        return found


class JSONLines(Format):
    """Base of formats with JSON lines, in one answer file per model."""

    @override
    def rows(self, path: Path) -> Iterator[tuple[Row, str]]:
        for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines would split within strings, too
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = parse_json(line)
            except BrokenJSONError as error:
                raise ValueError(f"{where}: broken JSON ({error}); each line must be an object") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a {type(row).__name__}; each line must be an object")
            yield row, where

    @override
    def answered(self, out: Path) -> set[Hashable]:
        content = out.read_bytes() if out.exists() else b""
        complete = content.rfind(b"\n") + 1
        if complete < len(content):  # the writer was killed
            logger.warning("%s: the last line is incomplete; it is removed, and its question is answered again", out)
            with explain_write_errors(out, "answers", "give another file in --out"):
                os.truncate(out, complete)
        return super().answered(out)

    @override
    def add(self, out: Path, finished: Sequence[AnsweredQuestion]) -> None:
        lines = [json.dumps(self.record(one, out.stem), ensure_ascii=False) + "\n" for one in finished]
        with explain_write_errors(out, "answers", "give another file in --out"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a", encoding="utf-8") as file:  # a kill leaves an incomplete last line at most
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())


def read_turns(turns: Any, where: str, text: Callable[[Any], Any] = lambda turn: turn) -> tuple[str, ...]:
    """Read the user turns of a question; ``text`` gets the text of a turn.

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
