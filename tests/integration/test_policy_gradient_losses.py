"""Each policy gradient trains over rounds of several steps, and the mean reward of REINFORCE is that of the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lion_lightning.losses import DAPOLoss, DrGRPOLoss, GSPOLoss, PolicyGradientLoss, REINFORCELoss, RLOOLoss
from tests.integration.online import PolicyGradientOnline, Watch
from tests.marks import exhaustive, slow

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> PolicyGradientOnline:
    return PolicyGradientOnline(tmp_path_factory.mktemp("policy gradient"))


class Seen(Watch):
    """Keeps the rewards of the batches that were trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        self.rewards += batch.values


LOSSES = [
    REINFORCELoss(),
    *slow(DAPOLoss(beta=0.1), GSPOLoss()),
    *exhaustive(DrGRPOLoss(max_tokens=8), RLOOLoss(), REINFORCELoss(baseline=False)),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_two_rounds_of_several_steps(online: PolicyGradientOnline, loss: PolicyGradientLoss) -> None:
    module, seen = online.module(loss=loss), Seen()
    name = f"{type(loss).__name__} {getattr(loss, 'mean_reward', None) is None}"
    online.fit(name, module=module, watch=seen, max_epochs=2)
    logged = module.trainer.callback_metrics
    assert all(logged[f"train/{key}"].isfinite() for key in ("loss", "entropy", "ratio", "clip/low", "clip/high"))
    assert logged["train/entropy"] > 0
    if isinstance(loss, REINFORCELoss) and loss.mean_reward is not None:
        assert loss.mean_reward.totals.tolist() == pytest.approx([sum(seen.rewards), len(seen.rewards)])
        assert torch.equal(module.state_dict()["loss.mean_reward.totals"], loss.mean_reward.totals)
