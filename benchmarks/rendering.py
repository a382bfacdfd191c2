"""Rows a second of rendering conversations and finding their answers, here and in another checkout, in turns.

    python benchmarks/rendering.py gsm8k.jsonl sharegpt.json --tokenizer smollm2 --against ../before

Each turn is a process of its own. ``render`` is text and spans of answers, ``encode`` the same with token ids and mask.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
BATCH = 256


def main() -> None:
    """Print the rows a second of both checkouts, and the median ratio of neighboring turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", help="JSON Lines, or a JSON array, of conversations")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--template", action="append", help="chat template, several times; the tokenizer's own if none")
    parser.add_argument("--against", type=Path, help="checkout to compare with")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(speeds(given.files, given.tokenizer, given.template or [""], given.rows)))
        return
    checkouts = [HERE] if given.against is None else [HERE, given.against.resolve()]
    found: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
    for turn in range(given.turns):
        for checkout in checkouts if turn % 2 else checkouts[::-1]:
            found[checkout].append(_in_process(checkout))
    for name in found[HERE][0]:
        ours = [turn[name] for turn in found[HERE]]
        line = f"{name:60} {statistics.median(ours):10,.0f} rows/s"
        if given.against is not None:
            theirs = [turn[name] for turn in found[checkouts[1]]]
            ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
            line += f"   there {statistics.median(theirs):10,.0f}   ratio {statistics.median(ratios):.2f}"
        print(line)


def _in_process(checkout: Path) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    speeds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return speeds


def speeds(files: list[str], tokenizer: str, templates: list[str], rows: int) -> dict[str, float]:
    """Rows a second by file, template and kind of work."""
    from lion_lightning.data.encoding.chat import ChatEncoder
    from lion_lightning.data.encoding.rendering import ChatRenderer
    from lion_lightning.data.formats.sft import Conversation, recognize
    from lion_lightning.data.reports.row_messages import collect_messages
    from lion_lightning.models.tokenizer import TokenizerSpec

    found = {}
    for file in files:
        text = Path(file).read_text("utf-8")
        raw = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        with collect_messages():
            read = [recognize(row) for row in raw[:rows]]
        examples = [example for example in read if isinstance(example, Conversation)]
        for template in templates:
            loaded = TokenizerSpec(tokenizer, chat_template=template or None).load()
            encoder, renderer = ChatEncoder(loaded), ChatRenderer(loaded)
            with collect_messages():
                start = time.perf_counter()
                for example in examples:
                    renderer.answers(example)
                middle = time.perf_counter()
                for first in range(0, len(examples), BATCH):
                    batch = examples[first : first + BATCH]
                    encoder.encode(batch, ["x:1"] * len(batch))
                end = time.perf_counter()
            name = f"{Path(file).name}, {Path(template).stem or 'own template'}"
            found[f"{name}, render"] = len(examples) / (middle - start)
            found[f"{name}, encode"] = len(examples) / (end - middle)
    return found


if __name__ == "__main__":
    main()
