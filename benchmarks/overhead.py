"""What the modules and Lightning's Trainer cost: a step of theirs over one of a hand-written loop.

    python benchmarks/overhead.py

Same weights, same batches, same forward, loss and fused AdamW; a model of SmolLM2's width and vocabulary with a few of
its layers, so that a step is short and what is done around it shows. Each side is a process of its own; they take turns
step by step.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from interleaved import Worker, ended
from measurements import Measurement, show

COMMAND = "python benchmarks/overhead.py"
WORKERS = Path(__file__).with_name("training_workers.py")
PLAIN = Path(__file__).with_name("overhead_workers.py")
JOBS: dict[str, dict[str, Any]] = {
    "SFT, 600 tokens a step": {"stage": "sft", "data": "documents", "tokens": 600},
    "DPO, cached reference, 2 pairs a step": {"stage": "dpo", "data": "gsm8k", "pairs": 2},
}
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
SHARED: dict[str, Any] = {"shape": SHAPE, "precision": "32-true", "device": "cpu", "accumulate": 1}
APART = 1e-3
"""How far losses of a step may be apart."""


def measure(rounds: int = 5, threads: int = 2, **changes: Any) -> list[Measurement]:
    """Seconds of a step, ours over the hand-written loop's.

    Args:
        rounds: Steps of each side; one before them warms up.
        threads: Of each side.
        **changes: Of the jobs: another ``shape``, say.
    """
    with tempfile.TemporaryDirectory() as folder:
        shared = SHARED | {"model": folder, "steps": rounds + 1} | changes
        Worker(WORKERS, "model", json.dumps(shared)).finish()
        with ExitStack() as stack:  # all load side by side, and sleep while it is not their turn
            sides = {what: stack.enter_context(ended(_sides(job | shared, threads))) for what, job in JOBS.items()}
            return [measurement(what, in_turn(workers, shared["steps"])) for what, workers in sides.items()]


def in_turn(sides: dict[str, Any], steps: int) -> dict[str, list[dict[str, Any]]]:
    """What each side tells of each step; the one that goes first changes from step to step.

    Args:
        sides: Workers, by name.
        steps: Of each.
    """
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(steps):
        for name in sorted(sides, reverse=number % 2 == 0):
            turns[name].append(sides[name].turn())
    return turns


def measurement(what: str, turns: dict[str, list[dict[str, Any]]]) -> Measurement:
    """Seconds of a step in each round, without the first step.

    Args:
        what: The stage.
        turns: Of both sides.

    Raises:
        SystemExit: Their losses are not the same.
    """
    apart = max(
        abs(one["losses"][0] - other["losses"][0]) for one, other in zip(turns["ours"], turns["plain"], strict=True)
    )
    if not apart <= APART:
        raise SystemExit(f"overhead, {what}: the sides' losses are {apart:.3g} apart, so they do not do the same")
    ours, plain = _steps(turns, "seconds")
    cpu = zip(*_steps(turns, "cpu_seconds"), strict=True)
    extra = {
        "ratio of the CPU's seconds": median(one / other for one, other in cpu),
        "largest difference of a step's losses": apart,
    }
    step = f"overhead of a step: {what}"
    return Measurement(step, "s", ours, plain, "a hand-written loop", most=1.03, command=COMMAND, extra=extra)


def _sides(job: dict[str, Any], threads: int) -> dict[str, Worker]:
    told = json.dumps(job)
    return {"ours": Worker(WORKERS, "ours", told, threads=threads), "plain": Worker(PLAIN, told, threads=threads)}


def _steps(turns: dict[str, list[dict[str, Any]]], name: str) -> list[list[float]]:
    """A measurement of each side's steps but the first."""
    return [[turn[name] for turn in turns[side][1:]] for side in ("ours", "plain")]


if __name__ == "__main__":
    show(measure())
