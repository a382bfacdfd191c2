"""Online DPO on the answers of a pool: the policy and a stored model answer together, by name, also after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning import PolicyGradientModule, PolicySpec, TokenizerSpec
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.sampling import FrozenSampler, PooledSampler, SamplingSettings
from tests import tiny
from tests.integration.online import KilledError, Online, PolicyGradientOnline, Sampler, Watch, pairs_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored model with other weights than the policy's."""
    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(1)
    policy = PolicySpec(config=tiny.config(num_hidden_layers=1)).build()
    RolloutPolicy(policy, TokenizerSpec(str(tiny.tokenizer_folder(folder))).load()).write(folder)
    return folder


def pooled(online: Online, other: Path, kill: int | None = None) -> Any:
    frozen = FrozenSampler(str(other), SamplingSettings(temperature=1.0, max_new_tokens=5))
    sampler = PooledSampler({"policy": Sampler(kill), "other": frozen}, own="policy")
    return online.sampling(sampler, num_samples=2)


@pytest.mark.slow
def test_the_policy_and_another_model_answer_together(tmp_path: Path, other: Path) -> None:
    online, watch = Online(tmp_path), Watch()
    online.fit("run", pooled(online, other), watch, max_epochs=1)
    (made,) = online.rounds("run")
    for rollout in made.rollouts:
        models = {answer.model for answer in rollout.answers}
        assert models == ({"policy"} if rollout.monitor else {"policy", "other"})
        assert all(answer.token_ids for answer in rollout.answers)
    assert watch.trained[0] == pairs_of(made)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, other: Path) -> None:
    online = Online(tmp_path)
    whole = online.fit("whole", pooled(online, other), max_epochs=2)
    with pytest.raises(KilledError):
        online.fit("killed", pooled(online, other, kill=3), max_epochs=2)  # within the first round
    again = online.fit("killed", pooled(online, other), max_epochs=2)
    assert [made.rollouts for made in online.rounds("whole")] == [made.rollouts for made in online.rounds("killed")]
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_policy_gradients_refuse_a_pool_before_anything_is_sampled(tmp_path: Path, other: Path) -> None:
    online = PolicyGradientOnline(tmp_path)
    assert online.module_class is PolicyGradientModule
    sampling = pooled(online, other)
    with pytest.raises(ValueError, match="PooledSampler: answers are those of policy, other, and what is trained are"):
        online.fit("refused", sampling)
    assert sampling.sampler.samplers["policy"].asked == []
