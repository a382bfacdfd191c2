"""The benchmarks' paired_benchmark: which of the peer's settings is kept, and what a round counts."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tests.benchmarks import ROOT, benchmark

ROUNDS = 3
MEMORY = {"peak_mib": 3.0, "growth_mib": 1.0}


class Side:
    """A worker whose turns take as long as it says; None fails."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.turns, self.closed = seconds, 0, False

    def turn(self) -> dict[str, Any]:
        if self.seconds is None:
            raise SystemExit("no memory")
        self.turns += 1
        return {"seconds": self.seconds, "flops": 10.0, "losses": [0.5], "tokens": 7, **MEMORY}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def paired_benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = benchmark("paired_benchmark")
    monkeypatch.setattr(module, "matmul_flops", lambda *_: 20.0)
    monkeypatch.setattr(module, "find_spec", lambda _: True)
    return module


def run_benchmark(
    paired_benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str = "cpu", **seconds: float | None
) -> tuple[Any, dict[str, Side]]:
    sides = {name: Side(value) for name, value in seconds.items()}
    monkeypatch.setattr(
        paired_benchmark, "_worker", lambda side, job: sides[job["name"] if side == "trl_dpo" else "ours"]
    )
    job = {"stage": "dpo", "data": "gsm8k", "pairs": 2, "accumulate": 1, "device": device, "precision": "32-true"}
    settings = {name: {"name": name} for name in sides if name != "ours"}
    paired = paired_benchmark.PairedBenchmark(
        paired_benchmark.Stage("dpo", "DPO", "pairs/s", job, "ours", "trl_dpo", settings, len, least=5.0), ROUNDS
    )
    paired.run()
    return paired, sides


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_fastest_setting_goes_on_and_the_others_are_ended(
    paired_benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    paired, sides = run_benchmark(paired_benchmark, monkeypatch, device, ours=1.0, slow=8.0, fast=4.0, slower=9.0)
    assert paired.against == "TRL, fast"
    untimed = paired.warm_up + paired.trial
    assert {name: side.turns for name, side in sides.items()} == {
        "ours": untimed + ROUNDS,
        "fast": untimed + ROUNDS,
        "slow": untimed,
        "slower": untimed,
    }
    assert all(side.closed for side in sides.values())
    speed, memory = paired.measurements()
    # two pairs a step on both sides, so the speeds' ratio is that of the seconds
    assert speed.ratios == pytest.approx([4.0] * ROUNDS)
    assert memory.ratios == [1.0]
    assert paired.shares == [0.5] * ROUNDS  # 10 FLOP/s of 20


def test_a_setting_that_fails_is_named_and_the_rest_goes_on(
    paired_benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    paired, sides = run_benchmark(paired_benchmark, monkeypatch, ours=1.0, broken=None, works=2.0)
    assert paired.errors == {"broken": "no memory"}
    assert paired.against == "TRL, works"
    assert sides["broken"].closed


def test_without_a_peer_that_runs_ours_goes_on_alone(
    paired_benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    paired, _ = run_benchmark(paired_benchmark, monkeypatch, ours=1.0, broken=None)
    speed, memory = paired.measurements()
    assert (speed.peer, speed.met, memory.peer) == ([], None, [])


def test_if_ours_fails_the_duel_does(paired_benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no memory"):
        run_benchmark(paired_benchmark, monkeypatch, ours=None, works=2.0)


def test_by_length_the_same_documents_are_in_steps_of_the_same_sizes(paired_benchmark: ModuleType) -> None:
    batches = benchmark("batches")
    mixed, by_length = (batches.documents(5, 2048, flag, [512]) for flag in (False, True))
    found = [sorted(map(str, batches.flat(steps))) for steps in (mixed, by_length)]
    assert found[0] == found[1]
    longest = max(item.length for item in batches.flat(mixed))
    for one, other in zip(mixed, by_length, strict=True):
        assert abs(sum(item.length for item in one) - sum(item.length for item in other)) <= longest
    padded = [sum(len(step) * max(item.length for item in step) for step in steps) for steps in (mixed, by_length)]
    assert padded[1] < padded[0]
