"""Small runs of each stage give the recorded losses and gradient norms, on any machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.runs import RUNS, Runs

RECORD = json.loads(Path(__file__).with_name("record.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_gradient_norms_are_the_recorded_ones(name: str, runs: Runs) -> None:
    made = RUNS[name](runs)
    for key in ("loss", "grad_norm"):
        assert made[key] == pytest.approx(RECORD[name][key], rel=1e-6, abs=0), key


def test_each_way_of_computing_the_same_is_in_the_record() -> None:
    # A padded run trains on the same rows, and both references are the same model: rounding alone may differ.
    for one, other in (("sft", "sft_padded"), ("dpo_cached", "dpo_frozen")):
        assert RECORD[one]["loss"] == pytest.approx(RECORD[other]["loss"], rel=1e-6)
