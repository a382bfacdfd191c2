"""The benchmark of HealthMonitor: which faults it has, what becomes of a config, and the table."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import pytest

from lion_lightning.callbacks.monitors.health import Sampled
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.types import Answer, Prompt
from tests.benchmarks import ROOT, benchmark


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)


@pytest.fixture
def health() -> ModuleType:
    return benchmark("health")


def test_there_are_sixty_faults_five_or_more_of_each_symptom_and_fifty_healthy_runs(health: ModuleType) -> None:
    trained, runs = list(health.planted()), list(health.healthy())
    faults = Counter([case.symptom for case in trained] + [stream.symptom for stream in health.STREAMS])
    assert set(faults) == set(health.SYMPTOMS)
    assert min(faults.values()) >= 5
    assert faults.total() >= 60
    assert len(trained) >= 20
    assert len(runs) == 50
    assert len({case.folder for case in [*trained, *runs]}) == len(trained) + 50


def test_a_case_changes_the_shipped_config(health: ModuleType, tmp_path: Any) -> None:
    case = next(one for one in health.planted() if one.symptom == "reward hacking")
    config = health.config_of(case, ROOT / "configs", tmp_path, tmp_path / "out")
    (sampling,) = (each["init_args"] for each in config["trainer"]["callbacks"])
    assert sampling["prompts_per_round"] == health.PROMPTS
    judge = sampling["judge"]["init_args"]
    assert judge["names"][-1] == "length"
    assert judge["weights"][-1] == 3.0
    assert len(judge["names"]) == len(judge["weights"]) == len(judge["judges"]) > 1
    assert config["trainer"]["default_root_dir"] == str(tmp_path / "out")


def test_faults_begin_after_the_first_round(health: ModuleType) -> None:
    rollout = Rollout(Prompt("p"), (Answer("abc", token_ids=(1,)),), scores=(1.0,), right=(True,))
    rounds = [Sampled(number, number, [rollout]) for number in range(2)]
    stream = next(one for one in health.STREAMS if one.name == "twice")
    first, last = health.planted_rounds(stream, rounds)
    assert [answer.text for each in (first, last) for answer in each.rollouts[0].sampled] == ["abc", "abc abc"]
    assert len(last.rollouts[0].sampled[0].token_ids) == 7  # a character is a token


def test_the_table_counts_faults_that_were_found_and_false_alarms(health: ModuleType) -> None:
    def outcome(planted: str | None, *found: str) -> dict[str, Any]:
        return {"run": "a", "planted": planted, "code": 0, "findings": [{"symptom": symptom} for symptom in found]}

    runs = [
        outcome("ties", "ties", "length drift") | {"seconds": 1.0},
        outcome("ties"),
        outcome("ties") | {"code": 2},  # the run stopped, and said so
        outcome("length drift") | {"code": 2},
        outcome(None, "ties"),
        outcome(None),
    ]
    lines = health.table(runs)
    assert "| ties | 1 | 2 | 2 | 2 | 1 |" in lines
    assert "| length drift | 0 | 1 | 0 | 2 | 0 |" in lines
    assert lines[-1] == "| all | 1 | 3 | 2 | 2 | 1 |"
