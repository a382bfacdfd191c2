"""Rows of the GSM8K run: the last step of a solution, and a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks import ROOT, benchmark

PROBLEM = {
    "question": "48 clips in April, half as many in May. How many in all?",
    "answer": "She sold 48/2 = <<48/2=24>>24 in May.\nThat is 48+24 = <<48+24=72>>72 clips.\n#### 72",
}


@pytest.fixture
def gsm8k() -> ModuleType:
    return benchmark("gsm8k")


def test_the_first_step_moves_into_the_question(gsm8k: ModuleType) -> None:
    assert gsm8k.last_step(PROBLEM) == {
        "question": f"{PROBLEM['question']}\nShe sold 48/2 = 24 in May.",
        "answer": "That is 48+24 = 72 clips.\n#### 72",
    }


def test_a_wrong_step_has_another_operator_and_its_value(gsm8k: ModuleType) -> None:
    assert gsm8k.wrong_last_step(PROBLEM) == "That is 48-24 = 24 clips.\n#### 24"
    none = {**PROBLEM, "answer": "Half of it.\nSo 72 clips.\n#### 72"}
    assert gsm8k.wrong_last_step(none) is None
    assert gsm8k.pair(none) is None
    # 1-1 is no amount, 1*1 and 1/1 come to what is said: nothing wrong is left but 1+1
    one = {**PROBLEM, "answer": "One each.\nSo 1*1 = <<1*1=1>>1 clip.\n#### 1"}
    assert gsm8k.wrong_last_step(one) == "So 1+1 = 2 clip.\n#### 2"


def test_the_gpu_options_are_keys_of_the_stages(gsm8k: ModuleType) -> None:
    plan = gsm8k.read_plan(ROOT / "benchmarks" / "gsm8k.yaml", {}, gsm8k.ON_GPU)
    assert [stage.config["trainer"]["accelerator"] for stage in plan.chains[0]] == ["gpu"] * 3
    assert [stage.config["data"]["init_args"]["batch_size"] for stage in plan.chains[0]] == [8] * 3


def test_problems_are_told_apart_by_steps_and_length(gsm8k: ModuleType, tmp_path: Path) -> None:
    longer = {**PROBLEM, "question": f"{PROBLEM['question']} {'x' * 200}"}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (PROBLEM, longer)))
    assert gsm8k.problems_of(tmp_path / "train.jsonl", 2) == [PROBLEM]
    assert gsm8k.problems_of(tmp_path / "train.jsonl", 2, gsm8k.LONGER) == [longer]
    assert gsm8k.problems_of(tmp_path / "train.jsonl", 3) == []


def test_stages_are_compared_problem_by_problem(gsm8k: ModuleType) -> None:
    # each problem gains one: the gain has no spread, whichever problems are drawn
    assert gsm8k.comparisons({"sft": [0.0, 0.0], "dpo": [1.0, 1.0]}) == [
        "sft: 0.000 [0.000, 0.000] right of 2",
        "dpo: 1.000 [1.000, 1.000] right of 2, +1.000 [+1.000, +1.000] over the stage before",
    ]
