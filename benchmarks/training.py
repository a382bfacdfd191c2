"""SFT, DPO and the reference pass, ours against TRL's trainers, side by side on a model of SmolLM2's shape.

    python benchmarks/training.py [--only sft] [--rounds 5] [--precision bf16-mixed]

Same random weights, same token ids in the same steps (of real documents' lengths), same fused AdamW, so the same real
tokens. Each side is a process of its own that takes its turn; the first step of each warms up and is left out. Of TRL's
settings the one that is fastest on the machine at hand is kept, by a trial in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from batches import flat
from figures import Figure, show
from lockstep import Worker
from training_sides import steps_of

SIDES = Path(__file__).with_name("training_sides.py")
ROUNDS = 5


@dataclass(frozen=True)
class Stage:
    """What both sides do.

    Attributes:
        name: Chooses it on the command line.
        what: In words.
        unit: What is counted a second: supervised tokens or pairs.
        job: What the sides are told.
        ours: Our side.
        peers: TRL's side and, of each of its settings, what its job has besides.
        least: Target of the speeds' ratio.
        most: Target of the peaks' ratio; None if memory is not measured.
    """

    name: str
    what: str
    unit: str
    job: dict[str, Any]
    ours: str
    peer: str
    least: float
    most: float | None
    peers: dict[str, dict[str, Any]] = field(default_factory=lambda: {"its default": {}})


STAGES = (
    Stage(
        "sft",
        "SFT, lengths of GSM8K and Self-Instruct, 2,048 tokens a step",
        "supervised tokens/s",
        {"stage": "sft", "data": "documents", "tokens": 2048},
        "ours",
        "trl_sft",
        2.0,
        0.5,
        {
            "padding-free": {"padding_free": True},
            "padded": {},
            "padded, batches by length": {"by_length": True},
        },
    ),
    Stage(
        "dpo-gsm8k",
        "DPO, cached reference, GSM8K solutions, 4 pairs a step",
        "pairs/s",
        {"stage": "dpo", "data": "gsm8k", "pairs": 4, "forward": 4},
        "ours",
        "trl_dpo",
        5.0,
        0.4,
    ),
    Stage(
        "dpo-chat",
        "DPO, cached reference, chat-like pairs, 2 a step",
        "pairs/s",
        {"stage": "dpo", "data": "chat", "pairs": 2, "forward": 2},
        "ours",
        "trl_dpo",
        5.0,
        0.4,
    ),
    Stage(
        "reference-gsm8k",
        "reference pass, GSM8K solutions, 4 pairs a turn",
        "pairs/s",
        {"stage": "reference", "data": "gsm8k", "pairs": 4, "forward": 4},
        "ours_reference",
        "trl_reference",
        3.0,
        None,
    ),
    Stage(
        "reference-chat",
        "reference pass, chat-like pairs, 2 a turn",
        "pairs/s",
        {"stage": "reference", "data": "chat", "pairs": 2, "forward": 2},
        "ours_reference",
        "trl_reference",
        3.0,
        None,
    ),
)


def measure(rounds: int = ROUNDS, names: Iterable[str] = (), precision: str = "bf16-mixed") -> list[Figure]:
    """Speed and peak memory of each stage.

    Args:
        rounds: Steps of each side that count.
        names: Of the stages; all by default.
        precision: ``bf16-mixed`` (TRL's default) or ``32-true``.
    """
    chosen = [stage for stage in STAGES if not names or stage.name in set(names)]
    shared = {"precision": precision, "steps": rounds + 1, "layers": 30}
    with tempfile.TemporaryDirectory() as folder:
        shared["model"] = folder
        maker = Worker(SIDES, "model", json.dumps(shared | {"stage": "model"}))
        maker.finish()
        return [figure for stage in chosen for figure in compare(replace(stage, job=stage.job | shared), rounds)]


def compare(stage: Stage, rounds: int) -> list[Figure]:
    """The figures of a stage.

    Args:
        stage: With a job that names the model.
        rounds: Steps that count.
    """
    setting, trials = fastest(stage)
    jobs = {"ours": stage.job, "trl": stage.job | stage.peers[setting]}
    work = {side: [_count(stage, step) for step in steps_of(job)] for side, job in jobs.items()}
    sides = {
        "ours": Worker(SIDES, stage.ours, json.dumps(stage.job)),
        "trl": Worker(SIDES, stage.peer, json.dumps(jobs["trl"])),
    }
    try:
        first = {side: worker.turn() for side, worker in sides.items()}
        turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        matmul = []
        for number in range(1, rounds + 1):
            for side in sorted(sides, reverse=number % 2 == 0):
                turns[side].append(sides[side].turn())
            matmul.append(matmul_flops(stage.job["precision"]))
    finally:
        for worker in sides.values():
            worker.close()
    speed = {side: [n / turn["seconds"] for n, turn in zip(work[side][1:], turns[side], strict=True)] for side in sides}
    ahead = [
        turn["tokens"] * first["ours"]["flops"] / first["ours"]["tokens"] / turn["seconds"] for turn in turns["ours"]
    ]
    extra = {
        "GFLOP/s": median(ahead) / 1e9,
        "GFLOP/s of a large matmul": median(matmul) / 1e9,
        "share of the matmul's FLOP/s": median(one / other for one, other in zip(ahead, matmul, strict=True)),
        "tokens a step": median(turn["tokens"] for turn in turns["ours"]),
        "tokens a step, TRL": median(turn["tokens"] for turn in turns["trl"]),
    } | trials
    if setting != "padded, batches by length":
        extra["largest difference of a step's losses"] = max(
            abs(one["loss"] - other["loss"]) for one, other in zip(turns["ours"], turns["trl"], strict=True)
        )
    command = f"python benchmarks/training.py --only {stage.name}"
    against = f"TRL, {setting}"
    figures = [
        Figure(
            stage.what,
            stage.unit,
            speed["ours"],
            speed["trl"],
            against,
            least=stage.least,
            command=command,
            extra=extra,
        )
    ]
    if stage.most is not None:
        peaks = {side: [turns[side][-1]["peak_mib"]] for side in sides}
        figures.append(
            Figure(
                f"{stage.what}: peak memory",
                "MiB",
                peaks["ours"],
                peaks["trl"],
                against,
                most=stage.most,
                command=command,
            )
        )
    return figures


def fastest(stage: Stage) -> tuple[str, dict[str, float]]:
    """Which of TRL's settings is fastest here, and what each did in a step after the first.

    Args:
        stage: With a job that names the model.
    """
    if len(stage.peers) == 1:
        return next(iter(stage.peers)), {}
    speeds = {}
    for name, setting in stage.peers.items():
        job = stage.job | setting | {"steps": 3}
        worker = Worker(SIDES, stage.peer, json.dumps(job))
        seconds = [worker.turn()["seconds"] for _ in range(3)][1:]
        worker.close()
        speeds[name] = sum(_count(stage, step) for step in steps_of(job)[1:]) / sum(seconds)
    return max(speeds, key=lambda name: speeds[name]), {
        f"TRL in a trial, {name}": speed for name, speed in speeds.items()
    }


def matmul_flops(precision: str, size: int = 4096) -> float:
    """FLOP/s of a large matrix product, in the precision of training.

    Args:
        precision: Of the Trainer.
        size: Rows and columns.
    """
    torch.set_num_threads(2)
    one = torch.randn(size, size, dtype=torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    start = time.perf_counter()
    one @ one
    return 2 * size**3 / (time.perf_counter() - start)


def _count(stage: Stage, step: list[Any]) -> int:
    return len(step) if "pairs" in stage.job else sum(item.targets for item in flat([step]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], choices=[stage.name for stage in STAGES])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--precision", default="bf16-mixed", choices=["bf16-mixed", "32-true"])
    options = parser.parse_args()
    show(measure(options.rounds, options.only, options.precision))


if __name__ == "__main__":
    main()
