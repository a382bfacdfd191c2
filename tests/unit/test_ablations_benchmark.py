"""The protocol of the ablations: what is trained from what, and the rule that decides the claims."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.benchmarks import ROOT, benchmark


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)


@pytest.fixture
def variants() -> ModuleType:
    return benchmark("ablation_variants")


@pytest.fixture
def claims() -> ModuleType:
    return benchmark("ablation_claims")


def test_every_claim_names_variants_and_each_stands_after_what_it_needs(
    variants: ModuleType, claims: ModuleType
) -> None:
    names = list(variants.VARIANTS)
    for claim in claims.CLAIMS:
        assert {claim.first, claim.second} <= {*names}
    for name, variant in variants.VARIANTS.items():
        for other in filter(None, (variant.start, variant.judge)):
            assert names.index(other) < names.index(name)
    assert len({variants.folder_name(name) for name in names}) == len(names)
    compared = {name for claim in claims.CLAIMS for name in (claim.first, claim.second)}
    assert {*names} == {*variants.needed(compared)}


def test_a_variant_starts_from_the_export_and_the_data_of_its_seed(variants: ModuleType) -> None:
    stages = variants.stages_of(7, Path("out"), {"rloo": 3e-4, "dpo": 5e-5})
    rloo = stages["rloo"]
    assert rloo.config["model"]["init_args"]["policy"]["path"] == "out/seed-7/dpo/export"
    assert rloo.config["data"]["init_args"]["prompts"] == [{"path": "out/seed-7/demo/prompts.jsonl"}]
    assert rloo.evaluate["prompts"] == [{"path": "out/seed-7/demo/questions.jsonl"}]
    assert (rloo.config["seed_everything"], rloo.config["data"]["init_args"]["seed"]) == (7, 7)
    judged = stages["online dpo, reward model judges"]
    assert sampling(judged)["judge"]["init_args"] == {"model": "out/seed-7/reward-model/export"}
    assert stages["reward model"].evaluate is None
    assert "runs/demo" not in str([(stage.config, stage.evaluate) for stage in stages.values()])


def test_variants_without_rates_of_their_own_have_that_of_their_config(variants: ModuleType) -> None:
    stages = variants.stages_of(0, Path("out"), {"rloo": 3e-4, "dpo": 5e-5})
    rate = {name: stage.config["model"]["init_args"]["optimizer"]["init_args"]["lr"] for name, stage in stages.items()}
    assert rate["rloo"] == 3e-4
    assert rate["dpo"] == rate["dpo, 10% of the pairs"] == rate["offline: the pairs again"] == 5e-5
    assert (
        rate["grpo"]
        == variants.stages_of(0, Path("out"), {})["grpo"].config["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    )


def test_variants_of_one_start_differ_only_in_what_is_changed(variants: ModuleType) -> None:
    stages = variants.stages_of(0, Path("out"), {})
    base, four = stages["online dpo"], stages["online dpo, 4 answers"]
    assert {**sampling(base), "num_samples": 4} == sampling(four)
    assert base.config["model"] == four.config["model"]


def sampling(stage: Any) -> dict[str, Any]:
    (found,) = [one for one in stage.config["trainer"]["callbacks"] if one["class_path"].endswith("OnPolicySampling")]
    return dict(found["init_args"])


def test_a_claim_is_decided_by_the_first_interval_that_excludes_zero(claims: ModuleType) -> None:
    # Three differences of mean 0.1 and deviation 0.01: 4.303 x 0.01 / sqrt(3) = 0.0248
    decision = claims.decide([0.09, 0.10, 0.11, -5.0])
    assert (decision.outcome, decision.seeds) == ("first", 3)
    assert decision.interval == pytest.approx((0.1, 0.1 - 0.02484, 0.1 + 0.02484), abs=1e-4)
    # at 99% the quantile of two degrees of freedom is 9.925: a half width of 0.0573 still excludes zero
    assert decision.firm
    # deviation 0.03: 0.0745 at 95%, 0.1719 at 99%
    assert claims.decide([0.07, 0.10, 0.13])[:1] + claims.decide([0.07, 0.10, 0.13])[2:] == ("first", 3, False)
    assert claims.decide([-0.09, -0.10, -0.11]).outcome == "second"


def test_equal_is_an_interval_within_two_hundredths(claims: ModuleType) -> None:
    assert claims.decide([0.0, 0.0, 0.0]).outcome == "equal"
    # deviation 0.01 around zero: 0.0248 is too wide for three seeds, 3.182 x 0.00816 / 2 = 0.013 for four is not
    decision = claims.decide([0.01, -0.01, 0.0, 0.0])
    assert (decision.outcome, decision.seeds) == ("equal", 4)


def test_two_seeds_decide_nothing_and_twelve_are_the_last(claims: ModuleType) -> None:
    assert claims.decide([0.1, 0.1]).outcome == ""
    open_ = [0.1, -0.1] * 6
    assert claims.decide(open_)[0::2] == ("", 12)
    assert claims.decide([*open_, *[0.1] * 50]).seeds == 12


def test_looking_after_every_seed_errs_in_18_percent_and_at_99_percent_in_5(claims: ModuleType) -> None:
    assert claims.false_decisions(0.95) == pytest.approx(0.184, abs=0.01)
    assert claims.false_decisions(0.99) == pytest.approx(0.0475, abs=0.005)


def test_differences_are_of_the_seeds_in_a_row_that_both_have(claims: ModuleType) -> None:
    ablations = benchmark("ablations")
    claim = claims.Claim("?", "dpo", "sft")
    results = {
        "dpo": {"0": {"grade": 0.75}, "1": {"grade": 0.5}, "3": {"grade": 0.5}},
        "sft": {"0": {"grade": 0.5}, "1": {"grade": 0.375}, "2": {"grade": 0.1}, "3": {"grade": 0.1}},
    }
    assert ablations.differences(claim, results) == [0.25, 0.125]


def test_tables_name_the_decision(claims: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    table = benchmark("ablation_table")
    claim = claims.Claim("a is better", "dpo", "sft", "yes")
    lines = table.claim_table([(claim, claims.decide([0.09, 0.10, 0.11])), (claim, claims.decide([0.1]))])
    assert lines[2] == "| a is better (*dpo* - *sft*) | +0.100 [+0.075, +0.125] | 3 | yes | yes |"
    assert lines[3] == "| a is better (*dpo* - *sft*) |  | 1 | open | yes |"
    seeds = {
        "0": {"grade": 0.5, "parts": {"form": 0.25}, "steps": 10},
        "1": {"grade": 0.5, "parts": {"form": 0.75}, "steps": 20},
        "3": {"grade": 0.9, "parts": {"form": 1.0}, "steps": 90},  # of a claim that three seeds did not decide
    }
    assert table.variant_table({"sft": seeds})[2] == "| sft | 0.500 [0.500, 0.500] | 0.50 | 15 |"
    rates = table.rate_table({"dpo": {"0.0001": 0.5, "0.001": 0.25}, "kto": {"0.001": 0.75}})
    assert rates[2:] == ["| dpo | **0.500** | 0.250 |", "| kto |  | **0.750** |"]
