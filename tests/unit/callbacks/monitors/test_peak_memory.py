"""The peak of a step is its own, and no later one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lion_lightning.callbacks import PeakMemory
from lion_lightning.callbacks.monitors import peak_memory
from tests.unit.callbacks.conftest import Bench

MIB = 2**20
GPU = torch.device("cuda", 0)


class Allocates(Callback):
    """Takes 64 MiB in the third step, and gives them back."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            torch.ones(64 * MIB // 4)


class Log(Callback):
    """What was logged after each step, in GiB."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        found = trainer.callback_metrics.items()
        self.values.append({name: value.item() for name, value in found if name.startswith("perf/")})


def fit(bench: Bench, every: int = 1) -> list[dict[str, float]]:
    log = Log()
    bench.fit(bench.trainer(PeakMemory(every), log, Allocates(), logger=False, limit_val_batches=0))
    return log.values


@pytest.mark.skipif(not peak_memory.CLEAR.exists(), reason="needs Linux")
def test_a_step_that_allocates_shows_and_the_next_does_not(bench: Bench) -> None:
    before, large, after = (step["perf/peak_memory"] for step in fit(bench)[1:4])
    assert large - before > 0.9 * 64 / 1024
    assert large - after > 0.9 * 64 / 1024
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**30
    assert after == pytest.approx(resident, rel=0.1)


@pytest.mark.skipif(not peak_memory.CLEAR.exists(), reason="needs Linux")
def test_a_value_is_over_all_steps_since_the_one_before(bench: Bench) -> None:
    values = [step.get("perf/peak_memory", 0.0) for step in fit(bench, every=2)]
    assert values[0] == 0.0
    assert values[1] == values[2]
    assert values[3] - values[1] > 0.9 * 64 / 1024  # the third step and the fourth
    assert values[3] - values[5] > 0.9 * 64 / 1024


def test_the_largest_rank_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def reduce(value: torch.Tensor, reduce_op: str, **_: Any) -> torch.Tensor:
        if reduce_op == "max":  # the step's metrics are summed
            asked.append(value.item())
            return value + 1.0
        return value

    log = Log()
    run = bench.trainer(PeakMemory(), log, logger=False, limit_val_batches=0)
    monkeypatch.setattr(run.strategy, "reduce", reduce)
    monkeypatch.setattr(peak_memory, "peaks", lambda device: {"peak_memory": 3 * 2**29})
    monkeypatch.setattr(peak_memory, "reset_peaks", lambda device: None)
    bench.fit(run)
    assert asked == [1.5] * 6
    assert log.values[-1] == {"perf/peak_memory": 2.5}


def test_a_gpu_says_what_tensors_held_and_what_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", done.append)
    assert peak_memory.peaks(GPU) == {"peak_memory": 5, "peak_memory_reserved": 7}
    peak_memory.reset_peaks(GPU)
    assert done == [GPU]


def test_a_system_that_does_not_tell_is_said_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peak_memory, "CLEAR", tmp_path / "proc" / "clear_refs")
    with pytest.warns(UserWarning, match="does not tell a process's peak"):
        assert fit(bench) == [{}] * 6


@pytest.mark.parametrize("status", [None, b"Name:\tpython\nVmRSS:\t5 kB\n"])
def test_a_system_that_takes_the_order_and_does_not_tell_is_said_once(
    status: bytes | None, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if status is not None:
        (tmp_path / "status").write_bytes(status)
    monkeypatch.setattr(peak_memory, "CLEAR", tmp_path / "clear_refs")
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "status")
    with pytest.warns(UserWarning, match="does not tell a process's peak"):
        assert fit(bench) == [{}] * 6


def test_the_name_of_a_process_may_have_any_letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_bytes(b"Name:\t\xfcbung\nVmHWM:\t    3 kB\nVmRSS:\t 2 kB\n")
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "status")
    assert peak_memory.peaks(torch.device("cpu")) == {"peak_memory": 3 * 1024}


def test_every_is_positive() -> None:
    with pytest.raises(ValueError, match=r"PeakMemory\.every: 0 must be at least 1"):
        PeakMemory(every=0)
