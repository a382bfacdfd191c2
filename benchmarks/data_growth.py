"""Time and memory of preparing more and more rows: ``python benchmarks/data_growth.py --rows 10000 100000 1000000``.

For each number of rows, a process of its own tokenizes made-up rows, opens the store, packs an epoch, packs the next
one, and reads all batches. For each step it prints seconds and the most memory of its own that the process had then,
above what it had before the first step. (Own is ``RssAnon``; pages of mapped files, ``RssFile``, belong to nobody: the
system shares them among processes and takes them back when it needs memory. The C library is told to give back at once
what is freed; left alone it keeps some of it, up to some 70 MiB.) Rows have 20 to 70 tokens; linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

ROW_LENGTH = 2048
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
KINDS = ("documents", "pairs", "ranked")
"""Texts, pairs, and all pairs of four answers to a prompt."""
STEPS = ("tokenize", "open", "pack", "pack again", "read")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--out", type=Path, default=Path("data_growth.json"))
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    print(f"{'':10}{'rows':>9}  " + "".join(f"{step:>20}" for step in STEPS) + f"{'kept':>9}{'base':>9}{'mapped':>9}")
    for kind in options.kinds:
        for rows in options.rows:
            found.append(_alone(kind, rows))
            print(_line(found[-1]), flush=True)
            options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        _print_growth([figures for figures in found if figures["kind"] == kind])


def _alone(kind: str, rows: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), kind, rows)
        command = [sys.executable, "-c", f"import data_growth; data_growth.measure({folder!r}, {kind!r}, {rows})"]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            env=os.environ | GIVE_BACK,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _write(folder: Path, kind: str, rows: int) -> None:
    draw = random.Random(0)
    names = {"documents": ["question", "answer"], "pairs": ["question", "chosen", "rejected"]}.get(kind, ["question"])
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            row: dict[str, Any] = {name: _text(draw) for name in names}
            row["question"] += str(number)
            if kind == "ranked":
                row |= {"answers": [_text(draw) + str(place) for place in range(4)], "scores": [3, 2, 1, 0]}
            file.write(json.dumps(row) + "\n")


def _text(draw: random.Random) -> str:
    return "a" + "".join(draw.choices("abcdefgh ", k=draw.randint(5, 25)))


def measure(folder: str, kind: str, rows: int) -> None:
    """Do the steps, and print the figures of each as one line of JSON."""
    from lion_lightning import PreferenceDataModule, SFTDataModule, Source
    from lion_lightning.data.formats.pairing import AllPairs
    from lion_lightning.tools.demo.model import make_tokenizer

    settings: dict[str, Any] = {"max_length": ROW_LENGTH, "cache_dir": Path(folder) / "cache"}
    if kind == "ranked":
        settings["pairing"] = AllPairs()
    source, tokenizer = Source(f"{folder}/rows.jsonl"), make_tokenizer()
    data = (SFTDataModule if kind == "documents" else PreferenceDataModule)([source], tokenizer, **settings)
    tokenizer.apply_chat_template([{"role": "user", "content": "a"}])  # what is loaded once is loaded now
    base = _own()
    seconds: dict[str, float] = {}
    peak: dict[str, float] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        with _peaks(lambda mib: peak.update({name: mib - base})):
            started = time.perf_counter()
            result = work()
            seconds[name] = time.perf_counter() - started
        return result

    step("tokenize", data.prepare_data)
    step("open", data.setup)
    loader = step("pack", data.train_dataloader)
    step("pack again", lambda: loader.set_epoch(1))
    batches = step("read", lambda: sum(1 for _ in loader))
    memory = {"peak_mib": peak, "kept_mib": _own() - base, "base_mib": base, "mapped_mib": _status("RssFile")}
    print(json.dumps({"kind": kind, "rows": rows, "batches": batches, "seconds": seconds, **memory}))


def _peaks(tell: Callable[[float], None]) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def watched() -> Iterator[None]:
        over, seen = Event(), [_own()]

        def watch() -> None:
            while not over.wait(0.01):
                seen.append(max(seen.pop(), _own()))

        thread = Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        tell(max(seen[0], _own()))

    return watched()


def _own() -> float:
    return _status("RssAnon")


def _status(name: str) -> float:
    """A size of this process, in MiB."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def _line(figures: dict[str, Any]) -> str:
    steps = "".join(f"{figures['seconds'][step]:9.2f} s {figures['peak_mib'][step]:5.0f} MiB" for step in STEPS)
    rest = "".join(f"{figures[name]:9.0f}" for name in ("kept_mib", "base_mib", "mapped_mib"))
    return f"{figures['kind']:10}{figures['rows']:9,}  {steps}{rest}"


def _print_growth(found: list[dict[str, Any]]) -> None:
    """Bytes a row, between the fewest rows and the most."""
    first, last = found[0], found[-1]
    if first["rows"] == last["rows"]:
        return
    grown = last["rows"] - first["rows"]
    peaks = {step: last["peak_mib"][step] - first["peak_mib"][step] for step in STEPS}
    peaks["kept"] = last["kept_mib"] - first["kept_mib"]
    print("bytes a row: " + ", ".join(f"{name} {mib * 2**20 / grown:.0f}" for name, mib in peaks.items()))


if __name__ == "__main__":
    main()
