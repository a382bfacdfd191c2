"""Ours and TRL's trainers in turns on one device, and the figures of that (for ``gpu.py``)."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from batches import Item
from figures import Figure
from gpu_checks import Check
from lockstep import Worker
from training_sides import steps_of

SIDES = Path(__file__).with_name("gpu_sides.py")
WARM_UP = 2
"""Turns that do not count: kernels are chosen and memory is claimed in them."""
TRIAL = 2
"""Turns that tell which of TRL's settings is fastest."""
LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"stage": "sft", "data": "documents", "tokens": 8192, "accumulate": 4},
    "dpo": {"stage": "dpo", "data": "chat", "pairs": 10, "accumulate": 2},
}
SMALL: dict[str, dict[str, Any]] = {
    "sft": {"tokens": 512, "accumulate": 2},
    "dpo": {"data": "gsm8k", "pairs": 1, "accumulate": 2},
}


@dataclass
class Run:
    """What is asked for, and what was found so far.

    Attributes:
        device: ``cuda`` or ``cpu``.
        tiny: Whether the model and its rows are made small.
        rounds: Turns of each side that count.
        peak: Dense bf16 FLOP/s of the device; None where that is not known.
    """

    device: str
    tiny: bool
    rounds: int
    peak: float | None
    machine: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write all of it.

        Args:
            path: A JSON file.
        """
        figures = [asdict(figure) | {"ratio": figure.ratio, "met": figure.met} for figure in self.figures]
        tested = [asdict(check) | {"passed": check.passed} for check in self.checks]
        found = {"machine": self.machine, "parity": tested, "figures": figures}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found | {"errors": self.errors, "seconds": self.seconds}, indent=2) + "\n", "utf-8")


class Duel:
    """Ours and TRL's trainer in turns.

    Args:
        run: What is asked for; figures are put there.
        stage: ``sft`` or ``dpo``.
        peer: TRL's side.
        settings: Of TRL's side, by name: the fastest is kept.
    """

    def __init__(self, run: Run, stage: str, peer: str, settings: dict[str, dict[str, Any]]) -> None:
        self.run, self.stage, self.peer, self.settings = run, stage, peer, settings
        precision = "bf16-mixed" if run.device == "cuda" else "32-true"
        place = {"device": run.device, "precision": precision}
        self.job: dict[str, Any] = STAGES[stage] | (SMALL[stage] if run.tiny else {}) | place
        self.turns: dict[str, list[dict[str, Any]]] = {}
        self.matmul: list[float] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.against = ""
        self.trials: dict[str, float] = {}

    def fight(self) -> None:
        """Let both sides train.

        Raises:
            SystemExit: If ours fails; TRL's failure is kept among the run's errors, and ours goes on alone.
        """
        with tempfile.TemporaryDirectory() as folder:
            shape = TINY if self.run.tiny else LLAMA_1B
            self.job |= {"model": folder, "shape": shape}
            _worker("model", self.job).finish()
            self.jobs["ours"] = self._lasting(self.job, WARM_UP + self.run.rounds)
            if find_spec("trl") is None:
                print("TRL is not installed: ours alone")
            elif setting := self._fastest():
                self.against = f"TRL, {setting}"
                self.jobs["trl"] = self._lasting(self.job | self.settings[setting], WARM_UP + self.run.rounds)
            self._take_turns()

    def tell(self, what: str, unit: str, count: Callable[[list[Item]], int], least: float, most: float | None) -> None:
        """Make figures of what was found.

        Args:
            what: Was measured.
            unit: Of the speed.
            count: What is counted, of a micro-batch.
            least: Target of the speeds' ratio.
            most: Target of the peaks' ratio.
        """
        done: dict[str, list[float]] = {}
        for side, turns in self.turns.items():
            work = [sum(map(count, micro)) for micro in self._work(side)]
            done[side] = [n / turn["seconds"] for n, turn in zip(work, turns, strict=True)]
        peaks = {side: [turns[-1]["peak_mib"]] for side, turns in self.turns.items()}
        common = {"against": self.against, "command": f"python benchmarks/gpu.py --only {self.stage}"}
        both = "trl" in self.turns
        speed = Figure(what, unit, done["ours"], done.get("trl", []), least=least if both else None, **common)
        memory = Figure(f"{what}: peak memory", "MiB", peaks["ours"], peaks.get("trl", []), **common)
        self.run.figures += [
            replace(speed, extra=self._extra()),
            *self._mfu(what),
            replace(memory, most=most if both else None),
        ]

    def _work(self, side: str) -> list[list[list[Item]]]:
        """The micro-batches of each turn that counted."""
        steps, each = steps_of(self.jobs[side]), self.job["accumulate"]
        return [steps[start : start + each] for start in range(WARM_UP * each, len(steps), each)]

    def _mfu(self, what: str) -> Iterator[Figure]:
        rates = [turn["flops"] / turn["seconds"] for turn in self.turns["ours"]]
        if self.run.peak:
            least = 0.5 if self.stage == "sft" else None
            yield Figure(
                f"{what}: MFU", "of the dense bf16 peak", [rate / self.run.peak for rate in rates], least=least
            )
        shares = [rate / large for rate, large in zip(rates, self.matmul, strict=True)]
        large = {"TFLOP/s of a large matmul": median(self.matmul) / 1e12, "TFLOP/s": median(rates) / 1e12}
        yield Figure(f"{what}: FLOP/s", "of a large matmul's in the same round", shares, extra=large)

    def _extra(self) -> dict[str, float]:
        extra = dict(self.trials)
        for side, turns in self.turns.items():
            extra[f"tokens a step through the model, {side}"] = median(turn["tokens"] for turn in turns)
            extra[f"seconds a step, {side}"] = median(turn["seconds"] for turn in turns)
        if "trl" in self.turns and "by_length" not in self.jobs["trl"]:
            losses = ([turn["losses"] for turn in self.turns[side]] for side in ("ours", "trl"))
            pairs = ((one[-1], self._step_loss(other)) for one, other in zip(*losses, strict=True))
            extra["largest difference of a step's losses"] = max(abs(one - other) for one, other in pairs)
        return extra

    def _step_loss(self, parts: list[float]) -> float:
        """Of TRL's micro-batches: its SFT loss is a part of the step's, its DPO loss a mean of its own."""
        return sum(parts) / (1 if self.stage == "sft" else len(parts))

    def _fastest(self) -> str | None:
        for name, setting in self.settings.items():
            job = self._lasting(self.job | setting, 1 + TRIAL)
            try:
                with _workers({name: _worker(self.peer, job)}) as workers:
                    seconds = [workers[name].turn()["seconds"] for _ in range(1 + TRIAL)][1:]
                self.trials[f"seconds a step in a trial, TRL, {name}"] = median(seconds)
            except SystemExit as error:
                print(f"TRL, {name}, left out: {str(error)[-600:]}")
        if not self.trials:
            self.run.errors[f"{self.stage}: TRL"] = "none of its settings ran"
            return None
        return min(self.trials, key=lambda name: self.trials[name]).removeprefix("seconds a step in a trial, TRL, ")

    def _take_turns(self) -> None:
        peers = {"ours": "ours", "trl": self.peer}
        with _workers({side: _worker(peers[side], job) for side, job in self.jobs.items()}) as workers:
            for _ in range(WARM_UP):
                for worker in workers.values():
                    worker.turn()
            self.turns = {side: [] for side in workers}
            for number in range(self.run.rounds):
                for side in sorted(workers, reverse=number % 2 == 1):
                    self.turns[side].append(workers[side].turn())
                self.matmul.append(matmul_flops(self.run.device, 512 if self.run.tiny else 8192))

    def _lasting(self, job: dict[str, Any], turns: int) -> dict[str, Any]:
        return job | {"steps": turns * self.job["accumulate"]}


def matmul_flops(device: str, size: int) -> float:
    """FLOP/s of large matrix products, one after the other, in the precision that is trained in.

    Args:
        device: ``cuda`` or ``cpu``.
        size: Rows and columns.
    """
    one = torch.randn(size, size, dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device)
    for count in (3, 10):  # the first few warm up
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            one @ one
        if device == "cuda":
            torch.cuda.synchronize()
    return 2 * size**3 * count / (time.perf_counter() - start)


def _worker(side: str, job: dict[str, Any]) -> Worker:
    return Worker(SIDES, side, json.dumps(job))


@contextmanager
def _workers(workers: dict[str, Worker]) -> Iterator[dict[str, Worker]]:
    """Workers that are ended whatever happens: they hold most of the device's memory."""
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()
