"""Writes ``lengths.json``: how many tokens real documents have, so that the suite needs none of them.

    python benchmarks/lengths.py --tokenizer FOLDER --data FOLDER

``--data`` holds ``gsm8k/`` (train.jsonl, example_model_solutions.jsonl) and ``self_instruct/`` (seed_tasks.jsonl,
user_oriented_instructions.jsonl). Documents are as many from GSM8K as Self-Instruct has; both kinds are shuffled.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Turns = tuple[str, ...]


def main() -> None:
    """Command line."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="folder of SmolLM2's")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    draw = random.Random(0)
    instructions = list(_self_instruct(options.data / "self_instruct"))
    problems = [(row["question"], row["answer"]) for row in _rows(options.data / "gsm8k" / "train.jsonl")]
    documents = [*instructions, *draw.sample(problems, len(instructions))]
    pairs = list(_solutions(options.data / "gsm8k" / "example_model_solutions.jsonl"))
    found = {"documents": documents, "pairs": pairs}
    for kind in found.values():
        draw.shuffle(kind)
    lengths = {name: [_count(tokenizer, turns) for turns in kind] for name, kind in found.items()}
    path = Path(__file__).with_name("lengths.json")
    path.write_text(json.dumps(lengths, separators=(",", ":")) + "\n", encoding="utf-8")


def _count(tokenizer: Any, turns: Turns) -> list[int]:
    """Tokens of the rendered prompt, and of each answer with its end-of-turn token."""
    prompt = [{"role": "user", "content": turns[0]}]
    rendered = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    return [len(rendered), *(len(tokenizer(answer)["input_ids"]) + 1 for answer in turns[1:])]


def _self_instruct(folder: Path) -> Iterator[Turns]:
    for name in ("seed_tasks.jsonl", "user_oriented_instructions.jsonl"):
        for row in _rows(folder / name):
            for instance in row["instances"]:
                yield f"{row['instruction']}\n{instance['input']}".strip(), instance["output"]


def _solutions(path: Path) -> Iterator[Turns]:
    """Problems with the first right and the first wrong solution of them."""
    for row in _rows(path):
        solutions = [value for value in row.values() if isinstance(value, dict)]
        right, wrong = ([s["solution"] for s in solutions if s["is_correct"] is truth] for truth in (True, False))
        if right and wrong:
            yield row["question"], right[0], wrong[0]


def _rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
