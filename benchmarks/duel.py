"""Ours and TRL's trainers in turns on one device, and the figures of that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from batches import Item
from figures import Figure
from lockstep import Worker
from training_sides import grouped, steps_of

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Stage:
    """What both sides do.

    Attributes:
        name: Chooses it on the command line.
        what: In words.
        unit: What is counted a second.
        job: What the sides are told; ``accumulate`` micro-batches are a turn.
        ours: Our side, in ``training_sides.py``.
        peer: TRL's, in ``trl_sides.py``.
        settings: Of TRL's side, what its job has besides: the fastest is kept.
        count: What is counted, of a micro-batch.
        least: Target of the speeds' ratio.
        most: Target of the peaks' ratio; None if there is none.
        memory: Whether peaks are compared.
        command: What measures this stage alone.
        trial: What the job has besides in the trial of TRL's settings, to be done sooner.
    """

    name: str
    what: str
    unit: str
    job: dict[str, Any]
    ours: str
    peer: str
    settings: dict[str, dict[str, Any]]
    count: Callable[[list[Item]], int]
    least: float | None = None
    most: float | None = None
    memory: bool = True
    command: str = ""
    trial: dict[str, Any] = field(default_factory=dict)


@dataclass
class Duel:
    """Ours and TRL's trainer in turns.

    Attributes:
        stage: What they do; its job names the model.
        rounds: Turns that count.
        warm_up: Turns that do not: kernels are chosen and memory is claimed in them.
        trial: Turns, after the warm-up, that tell which of TRL's settings is fastest.
        large: Rows of the matrix product that the speeds are compared with.
        errors: What kept TRL's side from running.
    """

    stage: Stage
    rounds: int
    warm_up: int = 1
    trial: int = 1
    large: int = 2048
    against: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    trials: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    turns: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    matmul: list[float] = field(default_factory=list)

    def fight(self) -> None:
        """Let both sides train.

        Raises:
            SystemExit: If ours fails; where TRL cannot run, ours goes on alone.
        """
        self.jobs["ours"] = self._lasting(self.stage.job, self.warm_up + self.rounds)
        setting = self._fastest() if find_spec("trl") is not None else None
        if setting is not None:
            self.against = f"TRL, {setting}"
            self.jobs["trl"] = self._lasting(self.stage.job | self.stage.settings[setting], self.warm_up + self.rounds)
        self._take_turns()

    def figures(self) -> list[Figure]:
        """Speed, and peak memory where the stage has it."""
        stage, both = self.stage, "trl" in self.turns
        speed = {side: self._speeds(side) for side in self.turns}
        common = {"against": self.against, "command": stage.command}
        found = [
            Figure(
                stage.what,
                stage.unit,
                speed["ours"],
                speed.get("trl", []),
                least=stage.least if both else None,
                extra=self._extra(),
                **common,
            )
        ]
        if stage.memory:
            peaks = {side: [turns[-1]["peak_mib"]] for side, turns in self.turns.items()}
            most = stage.most if both else None
            what = f"{stage.what}: peak memory"
            grown = {
                f"MiB above the loaded model's, {side}": turns[-1]["growth_mib"] for side, turns in self.turns.items()
            }
            found.append(Figure(what, "MiB", peaks["ours"], peaks.get("trl", []), most=most, extra=grown, **common))
        return found

    @property
    def rates(self) -> list[float]:
        """FLOP/s of ours, a round each: those that the model asks for, none that are done to save memory."""
        return [turn["flops"] / turn["seconds"] for turn in self.turns["ours"]]

    @property
    def shares(self) -> list[float]:
        """Those over a large matrix product's FLOP/s in the same round."""
        return [rate / large for rate, large in zip(self.rates, self.matmul, strict=True)]

    def _speeds(self, side: str) -> list[float]:
        return [n / turn["seconds"] for n, turn in zip(self._work(self.jobs[side]), self.turns[side], strict=True)]

    def _work(self, job: dict[str, Any]) -> list[int]:
        """What is counted of each turn that does not warm up."""
        return [sum(map(self.stage.count, part)) for part in grouped(steps_of(job), job["accumulate"])][self.warm_up :]

    def _extra(self) -> dict[str, float]:
        extra = {
            "GFLOP/s": median(self.rates) / 1e9,
            "GFLOP/s of a large matmul": median(self.matmul) / 1e9,
            "share of the matmul's FLOP/s": median(self.shares),
        }
        for side, turns in self.turns.items():
            if tokens := median(turn["tokens"] for turn in turns):  # TRL's reference pass goes around what counts
                extra[f"tokens a step through the model, {side}"] = tokens
            extra[f"seconds a step, {side}"] = median(turn["seconds"] for turn in turns)
        if "trl" in self.turns and "by_length" not in self.jobs["trl"]:
            ours, theirs = ([self._loss(side, turn["losses"]) for turn in self.turns[side]] for side in ("ours", "trl"))
            apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
            extra["largest difference of a step's losses"] = apart
        return extra | self.trials

    def _loss(self, side: str, parts: list[float]) -> float:
        """Of a step: ours is told once; TRL's SFT loss is a part a micro-batch, its DPO loss the mean of one."""
        return sum(parts) / (len(parts) if side == "trl" and self.stage.peer == "trl_dpo" else 1)

    def _fastest(self) -> str | None:
        """TRL's setting that is fastest here; the only one without a trial, None if none runs."""
        if len(self.stage.settings) == 1:
            return next(iter(self.stage.settings))
        # On a CPU they load side by side, which takes half the time; a GPU's memory is for one at a time.
        names = list(self.stage.settings)
        groups = [[name] for name in names] if self.stage.job["device"] == "cuda" else [names]
        speeds = {name: speed for group in groups for name, speed in self._tried(group).items()}
        self.trials = {f"{self.stage.unit} in a trial, TRL, {name}": speed for name, speed in speeds.items()}
        return max(speeds, key=lambda name: speeds[name], default=None)

    def _tried(self, names: list[str]) -> dict[str, float]:
        """What is counted a second by TRL in some settings, those left out that do not run."""
        common, turns = self.stage.job | self.stage.trial, self.warm_up + self.trial
        jobs = {name: self._lasting(common | self.stage.settings[name], turns) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        with _workers({name: _worker(self.stage.peer, job) for name, job in jobs.items()}) as workers:
            for name in names * turns:
                if f"TRL, {name}" in self.errors:
                    continue
                try:
                    seconds[name].append(workers[name].turn()["seconds"])
                except SystemExit as error:
                    self.errors[f"TRL, {name}"] = str(error)[-600:]
        fit = [name for name in names if f"TRL, {name}" not in self.errors]
        return {name: sum(self._work(jobs[name])) / sum(seconds[name][self.warm_up :]) for name in fit}

    def _take_turns(self) -> None:
        peers = {"ours": self.stage.ours, "trl": self.stage.peer}
        with _workers({side: _worker(peers[side], job) for side, job in self.jobs.items()}) as workers:
            for worker in list(workers.values()) * self.warm_up:
                worker.turn()
            self.turns = {side: [] for side in workers}
            for number in range(self.rounds):
                for side in sorted(workers, reverse=number % 2 == 1):
                    self.turns[side].append(workers[side].turn())
                self.matmul.append(matmul_flops(self.stage.job["device"], self.stage.job["precision"], self.large))

    def _lasting(self, job: dict[str, Any], turns: int) -> dict[str, Any]:
        return job | {"steps": turns * job["accumulate"]}


def make_model(job: dict[str, Any]) -> None:
    """Write the random model that both sides of a job load.

    Args:
        job: With ``model``, a folder, and ``shape``.
    """
    _worker("model", job).finish()


def fastest_precision() -> str:
    """``bf16-mixed`` where the CPU multiplies matrices faster in bf16, else ``32-true``."""
    half, full = (matmul_flops("cpu", precision, 512) for precision in ("bf16-mixed", "32-true"))
    return "bf16-mixed" if half > full else "32-true"


def matmul_flops(device: str, precision: str, size: int) -> float:
    """FLOP/s of large matrix products in the precision of training, one after the other.

    Args:
        device: ``cuda`` or ``cpu``.
        precision: Of the Trainer.
        size: Rows and columns.
    """
    half = precision.startswith("bf16")
    one = torch.randn(size, size, dtype=torch.bfloat16 if half else torch.float32, device=device)
    for count in (3, 10) if device == "cuda" else (1, 4):  # the first few warm up
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            one @ one
        if device == "cuda":
            torch.cuda.synchronize()
    return 2 * size**3 * count / (time.perf_counter() - start)


def _worker(side: str, job: dict[str, Any]) -> Worker:
    script = "trl_sides.py" if side.startswith("trl") else "training_sides.py"
    return Worker(HERE / script, side, json.dumps(job))


@contextmanager
def _workers(workers: dict[str, Worker]) -> Iterator[dict[str, Worker]]:
    """Workers that are ended whatever happens: they hold most of the device's memory."""
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()
