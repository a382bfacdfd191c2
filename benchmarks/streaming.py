"""Streaming many rows: memory over time, rows a second, kill and resume: ``python benchmarks/streaming.py``.

Each run is a process of its own over made-up plain texts of 20 to 70 tokens (with the demo's tokenizer), and does
nothing with the batches. First one streams ``--rows`` and says ten times what memory it and its workers have
(``RssAnon``, what is no file; what a worker has from its parent's start counts for both). Then ``--compare`` rows are
read the mapped way (tokenized, packed and read) and streamed, in turns; then that stream is killed by SIGKILL half-way,
resumed from its last state, and its batches compared with those of a stream that nobody killed, bit for bit. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

SAVE_EVERY = 20
"""Batches between two states of a stream that is to be killed."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows whose memory is watched; 0 for none")
    parser.add_argument("--compare", type=int, default=100_000, help="rows of the other runs; 0 for none")
    parser.add_argument("--rounds", type=int, default=2, help="turns of mapped and streamed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--window", type=int, default=4096)
    options = parser.parse_args()
    if options.rows:
        _memory(options)
    if options.compare:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder), options.compare)
            _rates(Path(folder), options)
            _kill(Path(folder), options)


def _memory(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), options.rows)
        found = _run(Path(folder), options, "stream")
    print(
        f"{found['rows']:,} rows streamed in {found['seconds']:.0f} s: {found['rows'] / found['seconds']:,.0f} rows/s"
    )
    print(f"first batch after {found['first']:.1f} s; memory above the start's {found['base_mib']:.0f} MiB:")
    for rows, mib in found["memory"]:
        print(f"  {rows:>10,} rows {mib:7.0f} MiB")


def _rates(folder: Path, options: argparse.Namespace) -> None:
    for number in range(options.rounds):
        for kind in ("mapped", "stream"):
            found = _run(folder, options, kind, cache=f"cache {kind} {number}")
            rate = found["rows"] / found["seconds"]
            print(f"{kind}: {rate:,.0f} rows/s, first batch after {found['first']:.1f} s", flush=True)


def _kill(folder: Path, options: argparse.Namespace) -> None:
    whole = _run(folder, options, "stream")["digests"]
    state = folder / "state.pt"
    dead = _start(folder, options, "stream", "--state", str(state), "--kill", str(len(whole) // 2))
    assert dead.returncode == -signal.SIGKILL, dead.returncode
    size = state.stat().st_size
    resumed = _run(folder, options, "stream", "--state", str(state))["digests"]
    assert 0 < len(resumed) < len(whole)
    said = "equal" if resumed == whole[-len(resumed) :] else "DIFFERENT"
    print(
        f"killed after batch {len(whole) // 2} of {len(whole)}, resumed at {len(whole) - len(resumed)}: "
        f"{len(resumed)} batches {said}; the state has {size / 1024:,.0f} KiB"
    )


def _run(folder: Path, options: argparse.Namespace, kind: str, *more: str, cache: str = "cache") -> dict[str, Any]:
    done = _start(folder, options, kind, "--cache", cache, *more)
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _start(folder: Path, options: argparse.Namespace, kind: str, *more: str) -> subprocess.CompletedProcess[str]:
    settings = ["--workers", str(options.workers), "--window", str(options.window)]
    code = "import sys, streaming; streaming.measure(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(folder), kind, *settings, *more]
    return subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=False)


def write_rows(folder: Path, rows: int) -> None:
    """Write made-up texts, each with its number, so that none is a duplicate."""
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = "".join(draw.choices("abcdefgh ", k=draw.randint(20, 60)))
            file.write(json.dumps({"text": f"{text} {number}"}) + "\n")


def measure(arguments: list[str]) -> None:
    """One run: read all rows, and print what was found as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("kind")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--window", type=int)
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--kill", type=int)
    options = parser.parse_args(arguments)

    from lion_lightning import SFTDataModule, Source
    from lion_lightning.data.streaming.settings import StreamSettings
    from lion_lightning.tools.demo.model import make_tokenizer

    tokenizer, streaming = make_tokenizer(), options.kind == "stream"
    source = Source(f"{options.folder}/rows.jsonl", format="text", streaming=streaming)
    settings: dict[str, Any] = {"stream": StreamSettings(window=options.window)} if streaming else {}
    cache = f"{options.folder}/{options.cache}"
    base, started = own_mib(), time.perf_counter()
    data = SFTDataModule([source], tokenizer, max_length=2048, num_workers=options.workers, cache_dir=cache, **settings)
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    if options.state and options.state.exists():
        import torch

        loader.load_state_dict(torch.load(options.state, weights_only=True))
    found = _read(loader, options, base, started)
    print(json.dumps(found))


def _read(loader: Any, options: argparse.Namespace, base: float, started: float) -> dict[str, Any]:
    rows, first, memory, digests = 0, 0.0, list[tuple[int, float]](), list[str]()
    with Path(options.folder, "rows.jsonl").open("rb") as lines:
        total = sum(1 for _ in lines)
    for number, batch in enumerate(loader, start=1):
        first = first or time.perf_counter() - started
        rows += len(batch.segments)
        digests.append(blake2b(batch.input_ids.numpy().tobytes(), digest_size=8).hexdigest())
        while rows * 10 >= total * (len(memory) + 1):
            memory.append((rows, own_mib() - base))
        if options.kill and number % SAVE_EVERY == 0:
            _save(loader, options.state)
        if number == options.kill:
            os.kill(os.getpid(), signal.SIGKILL)
    seconds = time.perf_counter() - started
    return {
        "rows": rows,
        "seconds": seconds,
        "first": first,
        "base_mib": base,
        "memory": memory,
        "digests": digests,
    }


def _save(loader: Any, path: Path) -> None:
    import torch

    torch.save(loader.state_dict(), path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def own_mib() -> float:
    """Anonymous memory of this process and its children, in MiB."""
    return sum(map(_anonymous_mib, [os.getpid(), *_children(os.getpid())]))


def _children(process: int) -> Iterator[int]:
    for listing in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, listing.read_text().split()):
            yield child
            yield from _children(child)


def _anonymous_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0) / 1024


if __name__ == "__main__":
    main()
