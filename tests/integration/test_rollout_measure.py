"""The measure of an online round, on a tiny model in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import ROOT, benchmark

TINY = {"layers": 1, "hidden": 32, "vocabulary": 1000, "prompts": 4, "samples": 2, "new_tokens": 3, "batch_size": 4}
JOB = {**TINY, "items": "pairs", "device": "cpu", "engine": "transformers", "rounds": 3}


def test_both_sides_make_as_many_tokens_of_the_same_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    job: dict[str, Any] = {**JOB, "folder": str(tmp_path)}
    turns: list[dict[str, float]] = []
    benchmark("rollout_workers").run(job, lambda **told: turns.append(told))
    assert len(turns) == 3
    for turn in turns:
        for side in ("tokens", "bare_tokens"):
            assert 20 <= turn[side] <= 24  # 4 prompts x 2 x 3, less what a rare end cuts off
        assert turn["sample_seconds"] + turn["open_seconds"] + turn["score_seconds"] < turn["ours_seconds"]


def test_a_ratio_is_of_tokens_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parts = {"open_seconds": 0.5, "sample_seconds": 1.0, "score_seconds": 0.25}
    turn = {"tokens": 90, "ours_seconds": 2.0, "bare_tokens": 100, "bare_seconds": 2.0, **parts}
    found = benchmark("rollout").measurement("transformers", JOB, [turn])
    assert found.ratio == pytest.approx(0.9)
    assert [value for name, value in found.extra.items() if "rest" in name] == [0.25]


@pytest.mark.vllm
@pytest.mark.slow
def test_the_measure_runs_with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rollout = benchmark("rollout")
    monkeypatch.setattr(rollout, "PEERS", {"vllm": rollout.PEERS["vllm"]})  # test_gpu_benchmark.py runs the other
    assert [found.against for found in rollout.measure(1, threads=1, **TINY)] == ["bare LLM.generate"]
