"""The runs behind the table of objectives: what each changes and starts from, and the lines of the table."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lion_lightning.rollouts.files import write_rollouts
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import round_path
from lion_lightning.tools.pipeline.plan import StagePlan, read_plan
from lion_lightning.types import Answer, Prompt
from tests.benchmarks import ROOT, benchmark


@pytest.fixture
def objectives(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return benchmark("objectives")


@pytest.fixture
def stages(objectives: ModuleType) -> dict[str, StagePlan]:
    """The stages of seed 1, by the keys of their runs."""
    base = read_plan(ROOT / "configs" / "pipeline.yaml", {"stages": objectives.CONFIGS, "seeds": [0, 1]})
    chains = objectives.plan_of(base, Path("out"), objectives.RUNS).chains
    second = [chain[0] for chain in chains if "seed-1" in chain[0].folder.parts]
    return {run.key: stage for run, stage in zip(objectives.RUNS, second, strict=True)}


def sampling(stage: StagePlan) -> dict[str, Any]:
    (found,) = [one for one in stage.config["trainer"]["callbacks"] if one["class_path"].endswith("OnPolicySampling")]
    return dict(found["init_args"])


def test_every_run_starts_from_its_stage_of_the_same_seed(stages: dict[str, StagePlan]) -> None:
    for key, stage in stages.items():
        start = "dpo" if key.startswith("online") else "sft"
        assert stage.start == Path("runs/pipeline/seed-1") / start
        assert stage.config["model"]["init_args"]["policy"]["path"] == str(stage.start / "export")
        assert stage.config["seed_everything"] == 1
    assert len({stage.folder for stage in stages.values()}) == len(stages)


def test_online_runs_are_alike_but_for_what_is_compared(objectives: ModuleType, stages: dict[str, StagePlan]) -> None:
    by_key = {run.key: run for run in objectives.RUNS}
    online = {key: stage for key, stage in stages.items() if key.startswith("online")}
    assert len(online) >= 6
    for stage in online.values():
        assert stage.config["trainer"]["max_epochs"] == 3
        assert (sampling(stage)["prompts_per_round"], sampling(stage)["num_samples"]) == (400, 8)
    judges = {key: sampling(stage)["judge"] for key, stage in online.items()}
    for key, judge in judges.items():
        if name := by_key[key].judge:
            assert judge["init_args"] == {"model": str(stages[name].folder / "export")}
        else:
            assert judge["class_path"].endswith("VerifierJudge")
    assert judges["online_dpo: a reward model as judge"]["init_args"]["model"] == "out/seed-1/reward/as-it-is/export"


def test_a_reward_model_answers_no_questions(stages: dict[str, StagePlan]) -> None:
    rewards = ["reward: as it is", "reward: on the policy's own answers"]
    assert [key for key, stage in stages.items() if stage.evaluate is None] == rewards
    assert stages[rewards[1]].config["data"]["init_args"]["sources"] == [{"path": "out/seed-1/answers.jsonl"}]


def test_answers_of_rounds_are_rows_of_ranked_answers(objectives: ModuleType, tmp_path: Path) -> None:
    prompt = Prompt("2+2?", messages=({"role": "user", "content": "2+2?"},))
    said = (Answer("4", token_ids=(4,)), Answer("5", token_ids=(5,)))
    rollouts = [
        Rollout(prompt, said, scores=(1.0, 0.0)),
        Rollout(prompt, said, scores=(1.0, 0.0), monitor=True),
        Rollout(prompt, left_out="too long"),
    ]
    write_rollouts(round_path(tmp_path, 0), rollouts, {"round": 0, "identity": "x"})
    objectives.write_answers(tmp_path, tmp_path / "answers.jsonl")
    row = '{"question": "2+2?", "answers": ["4", "5"], "scores": [1.0, 0.0]}'
    assert (tmp_path / "answers.jsonl").read_text() == row + "\n"


def test_lines_have_means_and_paired_differences_with_intervals(objectives: ModuleType) -> None:
    run = objectives.RUNS[3]
    assert (run.variant.name, run.against) == ("all pairs", "online_dpo: as it is")
    row = objectives.Row(run, [0.5, 0.6, 0.7], [0.1, 0.1, 0.1], [0.0, 0.01, 0.02], [10, 11, 12], [])
    cells = [cell.strip() for cell in objectives.markdown([row])[-1].strip("|").split("|")]
    # Student's t with two degrees of freedom is 4.303: of a deviation of 0.1 over three seeds, 0.248
    assert cells[:3] == ["online_dpo: all pairs", "0.600 [0.352, 0.848]", "+0.100 [+0.100, +0.100]"]
    assert cells[3:] == ["+0.010 [-0.015, +0.035]", "online_dpo: as it is", "10 11 12", ""]
    one = objectives.markdown([row._replace(accuracies=[0.5], gains=[0.25], differences=[])])[-1]
    assert "| 0.500 | +0.250 |  |" in one
