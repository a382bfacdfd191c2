"""Tokens a second through a round of on-policy sampling, over those of the bare engine.

    python benchmarks/rollout.py

A round is all that ``OnPolicySampling`` does before an epoch: hashing the policy, pushing weights where the engine has
its own, sampling, judging (by length), pairing, writing. The bare engine is transformers' ``generate`` in equal
batches, or, where vLLM is installed, ``LLM.generate``. Both answer the same prompts, and take turns in going first.
"""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from interleaved import Worker, ended
from measurements import Measurement, show

COMMAND = "python benchmarks/rollout.py"
WORKERS = Path(__file__).with_name("rollout_workers.py")
MODEL = {"layers": 4, "hidden": 512, "vocabulary": 8192}
DRAWN = {"samples": 4, "new_tokens": 32, "batch_size": 64}
PROMPTS = {"transformers": 16, "vllm": 64}
"""Of a round, by engine: each takes some seconds. A round is one chunk of the callback's, whose default is 64."""
PEERS = {"transformers": "bare generate", "vllm": "bare LLM.generate"}


def measure(rounds: int = 5, threads: int = 2, **changes: Any) -> list[Measurement]:
    """New tokens a second, ours over the engine's own, for each engine that is there.

    Args:
        rounds: That count; one before them warms up.
        threads: Of the process.
        **changes: Of the model's sizes and of how much is drawn.
    """
    engines = [name for name in PEERS if find_spec(name) is not None]
    jobs = {name: MODEL | DRAWN | {"prompts": PROMPTS[name], "rounds": rounds + 1} | changes for name in engines}
    return [measurement(engine, job, told(engine, job, threads)) for engine, job in jobs.items()]


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
    what = f"online round, {engine}, {job['prompts']} prompts x {job['samples']} x {job['new_tokens']} new tokens"
    parts = {"weight sync": "open", "sampling": "sample", "judging": "score"}
    extra = {f"{name}, s": median(turn[f"{part}_seconds"] for turn in turns) for name, part in parts.items()}
    extra["the rest (hash of the policy, pairing, files), s"] = median(
        turn["ours_seconds"] - sum(turn[f"{part}_seconds"] for part in parts.values()) for turn in turns
    )
    return Measurement(
        what,
        "new tokens/s",
        [turn["tokens"] / turn["ours_seconds"] for turn in turns],
        [turn["bare_tokens"] / turn["bare_seconds"] for turn in turns],
        PEERS[engine],
        least=0.9,
        command=COMMAND,
        extra=extra,
    )


if __name__ == "__main__":
    show(measure())
