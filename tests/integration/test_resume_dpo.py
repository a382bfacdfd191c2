"""DPO killed anywhere and resumed, under every kind of reference: the same pairs, weights and losses, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning import (
    AdapterOffReference,
    CachedReference,
    DPOModule,
    FrozenReference,
    MixedReference,
    PolicySpec,
    Reference,
    RefreshedReference,
)
from lion_lightning.losses.pairs.preference import PreferenceLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.types import PairLogps
from tests import tiny
from tests.integration.tree_runs import TreeRuns, random_trees
from tests.marks import exhaustive

pytestmark = pytest.mark.filterwarnings("ignore")

REFERENCES: dict[str, Callable[[], Reference]] = {
    "cached": CachedReference,
    "frozen": FrozenReference,
    "mixed": partial(MixedReference, alpha=0.5, every_n_steps=2),
    "refreshed": RefreshedReference,
    "adapters off": AdapterOffReference,
}


class Remembering(PreferenceLoss):
    """A loss with a state: how many pairs all steps together have seen."""

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)
        self.register_buffer("seen", torch.zeros(()))
        self.now = 0

    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        if self.training:
            self.now += len(policy.chosen.sums)
        assert isinstance(self.seen, Tensor)
        return torch.nn.functional.softplus(self.seen / 10 - self.rewards(policy, reference).margin)

    def after_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        assert isinstance(self.seen, Tensor)
        self.seen += add_up(torch.tensor(float(self.now)))
        self.now = 0


def module(kind: str, **options: Any) -> DPOModule:
    spec = PolicySpec(config=tiny.shallow(), lora=LoRASpec(r=4) if kind == "adapters off" else None)
    return DPOModule(spec, loss=Remembering(0.5), reference=REFERENCES[kind](), **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TreeRuns:
    pairs = random_trees([(1.0, 0.0)] * 11, pairs=((0, 1),))
    return TreeRuns(tmp_path_factory.mktemp("runs"), pairs, {kind: partial(module, kind) for kind in REFERENCES})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cached", "mixed", "adapters off", "frozen", "refreshed"])
@pytest.mark.parametrize("kill", [4, *exhaustive(2, 9)])
def test_a_killed_run_ends_as_the_one_that_nobody_stopped(runs: TreeRuns, kind: str, kill: int) -> None:
    runs.assert_ends_equal(kind, kill)
