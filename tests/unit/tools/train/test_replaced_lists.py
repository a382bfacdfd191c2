"""A list of a later config file, or of the command line, replaces an earlier one: nothing of its entries stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.tools.evaluate.main import parse
from lion_lightning.tools.train.lightning_cli import build_cli

SOURCES: list[dict[str, Any]] = [{"path": "old.jsonl", "fraction": 0.25, "columns": {"answer": "reply"}}]
CALLBACKS: list[dict[str, Any]] = [
    {"class_path": "lion_lightning.callbacks.PeakMemory", "init_args": {"every": 7}},
    {"class_path": "lion_lightning.callbacks.LionProgressBar", "init_args": {"every_steps": 3}},
]
LOSSES: list[dict[str, Any]] = [
    {"class_path": "lion_lightning.losses.SigmoidLoss", "init_args": {"beta": 0.7}},
    {"class_path": "lion_lightning.losses.SigmoidLoss", "init_args": {"beta": 0.8}},
]


def _config(sources: Any, callbacks: Any, losses: Any) -> dict[str, Any]:
    loss = {"class_path": "lion_lightning.losses.WeightedSum", "init_args": {"losses": losses, "weights": [1, 2]}}
    model = {"class_path": "lion_lightning.DPOModule", "init_args": {"policy": "nowhere", "loss": loss}}
    data = {"class_path": "lion_lightning.PreferenceDataModule", "init_args": {"sources": sources, "max_length": 9}}
    return {"model": model, "data": data, "trainer": {"callbacks": callbacks}}


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(_config(SOURCES, CALLBACKS, LOSSES)))
    return ["fit", "-c", str(tmp_path / "base.yaml")]


def _printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    with pytest.raises(SystemExit):
        build_cli([*arguments, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_entries_of_a_later_file_keep_nothing_of_those_before(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = _config([{"path": "new.jsonl"}], [{"class_path": one["class_path"]} for one in CALLBACKS], LOSSES)
    later["model"]["init_args"]["loss"]["init_args"]["losses"] = [{"class_path": LOSSES[0]["class_path"]}] * 2
    (tmp_path / "later.yaml").write_text(yaml.safe_dump(later))
    found = _printed([*base, "-c", str(tmp_path / "later.yaml")], capsys)
    (source,) = found["data"]["init_args"]["sources"]
    assert (source["path"], source["fraction"], source["columns"]) == ("new.jsonl", 1.0, {})
    memory, bar = found["trainer"]["callbacks"]
    assert (memory["init_args"]["every"], bar["init_args"]["every_steps"]) == (1, None)  # their defaults
    assert [one["init_args"]["beta"] for one in found["model"]["init_args"]["loss"]["init_args"]["losses"]] == [0.1] * 2
    assert found["data"]["init_args"]["max_length"] == 9  # a mapping is merged key by key


def test_so_does_a_list_on_the_command_line(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = _printed([*base, "--data.sources", "[{path: new.jsonl}]"], capsys)
    (source,) = found["data"]["init_args"]["sources"]
    assert (source["path"], source["fraction"], source["columns"]) == ("new.jsonl", 1.0, {})


def test_what_is_added_to_a_list_leaves_its_entries_as_they_are(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = {"class_path": "lion_lightning.callbacks.Provenance"}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [added]}}))
    found = _printed([*base, "-c", str(tmp_path / "more.yaml")], capsys)["trainer"]["callbacks"]
    assert [one["class_path"].rpartition(".")[2] for one in found] == ["PeakMemory", "LionProgressBar", "Provenance"]
    assert [one["init_args"].get("every") or one["init_args"].get("every_steps") for one in found[:2]] == [7, 3]


def test_lion_evaluate_replaces_lists_too(tmp_path: Path) -> None:
    for name, source in (("a", SOURCES[0]), ("b", {"path": "new.jsonl"})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"conversations": [source]}))
    files = [part for name in "ab" for part in ("-c", str(tmp_path / f"{name}.yaml"))]
    found: Any = parse([*files, "--model", "m", "--out", "o"])
    (source,) = found.conversations
    assert (source.path, source.fraction, source.columns) == ("new.jsonl", 1.0, {})
