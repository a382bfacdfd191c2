"""Ours and TRL's trainers in turns on one device, and the measurements of that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from batches import Item, flat
from interleaved import Worker, ended
from measurements import Measurement
from training_workers import grouped, steps_of

HERE = Path(__file__).parent
OURS = "ours"


@dataclass(frozen=True)
class Stage:
    """What both sides do.

    Attributes:
        name: Chooses it on the command line.
        what: In words.
        unit: What is counted a second.
        job: What the sides are told; ``accumulate`` micro-batches are a turn.
        ours: Our side, in ``training_workers.py``.
        peer: TRL's, in ``trl_workers.py``.
        settings: Of TRL's side, by name, what its job has besides: the fastest is kept.
        count: What is counted, of some items.
        least: Target of the speeds' ratio.
        most: Target of the peaks' ratio; None if there is none.
        memory: Whether peaks are compared.
        command: What measures this stage alone.
        before: A side of ``training_workers.py`` that is run first, alone: it makes what the others read.
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
    before: str = ""


@dataclass
class PairedBenchmark:
    """Ours and TRL's trainer in turns.

    Attributes:
        stage: What they do; its job names the model.
        rounds: Turns that count.
        warm_up: Turns that do not: kernels are chosen and memory is claimed in them.
        trial: Turns after the warm-up that tell which of TRL's settings is fastest, and do not count either.
        large: Rows of the matrix product that the speeds are compared with.
        against: TRL in the setting that was fastest.
        errors: What kept TRL's side from running, by setting.
        trials: Tokens a second in the trial, a prompt counted once, by TRL's setting.
        jobs: What each is told: ours, TRL in each setting, and as ``trl`` in the one that was kept.
        turns: What ``ours`` and ``trl`` tell of the turns that count.
        matmul: FLOP/s of a large matrix product in each round.
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

    def run(self) -> None:
        """Let both sides train.

        Raises:
            SystemExit: If ours fails; where TRL cannot run, ours goes on alone.
        """
        names = list(self.stage.settings) if find_spec("trl") is not None else []
        self.jobs = {name: self._job(name) for name in (OURS, *names)}
        if self.stage.before:
            _worker(self.stage.before, self.jobs[OURS]).finish()
        # On a CPU all load side by side, which takes half the time; a GPU's memory is for two at a time.
        alone = self.stage.job["device"] == "cuda"
        with ended({}) as workers:
            for group in [*([name] for name in names), [OURS]] if alone else [[OURS, *names]]:
                workers.update({name: _worker(self._side(name), self.jobs[name]) for name in group})
                self._warm_up(workers, group)
                self._keep_fastest(workers)
            self._take_turns(workers)

    def measurements(self) -> list[Measurement]:
        """Speed, and peak memory where the stage has it."""
        stage, both = self.stage, "trl" in self.turns
        speed = {side: self._speeds(side) for side in self.turns}
        common = {"against": self.against, "command": stage.command}
        found = [
            Measurement(
                stage.what,
                stage.unit,
                speed[OURS],
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
            found.append(Measurement(what, "MiB", peaks[OURS], peaks.get("trl", []), most=most, extra=grown, **common))
        return found

    @property
    def rates(self) -> list[float]:
        """FLOP/s of ours, a round each: those that the model asks for, none that are done to save memory."""
        return [turn["flops"] / turn["seconds"] for turn in self.turns[OURS]]

    @property
    def shares(self) -> list[float]:
        """Those over a large matrix product's FLOP/s in the same round."""
        return [rate / large for rate, large in zip(self.rates, self.matmul, strict=True)]

    def _speeds(self, side: str) -> list[float]:
        """Of each round. What is counted in a step is its tokens' share of the whole: by length, others are in it."""
        items = self._items(side)
        share = sum(map(self.stage.count, items)) / sum(map(tokens, items))
        rounds = zip(items[-self.rounds :], self.turns[side], strict=True)
        return [tokens(part) * share / turn["seconds"] for part, turn in rounds]

    def _items(self, name: str) -> list[list[Item]]:
        """What each turn trains on."""
        job = self.jobs[name]
        return [list(flat(part)) for part in grouped(steps_of(job), job["accumulate"])]

    def _extra(self) -> dict[str, float]:
        extra = {
            "GFLOP/s": median(self.rates) / 1e9,
            "GFLOP/s of a large matmul": median(self.matmul) / 1e9,
            "share of the matmul's FLOP/s": median(self.shares),
        }
        for side, turns in self.turns.items():
            if seen := median(turn["tokens"] for turn in turns):  # TRL's reference pass goes around what counts
                extra[f"tokens a step through the model, {side}"] = seen
            extra[f"seconds a step, {side}"] = median(turn["seconds"] for turn in turns)
        if "trl" in self.turns and "by_length" not in self.jobs["trl"]:
            ours, theirs = ([self._loss(side, turn["losses"]) for turn in self.turns[side]] for side in (OURS, "trl"))
            apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
            extra["largest difference of a step's losses"] = apart
        trials = {f"tokens/s in a trial, TRL, {name}": speed for name, speed in self.trials.items()}
        return extra | trials

    def _loss(self, side: str, parts: list[float]) -> float:
        """Of a step: ours is told once; TRL's SFT loss is a part a micro-batch, its DPO loss the mean of one."""
        return sum(parts) / (len(parts) if side == "trl" and self.stage.peer == "trl_dpo" else 1)

    def _side(self, name: str) -> str:
        return self.stage.ours if name == OURS else self.stage.peer

    def _job(self, name: str) -> dict[str, Any]:
        job = self.stage.job | self.stage.settings.get(name, {})
        return job | {"steps": (self.warm_up + self.trial + self.rounds) * job["accumulate"]}

    def _warm_up(self, workers: dict[str, Worker], names: list[str]) -> None:
        """Turns that do not count; TRL's settings are held against each other by the last of them."""
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for name in names * (self.warm_up + self.trial):
            if name not in self.errors:
                seconds[name] += self._turn(workers, name)
        for name in set(names) - {OURS} - set(self.errors):
            work = self._items(name)[self.warm_up :][: self.trial]
            self.trials[name] = sum(map(tokens, work)) / sum(seconds[name][self.warm_up :])

    def _turn(self, workers: dict[str, Worker], name: str) -> list[float]:
        """Seconds of a turn, none of one that fails: TRL's setting is left out then."""
        try:
            return [workers[name].turn()["seconds"]]
        except SystemExit as error:
            if name == OURS:
                raise
            self.errors[name] = str(error)[-600:]
            workers.pop(name).close()
            return []

    def _keep_fastest(self, workers: dict[str, Worker]) -> None:
        """End TRL's sides but the one that was fastest so far."""
        for name in sorted(workers.keys() & self.trials.keys(), key=lambda name: self.trials[name])[:-1]:
            workers.pop(name).close()

    def _take_turns(self, workers: dict[str, Worker]) -> None:
        sides = {OURS if name == OURS else "trl": worker for name, worker in workers.items()}
        for setting in workers.keys() - {OURS}:
            self.against, self.jobs["trl"] = f"TRL, {setting}", self.jobs[setting]
        self.turns = {side: [] for side in sides}
        for number in range(self.rounds):
            for side in sorted(sides, reverse=number % 2 == 1):
                self.turns[side].append(sides[side].turn())
            self.matmul.append(matmul_flops(self.stage.job["device"], self.stage.job["precision"], self.large))


def tokens(items: list[Item]) -> int:
    """Of some items, a prompt counted once."""
    return sum(item.length for item in items)


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
    script = "trl_workers.py" if side.startswith("trl") else "training_workers.py"
    return Worker(HERE / script, side, json.dumps(job))
