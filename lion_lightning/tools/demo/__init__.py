"""A small synthetic instruction task: data, tokenizer and model config, without any download.

``lion demo [OUT]`` writes:

- ``train.jsonl`` and ``validation.jsonl``: conversations in the ``messages`` form. As in collected data, the answers
  are those of imperfect writers: mistakes, refusals, words too many, a wrong form.
- ``preferences.jsonl`` and ``preferences_validation.jsonl``: prompts with the better and the worse of two such answers.
- ``ranked.jsonl`` and ``ranked_validation.jsonl``: prompts with three such answers and their scores.
- ``prompts.jsonl`` to train online, ``questions.jsonl`` to evaluate with, both with the best answer, for a verifier.
- ``model``: a byte-level tokenizer with a ChatML template, and the config of a tiny Llama; a policy built from it
  has random weights.

A model of this size learns most of it in a minute or two on two CPU cores. docs/demo.md has the writers' slips, the
parts of the score and what the three stages make of them. :func:`check` says whether the content is right.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from lion_lightning.tools.demo.model import make_config, make_tokenizer
from lion_lightning.tools.demo.rows import Row, make_pairs, make_prompts, make_ranked, make_rows, make_written
from lion_lightning.tools.demo.task import FAMILIES, solve
from lion_lightning.tools.demo.writers import CLOSING, OPENING, REFUSAL, check

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
    "make_written",
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
        ranked: Rows of ``ranked.jsonl``.

    Raises:
        OSError: If the folder can't be written.
        ValueError: If the task has fewer different rows.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    random, taken = Random(seed), set[str]()  # held-out rows are drawn before those to train on
    makers: tuple[Callable[[int, Random, set[str]], list[Row]], ...]
    makers = (*[make_written] * 2, *[make_pairs] * 2, *[make_prompts] * 2, *[make_ranked] * 2)
    counts = (validation, train, validation, preferences, prompts, questions, validation, ranked)
    for name, make, count in zip(FILES, makers, counts, strict=True):
        lines = [json.dumps(row) + "\n" for row in make(count, random, taken)]
        (out / name).write_text("".join(lines), encoding="utf-8")
    made = make_tokenizer(f"{OPENING} {CLOSING} {REFUSAL}")
    made.save_pretrained(out / "model")
    make_config(made).save_pretrained(out / "model")
