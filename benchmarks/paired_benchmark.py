"""Ours and another trainer in turns on one device, and the measurements of that."""

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
from batches import Item, flat, grouped, steps_of
from interleaved import Worker, ended
from measurements import Measurement

HERE = Path(__file__).parent
OURS, PEER = "ours", "peer"
SCRIPTS = {"trl": "trl_workers.py", "before": "before_workers.py", "grpo": "grpo_workers.py"}
"""Of the sides whose names begin so; all others are in ``training_workers.py``."""
PEAKS = {"peak_mib": "peak memory", "above_libraries_mib": "peak memory above the loaded libraries"}


@dataclass(frozen=True)
class Stage:
    """What both sides do.

    Attributes:
        name: Chooses it on the command line.
        what: In words.
        unit: What is counted a second.
        job: What the sides are told; ``accumulate`` micro-batches are a turn.
        ours: Our side, in one of SCRIPTS.
        peer: The other side, likewise.
        settings: Of the peer, by name, what its job has besides: the fastest is kept.
        count: What is counted, of some items.
        least: Target of the speeds' ratio.
        most: Target of the peaks' ratio; None if there is none.
        peak: Which of PEAKS is compared; empty if none is.
        command: What measures this stage alone.
        before: A side of ``training_workers.py`` that is run first, alone: it makes what the others read.
        against: Name of the peer.
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
    peak: str = "peak_mib"
    command: str = ""
    before: str = ""
    against: str = "TRL"


@dataclass
class PairedBenchmark:
    """Ours and another trainer in turns.

    Attributes:
        stage: What they do; its job names the model.
        rounds: Turns that count.
        warm_up: Turns that do not: kernels are chosen and memory is claimed in them.
        trial: Turns after the warm-up that tell which of the peer's settings is fastest, and do not count either.
        large: Rows of the matrix product that the speeds are compared with.
        against: The peer in the setting that was fastest.
        errors: What kept the peer from running, by setting.
        trials: Tokens a second in the trial, a prompt counted once an item, by the peer's setting.
        peaks: The stage's peak after the trial, by the peer's setting.
        jobs: What each is told: ours, the peer in each setting, and as ``peer`` in the one that was kept.
        turns: What ``ours`` and ``peer`` tell of the turns that count.
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
    peaks: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    turns: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    matmul: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Let both sides train.

        Raises:
            SystemExit: If ours fails; where the peer cannot run, ours goes on alone.
        """
        missing = "trl" in self.stage.peer and find_spec("trl") is None
        names = [] if missing else list(self.stage.settings)
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
        stage, both = self.stage, PEER in self.turns
        speed = {side: self._speeds(side) for side in self.turns}
        common = {"against": self.against, "command": stage.command}
        found = [
            Measurement(
                stage.what,
                stage.unit,
                speed[OURS],
                speed.get(PEER, []),
                least=stage.least if both else None,
                extra=self._extra(),
                **common,
            )
        ]
        if stage.peak:
            peaks = {side: [turns[-1][stage.peak]] for side, turns in self.turns.items()}
            most = stage.most if both else None
            what = f"{stage.what}: {PEAKS[stage.peak]}"
            grown = {
                f"MiB above the loaded model's, {self._name(side)}": turns[-1]["growth_mib"]
                for side, turns in self.turns.items()
            }
            grown |= {f"MiB after a trial, {stage.against}, {name}": peak for name, peak in self.peaks.items()}
            found.append(Measurement(what, "MiB", peaks[OURS], peaks.get(PEER, []), most=most, extra=grown, **common))
        return found

    @property
    def rates(self) -> list[float]:
        """FLOP/s of ours, a round each: those that the model asks for, none that are done to save memory."""
        return [turn["flops"] / turn["seconds"] for turn in self.turns[OURS]]

    @property
    def shares(self) -> list[float]:
        """Those over a large matrix product's FLOP/s in the same round."""
        return [rate / large for rate, large in zip(self.rates, self.matmul, strict=True)]

    def items(self, name: str) -> list[list[Item]]:
        """What each turn trains on.

        Args:
            name: Ours, a setting of the peer, or the peer in the one that was kept.
        """
        job = self.jobs[name]
        return [list(flat(part)) for part in grouped(steps_of(job), job["accumulate"])]

    def _speeds(self, side: str) -> list[float]:
        """Of each round. By length, other items are in a step: what is counted is its tokens' share of the whole."""
        items = self.items(side)
        share = sum(map(self.stage.count, items)) / sum(map(tokens, items))
        by_length = "by_length" in self.jobs[side]
        counts = [tokens(part) * share if by_length else self.stage.count(part) for part in items[-self.rounds :]]
        return [count / turn["seconds"] for count, turn in zip(counts, self.turns[side], strict=True)]

    def _extra(self) -> dict[str, float]:
        extra = {
            "GFLOP/s": median(self.rates) / 1e9,
            "GFLOP/s of a large matmul": median(self.matmul) / 1e9,
            "share of the matmul's FLOP/s": median(self.shares),
        }
        for side, turns in self.turns.items():
            if seen := median(turn["tokens"] for turn in turns):  # TRL's reference pass goes around what counts
                extra[f"tokens a step through the model, {self._name(side)}"] = seen
            extra[f"seconds a step, {self._name(side)}"] = median(turn["seconds"] for turn in turns)
        if PEER in self.turns and "by_length" not in self.jobs[PEER]:
            ours, theirs = ([self._loss(turn["losses"]) for turn in self.turns[side]] for side in (OURS, PEER))
            apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
            extra["largest difference of a step's losses"] = apart
            norms = [[norm for turn in self.turns[side] for norm in turn.get("norms", ())] for side in (OURS, PEER)]
            if apart_by := [abs(one - other) / other for one, other in zip(*norms, strict=False)]:
                extra["largest relative difference of a step's gradient norms"] = max(apart_by)
        title = f"tokens/s in a trial, {self.stage.against}"
        return extra | {f"{title}, {name}": speed for name, speed in self.trials.items()}

    def _loss(self, parts: list[float]) -> float:
        """Of a step. Ours is told once; a micro-batch of TRL's SFT or GRPO tells its part of it, others their mean."""
        in_parts = self.stage.peer in ("trl_sft", "grpo_trl")
        return sum(parts) / (self.stage.job.get("updates", 1) if in_parts else len(parts))

    def _name(self, side: str) -> str:
        return OURS if side == OURS else self.stage.against

    def _side(self, name: str) -> str:
        return self.stage.ours if name == OURS else self.stage.peer

    def _job(self, name: str) -> dict[str, Any]:
        job = self.stage.job | self.stage.settings.get(name, {})
        return job | {"steps": (self.warm_up + self.trial + self.rounds) * job["accumulate"]}

    def _warm_up(self, workers: dict[str, Worker], names: list[str]) -> None:
        """Turns that do not count; the peer's settings are held against each other by the last of them."""
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for name in names * (self.warm_up + self.trial):
            if name not in self.errors:
                seconds[name] += self._turn(workers, name)
        for name in set(names) - {OURS} - set(self.errors):
            work = self.items(name)[self.warm_up :][: self.trial]
            self.trials[name] = sum(map(tokens, work)) / sum(seconds[name][self.warm_up :])

    def _turn(self, workers: dict[str, Worker], name: str) -> list[float]:
        """Seconds of a turn, none of one that fails: the peer's setting is left out then."""
        try:
            told = workers[name].turn()
            if name != OURS and self.stage.peak:
                self.peaks[name] = told[self.stage.peak]
            return [told["seconds"]]
        except SystemExit as error:
            if name == OURS:
                raise
            self.errors[name] = str(error)[-600:]
            workers.pop(name).close()
            return []

    def _keep_fastest(self, workers: dict[str, Worker]) -> None:
        """End the peer's sides but the one that was fastest so far."""
        for name in sorted(workers.keys() & self.trials.keys(), key=lambda name: self.trials[name])[:-1]:
            workers.pop(name).close()

    def _take_turns(self, workers: dict[str, Worker]) -> None:
        sides = {OURS if name == OURS else PEER: worker for name, worker in workers.items()}
        for setting in workers.keys() - {OURS}:
            self.against, self.jobs[PEER] = f"{self.stage.against}, {setting}", self.jobs[setting]
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
    script = SCRIPTS.get(side.split("_")[0], "training_workers.py")
    return Worker(HERE / script, side, json.dumps(job))
