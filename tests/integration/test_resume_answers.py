"""Stages over answers and groups, killed within an epoch and resumed: the same weights and losses, bit for bit."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from lion_lightning import AdapterOffReference, CachedReference, GroupModule, KTOModule, PolicySpec
from lion_lightning.losses import AllPairsLoss, BCOLoss, BCOPairLoss, KTOLoss, PlackettLuceLoss
from lion_lightning.models.lora import LoRASpec
from tests import tiny
from tests.integration.tree_runs import TreeRuns, random_trees
from tests.marks import exhaustive

pytestmark = pytest.mark.filterwarnings("ignore")

LABELED = [(1.0, math.nan), (0.0, math.nan), (0.0, 1.0, math.nan)] * 4
GROUPS = [(0.5, 1.0, 0.0), (0.2, 0.8), (0.3, 0.3, 0.9)] * 4
LOSSES: dict[str, Any] = {
    "kto": partial(KTOLoss, 0.5),
    "bco": partial(BCOLoss, 0.5),  # whose means are a state
    "ranked": partial(PlackettLuceLoss, 0.5),
    "all pairs": lambda: AllPairsLoss(BCOPairLoss(0.5)),
}


def made(kind: Any, loss: str, lora: bool = False, **options: Any) -> Any:
    spec = PolicySpec(config=tiny.shallow(), lora=LoRASpec(r=4) if lora else None)
    reference = AdapterOffReference() if lora else CachedReference()
    return kind(spec, loss=LOSSES[loss](), reference=reference, **options)


ANSWERS = {"kto": partial(made, KTOModule, "kto"), "bco": partial(made, KTOModule, "bco", lora=True)}
RANKED = {"ranked": partial(made, GroupModule, "ranked", lora=True), "pairs": partial(made, GroupModule, "all pairs")}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> TreeRuns:
    return TreeRuns(tmp_path_factory.mktemp("answers"), random_trees(LABELED), ANSWERS, capacity=26)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> TreeRuns:
    return TreeRuns(tmp_path_factory.mktemp("groups"), random_trees(GROUPS), RANKED, capacity=26)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("kill", [4, *exhaustive(2, 7)])
def test_a_killed_run_over_answers_ends_equal(answers: TreeRuns, kind: str, kill: int) -> None:
    assert answers.batches > 2
    assert kill % answers.batches  # within an epoch
    answers.assert_ends_equal(kind, kill)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RANKED)
@pytest.mark.parametrize("kill", [4, *exhaustive(2, 7)])
def test_a_killed_run_over_groups_ends_equal(groups: TreeRuns, kind: str, kill: int) -> None:
    assert groups.batches > 2
    assert kill % groups.batches
    groups.assert_ends_equal(kind, kill)
