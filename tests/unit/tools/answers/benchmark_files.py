"""Question files in the forms of AlpacaEval 2, Arena-Hard and MT-Bench, and a sampler that says what it was asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.sampling import SamplingSettings
from lion_lightning.tools.answers import FORMATS, write_answers
from lion_lightning.tools.answers.run import MultiTurnSampler
from lion_lightning.types import Answer, Prompt
from tests import tiny

ALPACA: list[dict[str, Any]] = [
    {"instruction": "w3 w4", "output": "reference", "generator": "text_davinci_003", "dataset": "koala"},
    {"instruction": "w5", "dataset": "vicuna"},
    {"instruction": "w6 é\u2028w7", "dataset": "vicuna"},  # a line separator is no end of a row
]
MT: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["w3", "w4"]},
    {"question_id": 101, "category": "stem", "turns": ["w5", "w6"], "reference": ["w7", "w8"]},
    {"question_id": 82, "category": "roleplay", "turns": ["w7 é\u2028w3", "w8"]},
    {"question_id": 999, "category": "of my own", "turns": ["w9"]},
]
ARENA: list[dict[str, Any]] = [
    {"uid": "2ed", "category": "hard_prompt", "subcategory": "coding", "prompt": "w3"},
    {"uid": "0af", "category": "creative_writing", "subcategory": "", "prompt": "w4"},
]
ARENA_OLD: list[dict[str, Any]] = [
    {"question_id": "328", "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": "w3"}]},
    {"question_id": "b43", "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": "w4"}]},
]


class Echo:
    """Says what it was asked, after its number in the call; remembers everything, and dies at the call of a number."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.sampling = SamplingSettings(temperature=0.9)
        self.calls: list[tuple[list[str], float, int]] = []
        self.opened: list[Any] = []
        self.closed = 0
        self.dies_at = dies_at

    def open(self, policy: Any) -> None:
        self.opened.append(policy)

    def close(self) -> None:
        self.closed += 1

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        assert n == 1
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append(([prompt.text for prompt in prompts], self.sampling.temperature, seed))
        return [[Answer(f" to {prompt.question}\n")] for prompt in prompts]

    @property
    def asked(self) -> list[str]:
        return [text for texts, _, _ in self.calls for text in texts]


def served_policy(folder: Path) -> RolloutPolicy:
    """A tiny policy and its tokenizer, written to the folder."""
    tiny.tokenizer_folder(folder)
    served = RolloutPolicy(tiny.policy(), TokenizerSpec(str(folder)).load())
    served.write(folder)
    return served


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def listed(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    return list(json.loads(text)) if path.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line]


def write(
    name: str, prompts: Path, out: Path, served: RolloutPolicy, sampler: Any, save_every: int = 64, **options: Any
) -> int:
    asking = MultiTurnSampler(sampler, ChatEncoder(served.tokenizer, mask="completion"), **options)
    return write_answers(FORMATS[name], prompts, out, served, asking, save_every)
