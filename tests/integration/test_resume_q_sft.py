"""Q-SFT killed within an epoch and resumed: policy, target network, behaviour and losses, bit for bit."""

from __future__ import annotations

from functools import partial

import pytest

from lion_lightning import PolicySpec
from lion_lightning.experimental.q_sft import DummyRest, QSFTModule
from lion_lightning.models.lora import LoRASpec
from tests import tiny
from tests.integration.tree_runs import TreeRuns, random_trees
from tests.marks import exhaustive

pytestmark = pytest.mark.filterwarnings("ignore")

BEHAVIOUR = PolicySpec(config=tiny.shallow())
KINDS = {
    "uniform": partial(QSFTModule, PolicySpec(config=tiny.shallow()), BEHAVIOUR, alpha=0.3),
    "dummy, LoRA": partial(
        QSFTModule, PolicySpec(config=tiny.shallow(), lora=LoRASpec(r=4)), BEHAVIOUR, alpha=0.3, loss=DummyRest(2)
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TreeRuns:
    trees = random_trees([(0.5, 1.0), (0.0,), (0.3, 0.9)] * 4)
    return TreeRuns(tmp_path_factory.mktemp("runs"), trees, KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kill", [4, *exhaustive(2, 9)])
def test_a_killed_run_ends_as_the_one_that_nobody_stopped(runs: TreeRuns, kind: str, kill: int) -> None:
    runs.assert_ends_equal(kind, kill)
