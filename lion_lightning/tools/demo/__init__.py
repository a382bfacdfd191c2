"""A small synthetic instruction task: data, tokenizer and model config, without any download.

``lion demo [OUT]`` writes:

- ``train.jsonl`` and ``validation.jsonl``: conversations in the ``messages`` form. As in collected data, not all
  answers are right: a quarter of them are plausible mistakes.
- ``preferences.jsonl`` and ``preferences_validation.jsonl``: prompts with a right answer and a plausible mistake.
- ``ranked.jsonl`` and ``ranked_validation.jsonl``: prompts with three answers and their scores.
- ``prompts.jsonl`` to train online, ``questions.jsonl`` to evaluate with, both with the right answers.
- ``model``: a byte-level tokenizer with a ChatML template, and the config of a tiny Llama; a policy built from it
  has random weights.

A model of this size learns most of it in a minute or two on two CPU cores,
and :func:`check` says whether an answer is right, so that accuracy can be measured and answers can be ranked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from lion_lightning.tools.demo.model import make_config, make_tokenizer
from lion_lightning.tools.demo.rows import Row, make_pairs, make_prompts, make_ranked, make_rows
from lion_lightning.tools.demo.task import FAMILIES, check, solve

__all__ = [
    "FAMILIES",
    "Row",
    "check",
    "make_config",
    "make_pairs",
    "make_prompts",
    "make_ranked",
    "make_rows",
    "make_tokenizer",
    "solve",
    "write_demo",
]

FILES = (
    "validation.jsonl",
    "train.jsonl",
    "preferences_validation.jsonl",
    "preferences.jsonl",
    "prompts.jsonl",
    "questions.jsonl",
    "ranked_validation.jsonl",
    "ranked.jsonl",
)


def write_demo(
    out: str | Path,
    train: int = 5000,
    validation: int = 330,
    seed: int = 0,
    preferences: int = 4000,
    prompts: int = 3000,
    questions: int = 1100,
    slips: float = 0.25,
    ranked: int = 2000,
) -> None:
    """Write the task's data, tokenizer and model config.

    Args:
        out: Folder to write to; made if missing.
        train: Rows of ``train.jsonl``.
        validation: Rows of ``validation.jsonl``, of ``preferences_validation.jsonl`` and of
            ``ranked_validation.jsonl``; no two rows of all files share an input in their family.
        seed: The same seed writes the same files.
        preferences: Rows of ``preferences.jsonl``.
        prompts: Rows of ``prompts.jsonl``.
        questions: Rows of ``questions.jsonl``.
        slips: Share of the answers in ``train.jsonl`` that are plausible mistakes.
        ranked: Rows of ``ranked.jsonl``.

    Raises:
        OSError: If the folder can't be written.
        ValueError: If the task has fewer different rows.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    random, taken = Random(seed), set[str]()  # held-out rows are drawn before those to train on
    makers: tuple[Callable[[int, Random, set[str]], list[Row]], ...]
    makers = (make_rows, partial(make_rows, slips=slips), *[make_pairs] * 2, *[make_prompts] * 2, *[make_ranked] * 2)
    counts = (validation, train, validation, preferences, prompts, questions, validation, ranked)
    for name, make, count in zip(FILES, makers, counts, strict=True):
        lines = [json.dumps(row) + "\n" for row in make(count, random, taken)]
        (out / name).write_text("".join(lines), encoding="utf-8")
    made = make_tokenizer()
    made.save_pretrained(out / "model")
    make_config(made).save_pretrained(out / "model")
