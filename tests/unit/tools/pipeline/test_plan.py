"""Stages that start from another one than the one before, and configs that name the folder of an earlier stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.tools.pipeline.plan import Plan, StagePlan, read_plan
from lion_lightning.tools.pipeline.run import Runner
from lion_lightning.tools.pipeline.stage import score_of, seconds_of

JUDGE = {"class_path": "lion_lightning.judges.RewardModelJudge", "init_args": {"model": "${reward}/export"}}
SAMPLING = {"class_path": "lion_lightning.callbacks.OnPolicySampling", "init_args": {"judge": JUDGE}}


def stages(folder: Path, seeds: list[int] | None = None, **changes: Any) -> list[StagePlan]:
    """A policy, a reward model that starts from it, and an online stage with that as judge; the first chain of it."""
    given = {
        "sft": {"model": "lion_lightning.SFTModule"},
        "reward": {"model": "lion_lightning.RewardModule", "evaluate": {"preferences": [{"path": "pairs.jsonl"}]}},
        "online": {"model": "lion_lightning.OnlineDPOModule", "start": "sft", "trainer": {"callbacks": [SAMPLING]}},
    }
    given = {name: given[name] | changes.get(name, {}) for name in given}
    content = {"out": "runs/all", "seeds": seeds, "stages": given, "evaluate": {"by": "family"}}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_plan(folder / "pipeline.yaml").chains[0]


def policy(stage: StagePlan) -> Any:
    return stage.config["model"].get("init_args", {}).get("policy")


def test_a_stage_starts_from_the_one_that_it_names_or_the_one_before(tmp_path: Path) -> None:
    sft, reward, online = stages(tmp_path)
    assert [stage.start for stage in (sft, reward, online)] == [None, Path("runs/all/sft"), Path("runs/all/sft")]
    assert policy(online) == policy(reward) == {"path": "runs/all/sft/export"}
    own = {"class_path": "lion_lightning.RewardModule", "init_args": {"policy": {"path": "other"}}}
    _, reward, _ = stages(tmp_path, reward={"model": own, "start": None})
    assert (reward.start, policy(reward)) == (None, {"path": "other"})


def test_a_config_may_name_the_folder_of_an_earlier_stage_of_its_seed(tmp_path: Path) -> None:
    *_, online = stages(tmp_path, seeds=[3])
    sampling = online.config["trainer"]["callbacks"][0]
    assert sampling["init_args"]["judge"]["init_args"]["model"] == "runs/all/seed-3/reward/export"
    sft, *_ = stages(tmp_path, sft={"data": "${reward}/x"})
    assert sft.config["data"] == {"class_path": "${reward}/x"}  # a later one: there is no such folder yet


def test_a_stage_has_its_own_evaluation_or_none(tmp_path: Path) -> None:
    sft, reward, online = stages(tmp_path, online={"evaluate": None})
    assert sft.evaluate == {"by": "family"}
    assert reward.evaluate == {"preferences": [{"path": "pairs.jsonl"}]}
    assert online.evaluate is None


def test_the_file_of_a_judge_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for name, folder in (("of_pipeline", tmp_path), ("of_config", tmp_path / "configs")):
        (folder / "judge.yaml").write_text(f"class_path: {name}\n")
    sampling = {"class_path": SAMPLING["class_path"], "init_args": {"judge": "judge.yaml"}}
    trainer = {"trainer": {"callbacks": [sampling]}}
    (tmp_path / "configs" / "online.yaml").write_text(yaml.safe_dump(trainer))
    own = {"evaluate": {"judge": "judge.yaml"}}
    *_, online = stages(tmp_path, online={**trainer, **own})
    assert online.config["trainer"]["callbacks"][0]["init_args"]["judge"] == {"class_path": "of_pipeline"}
    assert online.evaluate == {"judge": {"class_path": "of_pipeline"}}
    content = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())
    content["stages"]["online"] = {"model": "lion_lightning.OnlineDPOModule", "config": "configs/online.yaml"}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    *_, online = read_plan(tmp_path / "pipeline.yaml").chains[0]
    assert online.config["trainer"]["callbacks"][0]["init_args"]["judge"] == {"class_path": "of_config"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": {"start": "online"}}, r"stages.reward.start is 'online'; name an earlier stage \(sft\)"),
        ({"sft": {"start": "sft"}}, r"stages.sft.start is 'sft'; name an earlier stage \(none\)"),
        ({"reward": {"evaluate": {"model": "x"}}}, "stages.reward: evaluate.model is set to each stage's export"),
    ],
)
def test_a_stage_that_is_not_there_yet_is_one_line(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        stages(tmp_path, **changes)


def test_the_time_left_is_that_of_the_same_stages_of_other_seeds(tmp_path: Path) -> None:
    chains = []
    for seed in range(3):
        folders = [tmp_path / f"seed-{seed}" / name for name in ("sft", "dpo")]
        chains.append([StagePlan(folder.name, folder, {}, None, None) for folder in folders])
    runner = Runner(Plan(tmp_path, chains, workers=2))
    assert runner._left() == 0  # no stage has told its time
    for stage, seconds in ((chains[0][0], 10), (chains[1][0], 30), (chains[0][1], 6)):
        stage.folder.mkdir(parents=True)
        (stage.folder / "done.json").write_text(json.dumps({"seconds": seconds}))
    # one sft of 20 seconds on average and two dpo of 6, by two workers
    assert runner._left() == (20 + 2 * 6) / 2


@pytest.mark.parametrize(
    ("read", "name", "content", "said"),
    [
        (seconds_of, "done.json", {"seconds": "six"}, "seconds .*number.*; remove it, and the stage is done again"),
        (seconds_of, "done.json", [], "object.*; remove it"),
        (score_of, "evaluation/results.json", {"accuracy": {"estimate": 0.5}}, r"accuracy\.low is missing; remove it"),
        (score_of, "evaluation/results.json", {"rewards": 0.5}, "rewards .*; remove it"),
    ],
)
def test_a_damaged_file_of_a_stage_is_one_line(
    read: Callable[[Path], Any], name: str, content: Any, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        read(tmp_path)
