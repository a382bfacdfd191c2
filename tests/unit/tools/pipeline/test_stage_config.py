"""`lion inspect` and `lion plan` of one stage of a pipeline file: as of its config written out by hand."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.cli import main
from lion_lightning.models.checkpoints.export_files import new_export
from lion_lightning.tools.pipeline.stage_config import stage_config
from tests.demo import copy_demo, copy_start

OWN = Path(__file__).parents[4] / "configs" / "own.yaml"
MODEL, EXPORT = "runs/demo/model", "runs/own/sft/export"


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The stages of own.yaml, which `lion init pipeline` writes, with its marked lines edited for the demo's rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LION_CACHE", str(tmp_path / "cache"))
    copy_demo("runs/demo")
    given = yaml.safe_load(OWN.read_text("utf-8"))
    stages: dict[str, Any] = given["stages"]
    stages["sft"]["model"]["init_args"] |= {"policy": {"config": MODEL}, "tokenizer": {"path": MODEL}}
    stages["sft"]["data"]["init_args"]["sources"] = [{"path": "runs/demo/train.jsonl"}]
    stages["dpo"]["data"]["init_args"]["sources"] = [{"path": "runs/demo/preferences.jsonl"}]
    for stage in stages.values():
        stage["trainer"]["precision"] = "32-true"
    for name in ("dpo", "online_dpo"):
        stages[name]["data"]["init_args"] |= {"max_length": 64, "row_length": 128, "max_prompt_length": 32}
    Path("own.yaml").write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")
    return stages


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """What a command prints, apart from its messages, and those."""
    capsys.readouterr()
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    return out, err


def by_hand(stage: dict[str, Any], **changes: Any) -> str:
    """A file with the config of a stage, with changed arguments of its module."""
    config = deepcopy(stage)
    config["model"]["init_args"] |= changes
    Path("by_hand.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return "by_hand.yaml"


def test_a_stage_is_inspected_with_the_model_that_its_chain_starts_from(
    stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    policy, tokenizer = {"config": MODEL, "recompute": "none"}, {"path": MODEL}
    expected, _ = printed(
        capsys, "inspect", "-c", by_hand(stages["dpo"], policy=policy, tokenizer=tokenizer), "--data.max_length=60"
    )
    shown, said = printed(capsys, "inspect", "--config=own.yaml", "--data.max_length=60", "--stage=dpo")
    assert shown == expected
    assert "rejected" in shown
    line = f"own.yaml: stage dpo, with the model that stage sft starts from; {EXPORT} is not there yet"
    assert line in said.splitlines()
    assert not Path("runs/own").exists()


def test_a_stage_is_planned_with_the_export_that_it_starts_from(
    stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(EXPORT).mkdir(parents=True)
    with new_export(Path(EXPORT)) as made:
        copy_start(made)
    Path("more.yaml").write_text("data: {init_args: {batch_size: 2}}")
    more = ["-c", "more.yaml", "--gpus=1"]
    stages["sft"]["model"]["init_args"]["policy"] = {"config": "no/such/model"}  # which is not asked for any more
    Path("own.yaml").write_text(yaml.safe_dump({"out": "runs/own", "stages": stages}, sort_keys=False))
    shown, said = printed(capsys, "plan", "-c", "own.yaml", *more, "--stage", "dpo")
    assert "252 tokens per micro-batch" in shown  # three prompts with two answers each: nine segments of 28
    policy = {"path": EXPORT, "recompute": "none"}
    assert shown == printed(capsys, "plan", "-c", by_hand(stages["dpo"], policy=policy), *more)[0]
    assert f"own.yaml: stage dpo, with {EXPORT}\n" in said
    # Two links back: nothing of dpo, but of what it would start from.
    assert stage_config(Path("own.yaml"), "online_dpo")["model"]["init_args"]["policy"] == policy


def test_the_first_stage_and_one_that_starts_from_none_keep_their_own_model(
    stages: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    stages["dpo"] |= {"start": None}
    stages["dpo"]["model"]["init_args"]["policy"] = {"path": "another"}
    Path("own.yaml").write_text(yaml.safe_dump({"stages": stages, "seeds": [3, 4]}, sort_keys=False))
    assert stage_config(Path("own.yaml"), "sft")["model"]["init_args"]["policy"] == {"config": MODEL}
    config = stage_config(Path("own.yaml"), "dpo")
    assert (config["model"]["init_args"]["policy"], config["seed_everything"]) == ({"path": "another"}, 3)
    assert not caplog.messages


LISTED = "own.yaml: this is a pipeline; look at one stage of it with --stage NAME (its stages are sft, dpo, online_dpo)"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["inspect", "-c", "own.yaml"], LISTED),
        (["plan", "-c", "own.yaml", "--gpus", "2"], LISTED),
        (["inspect", "-c", "own.yaml", "--stage", "dop"], "own.yaml: there is no stage 'dop'; did you mean 'dpo'?"),
        (["plan", "-c", "own.yaml", "--stage", "x"], "there is no stage 'x'; its stages are sft, dpo, online_dpo"),
        (
            ["plan", "-c", str(OWN.parent / "sft.yaml"), "--stage", "dpo"],
            "--stage dpo: there is no pipeline file; name one with -c FILE, or leave --stage out",
        ),
        (["fit", "-c", "own.yaml"], "own.yaml: this is a pipeline of several stages; run it with `lion run own.yaml`"),
    ],
)
def test_what_is_no_stage_is_one_line(
    arguments: list[str], line: str, stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(line)


def test_an_error_in_a_stage_names_the_pipeline_and_the_stage(
    stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stages["dpo"]["trainer"]["max_epoch"] = 1
    Path("own.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    assert main(["inspect", "-c", "own.yaml", "--stage", "dpo"]) == 2
    line = "lion: error: own.yaml: stages.dpo: unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"
    assert line in capsys.readouterr().err.splitlines()
