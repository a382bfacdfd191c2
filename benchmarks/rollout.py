"""Tokens a second through a round of on-policy sampling, over those of the bare engine.

    python benchmarks/rollout.py [--rounds N]

A round is all that ``OnPolicySampling`` does before an epoch: hashing the policy, pushing weights where the engine has
its own, sampling, judging (by length), pairing where pairs are trained on, writing. The bare engine is transformers'
``generate`` in equal batches, or, where vLLM is installed, ``LLM.generate``. Both answer the same prompts, and take
turns in going first. The table goes to docs/performance.md, every round to benchmarks/results/rounds.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from interleaved import Worker, ended
from measurements import Measurement, show
from results import machine, put_table, save

HERE = Path(__file__).parent
COMMAND = "python benchmarks/rollout.py"
WORKERS = HERE / "rollout_workers.py"
MODEL = {"layers": 4, "hidden": 512, "vocabulary": 8192}
DRAWN = {"new_tokens": 32, "batch_size": 64}
SAMPLES = {"pairs": 4, "groups": 8}
"""Answers to a prompt, by what the round is trained on."""
ANSWERS = {"transformers": 64, "vllm": 256}
"""Of a round, by engine: each takes some seconds. A round is one chunk of the callback's, at most 64 prompts."""
PEERS = {"transformers": "bare generate", "vllm": "bare LLM.generate"}


def measure(
    rounds: int = 5, threads: int = 2, items: Iterable[str] = ("pairs",), device: str = "cpu", **changes: Any
) -> list[Measurement]:
    """New tokens a second, ours over the engine's own, for each engine that is there.

    Args:
        rounds: That count; one before them warms up.
        threads: Of the process.
        items: What is trained of the rounds, ``pairs`` or ``groups``.
        device: ``cuda`` or ``cpu``.
        **changes: Of the model's sizes and of how much is drawn.
    """
    found = []
    for engine in (name for name in PEERS if find_spec(name) is not None):
        for kind in items:
            samples = changes.get("samples", SAMPLES[kind])
            drawn = DRAWN | {"items": kind, "samples": samples, "prompts": ANSWERS[engine] // samples}
            job = MODEL | drawn | {"rounds": rounds + 1, "device": device} | changes
            found.append(measurement(engine, job, told(engine, job, threads)))
    return found


def told(engine: str, job: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    """What the worker tells of each round but the first.

    Args:
        engine: Which.
        job: What it shall do.
        threads: That it may use.
    """
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(WORKERS, json.dumps(job | {"engine": engine, "folder": folder}), threads=threads)
        with ended({engine: worker}):
            return [worker.turn() for _ in range(job["rounds"])][1:]


def measurement(engine: str, job: dict[str, Any], turns: list[dict[str, Any]]) -> Measurement:
    """The engine's line.

    Args:
        engine: Which.
        job: What was done.
        turns: Figures of each round.
    """
    kind = "" if job["items"] == "pairs" else f" of {job['items']}"
    drawn = f"{job['prompts']} prompts x {job['samples']} x {job['new_tokens']} new tokens"
    parts = {"weight sync": "open", "sampling": "sample", "judging": "score"}
    extra = {f"{name}, s": median(turn[f"{part}_seconds"] for turn in turns) for name, part in parts.items()}
    extra["the rest (hash of the policy, pairing, files), s"] = median(
        turn["ours_seconds"] - sum(turn[f"{part}_seconds"] for part in parts.values()) for turn in turns
    )
    return Measurement(
        f"online round{kind}, {engine}, {drawn}",
        "new tokens/s",
        [turn["tokens"] / turn["ours_seconds"] for turn in turns],
        [turn["bare_tokens"] / turn["bare_seconds"] for turn in turns],
        PEERS[engine],
        least=0.9,
        command=COMMAND,
        extra=extra,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rounds.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "performance.md")
    options = parser.parse_args()
    start = time.perf_counter()
    found = measure(options.rounds, items=SAMPLES)
    about = machine() | {"measured in": f"{time.perf_counter() - start:.0f} s, {options.rounds} rounds"}
    save(options.out, found, machine=about)
    put_table(options.page, "rounds", found, [f"{', '.join(f'{key} {value}' for key, value in about.items())}."])
    show(found)
    print(f"every round: {options.out}; the table: {options.page}")


if __name__ == "__main__":
    main()
