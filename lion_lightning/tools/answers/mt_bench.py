"""MT-Bench (https://github.com/lm-sys/FastChat, fastchat/llm_judge), with two turns per question."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from typing_extensions import override

from lion_lightning.tools.answers.base import AnsweredQuestion, JSONLines, Question, Row, read_turns

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Temperatures by category, from FastChat 0.2.36."""

DEFAULT_TEMPERATURE = 0.7
"""Temperature of all other categories."""


class MTBench(JSONLines):
    """Reads ``data/mt_bench/question.jsonl`` and writes ``data/mt_bench/model_answer/MODEL.jsonl``."""

    @override
    def question(self, row: Row, where: str) -> Question:
        found = self.read_id(row, where)
        temperature = TEMPERATURES.get(str(row.get("category")), DEFAULT_TEMPERATURE)
        return Question(found, read_turns(row.get("turns"), where), row, where, temperature)

    @override
    def record(self, finished: AnsweredQuestion, model: str) -> dict[str, Any]:
        return {
            "question_id": finished.question.id,
            "answer_id": uuid4().hex,
            "model_id": model,
            "choices": [{"index": 0, "turns": list(finished.answers)}],
            "tstamp": time.time(),
        }
