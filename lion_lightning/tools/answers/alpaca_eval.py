"""AlpacaEval 2 (https://github.com/tatsu-lab/alpaca_eval), a JSON list of single turns."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.data.sources.json_text import BrokenJSONError, parse_json
from lion_lightning.tools.answers.base import AnsweredQuestion, Question, read_text, require_same_model, unique


class AlpacaEval:
    """Reads ``alpaca_eval.json`` (rows with ``instruction`` and ``dataset``) and writes a file for ``--model_outputs``.

    The instruction is the question's id, by which the tool matches answers. The tool prescribes no temperature.
    """

    def questions(self, path: Path) -> list[Question]:
        """Read the questions."""
        rows = _rows(path)
        return unique(
            Question(_instruction(row, where), (_instruction(row, where),), row, where) for row, where in rows
        )

    def answered(self, out: Path) -> set[Hashable]:
        """Ids of the questions that are already answered."""
        if not out.exists():
            return set()
        rows = _rows(out)
        for row, where in rows:
            require_same_model(row.get("generator"), out, where)
        return {_instruction(row, where) for row, where in rows}

    def add(self, out: Path, finished: Sequence[AnsweredQuestion]) -> None:
        """Add answers; the file is replaced atomically."""
        rows = [row for row, _ in _rows(out)] if out.exists() else []
        rows += [_record(one, out.stem) for one in finished]
        with explain_write_errors(out, "answers", "give another file in --out"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(out) as temporary, temporary.open("w", encoding="utf-8") as file:
                json.dump(rows, file, indent=2, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())


def _record(finished: AnsweredQuestion, model: str) -> dict[str, Any]:
    row, answer = finished.question.row, finished.answers[0]
    named = {"instruction": finished.question.id, "output": answer, "generator": model}
    return named | ({"dataset": row["dataset"]} if "dataset" in row else {})


def _rows(path: Path) -> list[tuple[dict[str, Any], str]]:
    try:
        rows = parse_json(read_text(path))
    except BrokenJSONError as error:
        raise ValueError(
            f"{path}:{error.line + 1}: broken JSON ({error}); AlpacaEval's files are JSON lists"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: not a list of objects, as AlpacaEval's files are")
    return [(row, f"{path}[{number}]") for number, row in enumerate(rows)]


def _instruction(row: dict[str, Any], where: str) -> str:
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"{where}: `instruction` is missing or empty; is this the question file of another benchmark?")
    return instruction
