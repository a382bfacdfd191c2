"""AlpacaEval 2 (https://github.com/tatsu-lab/alpaca_eval), a JSON list of single turns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.data.sources.json_text import BrokenJSONError, parse_json
from lion_lightning.tools.answers.base import AnsweredQuestion, Format, Question, Row, read_text


class AlpacaEval(Format):
    """Reads ``alpaca_eval.json`` (rows with ``instruction`` and ``dataset``) and writes a file for ``--model_outputs``.

    The instruction is the question's id, by which the tool matches answers. The tool prescribes no temperature.
    """

    model_keys = ("generator",)

    @override
    def rows(self, path: Path) -> Iterator[tuple[Row, str]]:
        try:
            rows = parse_json(read_text(path))
        except BrokenJSONError as error:
            place = f"{path}:{error.line + 1}"
            raise ValueError(f"{place}: broken JSON ({error}); AlpacaEval's files are JSON lists") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: not a list of objects, as AlpacaEval's files are")
        for number, row in enumerate(rows):
            yield row, f"{path}[{number}]"

    @override
    def read_id(self, row: Row, where: str) -> str:
        found = row.get("instruction")
        if not isinstance(found, str) or not found.strip():
            raise ValueError(
                f"{where}: `instruction` is missing or empty; is this the question file of another benchmark?"
            )
        return found

    @override
    def question(self, row: Row, where: str) -> Question:
        instruction = self.read_id(row, where)
        return Question(instruction, (instruction,), row, where)

    @override
    def record(self, finished: AnsweredQuestion, model: str) -> dict[str, Any]:
        row = finished.question.row
        record = {"instruction": finished.question.id, "output": finished.answers[0], "generator": model}
        if "dataset" in row:  # by which the tool can group its results
            record["dataset"] = row["dataset"]
        return record

    @override
    def add(self, out: Path, finished: Sequence[AnsweredQuestion]) -> None:
        rows = [row for row, _ in self.rows(out)] if out.exists() else []
        rows += [self.record(one, out.stem) for one in finished]
        with explain_write_errors(out, "answers", "give another file in --out"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(out) as temporary, temporary.open("w", encoding="utf-8") as file:
                json.dump(rows, file, indent=2, ensure_ascii=False)
