"""The runs behind the table of policy gradients: what each changes and starts from, and what is read of them."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lion_lightning.tools.pipeline.plan import StagePlan, read_plan
from lion_lightning.types import Answer, Prompt
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
            assert (given["prompts_per_round"], given["num_samples"], given["seed"]) == (64, 8, seed), name
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


def test_divergence_and_entropy_are_sums_over_the_answers_tokens(policy_gradients: ModuleType) -> None:
    outcomes = policy_gradients.outcome.__globals__

    def fixed(chances: list[float]) -> Any:
        logits = torch.tensor(chances).log()
        return SimpleNamespace(model=lambda ids: SimpleNamespace(logits=logits.expand(*ids.shape, 4)))

    policy, start = fixed([0.25] * 4), fixed([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    group = [Answer("a", token_ids=(1, 2)), Answer("b", token_ids=(3, 2, 1))]
    found = outcomes["_divergence_and_entropy"](policy, start, Prompt("?", (1, 2, 3)), group)
    # five tokens; one of them: ln(1/2) / 4 + 3 ln(3/2) / 4 = 0.13081 nats, and an entropy of ln 4
    assert found.tolist() == pytest.approx([5 * 0.130812, 5 * math.log(4)], rel=1e-5)


def test_differences_are_paired_by_seed_and_by_prompt(policy_gradients: ModuleType) -> None:
    table = benchmark("policy_gradient_table")
    own = {"seed-0": {"reward": 0.6, "right": "80"}, "seed-1": {"reward": 0.7, "right": "84"}}
    others = {"seed-0": {"reward": 0.5, "right": "40"}, "seed-1": {"reward": 0.5, "right": "80"}}
    # differences of 0.1 and 0.2: Student's t with one degree of freedom is 12.706, of a standard error of 0.05
    assert table.difference(own, others, "reward") == pytest.approx((0.15, 0.15 - 0.6353, 0.15 + 0.6353), abs=1e-4)
    # the first prompt has 4 of 8 more in one seed, the second in the other
    assert table.difference_over_prompts(own, others) == pytest.approx((0.25, 0.25, 0.25))
