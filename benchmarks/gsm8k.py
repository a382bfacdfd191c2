"""GSM8K's short problems, in the files that benchmarks/gsm8k.yaml reads.

    python benchmarks/gsm8k.py train.jsonl gsm8k

The calculator's annotations are left out of the solutions. Of the short problems of two steps the last 200 are held
out, and 800 are answered by the policy in its rounds; SFT takes the other short problems, of three steps too.
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="GSM8K's train.jsonl")
    parser.add_argument("out", type=Path, help="folder to write to")
    options = parser.parse_args()
    problems = short_problems(options.train, 2)
    rest, held_out = problems[:-HELD_OUT], problems[-HELD_OUT:]
    sft = [*rest[:-PROMPTS], *short_problems(options.train, 3)]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("sft", sft), ("prompts", rest[-PROMPTS:]), ("held_out", held_out)):
        (options.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        print(f"{name}: {len(rows)} problems")


if __name__ == "__main__":
    main()
