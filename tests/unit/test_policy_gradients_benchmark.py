"""The runs behind the table of policy gradients: what each changes and starts from, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lion_lightning.tools.pipeline.plan import StagePlan, read_plan
from tests.benchmarks import ROOT, benchmark


@pytest.fixture
def policy_gradients(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return benchmark("policy_gradients")


@pytest.fixture
def stages(policy_gradients: ModuleType) -> dict[str, list[StagePlan]]:
    """The stages of seeds 4 and 5, by the names of their runs."""
    base = read_plan(ROOT / "configs" / "pipeline.yaml", {"stages": policy_gradients.CONFIGS, "seeds": [4, 5]})
    found = {}
    for run in policy_gradients.RUNS:
        found[run.name] = [chain[0] for chain in policy_gradients.plan_of(base, Path("out"), [run]).chains]
    return found


def sampling(stage: StagePlan) -> dict[str, Any]:
    (found,) = [one for one in stage.config["trainer"]["callbacks"] if "num_samples" in one.get("init_args", {})]
    return dict(found)


def test_all_runs_have_the_same_start_prompts_judge_and_samples(stages: dict[str, list[StagePlan]]) -> None:
    folders = set()
    for name, of_seeds in stages.items():
        for seed, stage in zip([4, 5], of_seeds, strict=False):
            assert stage.start == Path(f"runs/pipeline/seed-{seed}/dpo")
            assert stage.config["model"]["init_args"]["policy"]["path"] == str(stage.start / "export")
            given = sampling(stage)["init_args"]
            assert (given["prompts_per_round"], given["num_samples"], given["seed"]) == (128, 8, seed), name
            assert given["sampler"]["init_args"]["sampling"]["temperature"] == 1.0
            assert given["judge"] == sampling(stages["GRPO, beta 0.05"][0])["init_args"]["judge"]
            folders.add(stage.folder)
    assert len(folders) == sum(map(len, stages.values()))


def test_rates_are_looked_for_on_one_seed_and_the_best_is_trained_on_all(
    policy_gradients: ModuleType, stages: dict[str, list[StagePlan]]
) -> None:
    for objective, rates in policy_gradients.RATES.items():
        for rate in rates:
            (first, *others) = stages[f"{objective}, lr {rate:g}"]
            assert first.config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == rate
            assert len(others) == (rate == policy_gradients.BEST[objective])


def test_a_round_used_four_times_is_sampled_every_fourth_epoch(
    policy_gradients: ModuleType, stages: dict[str, list[StagePlan]]
) -> None:
    stage = stages["GRPO, each round four times, no clipping"][0]
    assert sampling(stage)["class_path"] == "policy_gradients.FourPasses"
    assert stage.config["trainer"]["max_epochs"] == 80
    assert stage.config["model"]["init_args"]["loss"]["init_args"] == {"beta": 0.0, "clip_low": None}
    sampled = policy_gradients.FourPasses(sampler=None, judge=None).should_sample
    assert [epoch for epoch in range(9) if sampled(epoch)] == [0, 4, 8]
