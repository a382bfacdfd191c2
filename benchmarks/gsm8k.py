"""GSM8K's short problems, in the files that benchmarks/gsm8k.yaml reads.

    python benchmarks/gsm8k.py train.jsonl gsm8k

The calculator's annotations are left out of the solutions. A model of 135M parameters hardly ever answers a problem at
temperature 1, so that the prompts of the rounds, and of the evaluation, have the first of two steps in them: the policy
is left the second, and the value. Of these problems the last 200 are held out. SFT takes whole solutions of others
(sft.jsonl), and then the last steps of some of them (last_step.jsonl).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

HELD_OUT, PROMPTS = 200, 800
LONGEST = 220
"""Characters of a question, and of a solution."""


def short_problems(path: Path, steps: int) -> list[dict[str, str]]:
    """Problems whose solution has this many lines before its final value.

    Args:
        path: GSM8K's ``train.jsonl``.
        steps: How many.
    """
    problems = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        answer = re.sub(r"<<[^>]*>>", "", row["answer"])
        if answer.count("\n") == steps and max(len(row["question"]), len(answer)) <= LONGEST:
            problems.append({"question": row["question"], "answer": answer})
    return problems


def last_step(problem: dict[str, str]) -> dict[str, str]:
    """A problem with its solution in the question, up to the last step."""
    *before, last, value = problem["answer"].split("\n")
    return {"question": "\n".join([problem["question"], *before]), "answer": f"{last}\n{value}"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="GSM8K's train.jsonl")
    parser.add_argument("out", type=Path, help="folder to write to")
    options = parser.parse_args()
    problems = short_problems(options.train, 2)
    rest = problems[:-HELD_OUT]
    sft = [*rest[:-PROMPTS], *short_problems(options.train, 3)]
    files = {
        "sft": sft,
        "last_step": map(last_step, sft),
        "prompts": map(last_step, rest[-PROMPTS:]),
        "held_out": map(last_step, problems[-HELD_OUT:]),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (options.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
