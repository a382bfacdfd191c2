"""Rows to train on, and the models that every side starts from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from lion_lightning.tools.demo.model import make_config, make_tokenizer

Row = dict[str, Any]
WORDS = ("reverse", "sort", "count", "letters", "tako", "melisu", "7", "19", "342", "say", "spell", "or", "then")
COUNT = 96
"""Rows of each kind, which is more than any case takes."""
GROUP = 4
"""Answers to a prompt of the groups."""
LONGEST = 64
"""Tokens that an answer has at most."""


@dataclass(frozen=True)
class Prepared:
    """A folder that all sides read.

    Attributes:
        folder: With the files that :func:`prepare` writes.
    """

    folder: Path

    def file(self, kind: str) -> Path:
        """The JSONL file of a kind of rows: ``conversations``, ``pairs``, ``labeled`` or ``groups``."""
        return self.folder / f"{kind}.jsonl"

    def rows(self, kind: str) -> list[Row]:
        """All rows of a kind."""
        return [json.loads(line) for line in self.file(kind).read_text(encoding="utf-8").splitlines()]

    def model(self, kind: str = "policy") -> Path:
        """The folder of a model with its tokenizer: ``policy`` or ``reward``."""
        return self.folder / kind


def prepare(folder: Path, **shape: int) -> Prepared:
    """Write rows and models, the same every time.

    Args:
        folder: An existing folder.
        **shape: Of the models, where they are not to be as large as the demo's.
    """
    draw = Random(0)
    made = Prepared(folder)
    for kind, make in {"conversations": _conversation, "pairs": _pair, "labeled": _labeled, "groups": _group}.items():
        lines = [json.dumps(make(draw)) + "\n" for _ in range(COUNT)]
        made.file(kind).write_text("".join(lines), encoding="utf-8")
    tokenizer = make_tokenizer()
    config = make_config(tokenizer)
    config.update({"num_labels": 1, **shape})
    for kind, model_class in (("policy", LlamaForCausalLM), ("reward", LlamaForSequenceClassification)):
        torch.manual_seed(0)
        model_class(config).save_pretrained(made.model(kind))
        tokenizer.save_pretrained(made.model(kind))
    return made


def _conversation(draw: Random) -> Row:
    return {"prompt": _question(draw), "completion": _answer(draw)}


def _pair(draw: Random) -> Row:
    return {"prompt": _question(draw), "chosen": _answer(draw), "rejected": _answer(draw)}


def _labeled(draw: Random) -> Row:
    return {**_conversation(draw), "label": draw.random() < 0.5}


def _group(draw: Random) -> Row:
    answers = [_answer(draw) for _ in range(GROUP)]
    return {
        "prompt": _question(draw),
        "answers": answers,
        "scores": [grade(answer[0]["content"]) for answer in answers],
    }


def grade(text: str) -> float:
    """Reward of an answer: from 0 to 4, of no meaning.

    Args:
        text: The answer.
    """
    return float(sum(map(ord, text)) % 5)


def _question(draw: Random) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))}]


def _answer(draw: Random) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))}]


def grouped(items: Sequence[Any], size: int) -> list[list[Any]]:
    """Lists of so many items, in their order; the last may have fewer.

    Args:
        items: What to group.
        size: Of a list.
    """
    rest = iter(items)
    return list(iter(lambda: list(islice(rest, size)), []))
