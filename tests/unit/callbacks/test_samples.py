"""Answers that go into the loggers while a model trains."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lion_lightning.callbacks import SampleTable
from lion_lightning.callbacks.samples import as_table
from tests.unit.callbacks.conftest import Bench, batches

PROMPTS = ["w3 w4", "w5"]


class Tables(CSVLogger):
    """Takes tables by the same call as Weights & Biases' logger."""

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self.tables: list[dict[str, Any]] = []

    def log_text(self, **table: Any) -> None:
        self.tables.append(table)


def test_answers_reach_file_and_loggers_at_every_validation(bench: Bench) -> None:
    tables, board = Tables(bench.folder), TensorBoardLogger(bench.folder)
    bench.fit(bench.trainer(SampleTable(PROMPTS, max_new_tokens=3), logger=[tables, board]))
    rows = [json.loads(line) for line in (bench.folder / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 6]
    assert list(rows[0]["answers"]) == PROMPTS
    assert [table["key"] for table in tables.tables] == ["samples"] * 2
    assert tables.tables[1]["columns"] == ["prompt", "answer"]
    assert tables.tables[1]["data"] == [list(pair) for pair in rows[1]["answers"].items()]
    (events,) = (bench.folder / "lightning_logs").rglob("events*")
    assert b"samples/text_summary" in events.read_bytes()


def test_asking_changes_no_weight(bench: Bench) -> None:
    silent = bench.fit(bench.trainer(val_check_interval=2))
    asked = bench.fit(bench.trainer(SampleTable(PROMPTS, max_new_tokens=3), val_check_interval=2))
    for one, other in zip(silent.parameters(), asked.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_other_validation_goes_on_counting_after_a_resume(bench: Bench) -> None:
    table = SampleTable(PROMPTS, max_new_tokens=1, every_n_validations=2)
    bench.fit(bench.trainer(table, val_check_interval=2), train=batches(6))  # at steps 0, 2, 4, 6: at 0 and 4
    path = bench.folder / "run" / "samples.jsonl"
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 4]
    resumed = SampleTable(PROMPTS, every_n_validations=2)
    resumed.load_state_dict(table.state_dict())
    assert resumed.state_dict() == {"validations": 4}


def test_a_table_keeps_its_cells() -> None:
    assert as_table([("a|b", "c\nd")]) == "| prompt | answer |\n|---|---|\n| a\\|b | c<br>d |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "SampleTable.prompts is empty"),
        ({"prompts": ["a"], "max_new_tokens": 0}, "SampleTable.max_new_tokens is 0"),
        ({"prompts": ["a"], "every_n_validations": 0}, "SampleTable.every_n_validations is 0"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleTable(**arguments)


def test_a_module_without_a_policy_is_refused_before_training(bench: Bench) -> None:
    with pytest.raises(MisconfigurationException, match="SampleTable: BoringModel holds no language model that trains"):
        bench.trainer(SampleTable(PROMPTS)).fit(BoringModel())
