"""Arena-Hard (https://github.com/lmarena/arena-hard-auto), in both of its formats."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from typing_extensions import override

from lion_lightning.tools.answers.base import AnsweredQuestion, JSONLines, Question, Row, read_turns


class ArenaHard(JSONLines):
    """Reads ``data/BENCH/question.jsonl`` and writes ``data/BENCH/model_answer/MODEL.jsonl``.

    Since April 2025, questions have ``uid`` and ``prompt``, and answers ``messages``. Before, questions had
    ``question_id`` and ``turns``, and answers ``choices``. Answers are written in the format of their question. The
    style counts (``metadata``) are added by the tool's ``add_markdown_info.py``, with OpenAI's tokenizer.
    """

    id_keys = ("uid", "question_id")
    model_keys = ("model", "model_id")

    @override
    def question(self, row: Row, where: str) -> Question:
        found = self.read_id(row, where)
        if "uid" in row:
            return Question(found, read_turns([row.get("prompt")], where), row, where)
        turns = read_turns(
            row.get("turns"), where, lambda turn: turn.get("content") if isinstance(turn, dict) else None
        )
        return Question(found, turns, row, where, 0.0)  # config/gen_answer_config.yaml of the old format

    @override
    def record(self, finished: AnsweredQuestion, model: str) -> dict[str, Any]:
        if "uid" in finished.question.row:
            asked, answer = finished.question.turns[0], {"answer": finished.answers[0]}
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            known = {"uid": finished.question.id, "ans_id": uuid4().hex, "model": model, "messages": messages}
        else:
            turns = [{"content": answer} for answer in finished.answers]
            known = {"question_id": finished.question.id, "answer_id": uuid4().hex, "model_id": model}
            known["choices"] = [{"index": 0, "turns": turns}]
        return {**known, "tstamp": time.time()}
