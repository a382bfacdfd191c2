"""The DPO module: where it starts, what it logs, how a step is normalized, and what it is compared with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from lion_lightning.losses.pairs.dpo import SigmoidLoss
from lion_lightning.losses.pairs.preference import PreferenceLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.references.base import (
    AdapterOffReference,
    FrozenReference,
    MixedReference,
    NoReference,
    Reference,
)
from lion_lightning.references.cached import CachedReference, RefreshedReference
from lion_lightning.types import PackedBatch, PairLogps
from tests.tiny import Rows, alone, merge, pairs, row, shallow, trainer

BATCHES = [pairs((5, 4, 7), (3, 6, 2), seed=1), pairs((4, 1, 3), seed=2), pairs((2, 5, 5), (6, 3, 3), seed=3)]
BETA = 0.5


class NoNeed(PreferenceLoss):
    """A loss that compares with nothing."""

    needs_reference = False

    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        return -self.rewards(policy, reference).margin


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


def module(
    tokenizer: TokenizerSpec, reference: Reference | None = None, lr: float = 0.5, lora: bool = False, **options: Any
) -> DPOModule:
    torch.manual_seed(0)
    spec = PolicySpec(config=shallow(), lora=LoRASpec(r=4) if lora else None)
    made = DPOModule(
        options.pop("policy", spec),
        tokenizer=tokenizer,
        **({"loss": SigmoidLoss(BETA)} | options),
        reference=reference,
        optimizer=lambda p: SGD(p, lr=lr),
    )
    made.configure_model()
    return made


def fit(made: DPOModule, batches: Any = BATCHES, **options: Any) -> dict[str, float]:
    run = trainer(**({"max_epochs": 1, "num_sanity_val_steps": 0} | options))
    run.fit(made, Rows(batches), Rows(batches))
    return {name: value.item() for name, value in run.callback_metrics.items()}


def weights(made: DPOModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in made.policy_model.named_parameters()}


def answers(model: Any, batch: PackedBatch) -> Tensor:
    """``(pairs, 2)`` log-probs of chosen and rejected by the plain model, each with its prompt alone."""
    values = alone(model, batch)
    sums = [values[batch.target_segments == segment].sum() for segment in range(len(batch.segments))]
    return torch.stack([value for number, value in enumerate(sums) if number % 3]).reshape(-1, 2)


@pytest.mark.parametrize("kind", [CachedReference, FrozenReference, MixedReference, RefreshedReference])
def test_at_step_0_policy_and_reference_are_equal(tokenizer: TokenizerSpec, kind: Any, cache: Path) -> None:
    metrics = fit(module(tokenizer, kind(), lr=0.0))
    assert metrics["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["val/loss"] == pytest.approx(math.log(2), abs=1e-5)
    for side in ("chosen", "rejected", "margin"):
        assert metrics[f"val/rewards/{side}"] == pytest.approx(0, abs=1e-5)
    assert metrics["val/log_ratio"] == pytest.approx(0, abs=1e-5)


def test_the_loss_leaves_ln_2_after_a_step(tokenizer: TokenizerSpec, cache: Path) -> None:
    assert fit(module(tokenizer), max_epochs=2)["train/loss"] < math.log(2) - 0.01


@pytest.mark.parametrize("stage", ["train", "val"])
def test_metrics_are_means_over_all_pairs(tokenizer: TokenizerSpec, stage: str) -> None:
    torch.manual_seed(1)
    other = PolicySpec(config=shallow()).build()
    made = module(tokenizer, FrozenReference(), lr=0.0)
    made.reference.model = other.requires_grad_(False)
    metrics = fit(made, accumulate_grad_batches=3)
    with torch.no_grad():
        own = torch.cat([answers(made.policy_model.causal_lm, batch) for batch in BATCHES])
        theirs = torch.cat([answers(other.causal_lm, batch) for batch in BATCHES])
    rewards = BETA * (own - theirs)
    margin = rewards[:, 0] - rewards[:, 1]
    assert 0 < (margin > 0).sum() < 5  # or accuracy would say nothing
    expected = {
        "loss": -torch.nn.functional.logsigmoid(margin).mean(),
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margin": margin.mean(),
        "rewards/accuracy": (margin > 0).float().mean(),
        "logps/chosen": own[:, 0].mean(),
        "logps/rejected": own[:, 1].mean(),
        "lengths/chosen": torch.tensor((4 + 6 + 1 + 5 + 3) / 5),
        "lengths/rejected": torch.tensor((7 + 2 + 3 + 5 + 3) / 5),
        "log_ratio": (own - theirs).mean(),
    }
    for name, value in expected.items():
        assert metrics[f"{stage}/{name}"] == pytest.approx(value.item(), rel=1e-4), name


def test_a_margin_of_exactly_zero_counts_half(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, FrozenReference())
    logps = pair_logps(made.policy_model(BATCHES[0]), BATCHES[0])
    assert made.pair_metrics(logps, logps)["rewards/accuracy"] == 1.0  # two pairs


def test_the_gradient_does_not_depend_on_how_pairs_are_split(tokenizer: TokenizerSpec, cache: Path) -> None:
    torch.manual_seed(1)
    other = PolicySpec(config=shallow()).build().requires_grad_(False)
    found = []
    for batches in (BATCHES, [merge(BATCHES)], [merge(BATCHES[:2]), BATCHES[2]]):
        made = module(tokenizer, FrozenReference())
        made.reference.model = other
        fit(made, batches, accumulate_grad_batches=len(batches))
        found.append(weights(made))
    start = weights(module(tokenizer, FrozenReference()))
    for name, value in start.items():
        moved = [result[name] - value for result in found]
        torch.testing.assert_close(moved[1], moved[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(moved[2], moved[0], rtol=1e-4, atol=1e-6)


def test_a_cached_reference_trains_to_the_same_weights_as_a_frozen_copy(tokenizer: TokenizerSpec, cache: Path) -> None:
    cached, frozen = module(tokenizer, CachedReference()), module(tokenizer, FrozenReference())
    fit(cached, max_epochs=3)
    fit(frozen, max_epochs=3)
    for name, value in weights(frozen).items():
        torch.testing.assert_close(weights(cached)[name], value, rtol=1e-5, atol=1e-6)
    assert not list(cached.reference.parameters())  # no second model in memory


@pytest.mark.slow
def test_switching_adapters_off_equals_a_frozen_copy_and_the_cache(tokenizer: TokenizerSpec, cache: Path) -> None:
    found = []
    for kind in (AdapterOffReference, FrozenReference, CachedReference):
        made = module(tokenizer, kind(), lora=True)
        fit(made, max_epochs=3)
        found.append(weights(made))
    start = weights(module(tokenizer, AdapterOffReference(), lora=True))
    assert any(not torch.equal(value, start[name]) for name, value in found[0].items())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[2][name], value, rtol=1e-5, atol=1e-6)


def test_adapters_off_without_adapters_says_what_to_do(tokenizer: TokenizerSpec) -> None:
    with pytest.raises(ValueError, match=r"set policy\.lora"):
        module(tokenizer, AdapterOffReference())


def test_validation_of_a_trained_policy_compares_with_its_reference_not_with_itself(
    tokenizer: TokenizerSpec, cache: Path, tmp_path: Path
) -> None:
    folder = str(tmp_path / "start")
    module(tokenizer).policy_model.causal_lm.save_pretrained(folder)
    made = module(tokenizer, policy=PolicySpec(path=folder))
    run = trainer(max_epochs=2, num_sanity_val_steps=0)
    run.fit(made, Rows(BATCHES))
    run.save_checkpoint(tmp_path / "trained.ckpt")
    unseen = pairs((4, 3, 8), seed=9)
    again = module(tokenizer, policy=PolicySpec(path=folder))
    start = pair_logps(again.policy_model(unseen), unseen)
    (metrics,) = trainer().validate(again, Rows([unseen]), ckpt_path=tmp_path / "trained.ckpt", verbose=False)
    trained = pair_logps(made.policy_model(unseen), unseen)
    margin = SigmoidLoss(BETA).rewards(trained, start).margin.item()
    assert abs(margin) > 0.1
    assert metrics["val/rewards/margin"] == pytest.approx(margin, rel=1e-4)


def test_a_loss_without_a_reference_gets_none_and_one_that_needs_it_is_refused(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, loss=NoNeed(BETA))
    assert isinstance(made.reference, NoReference)
    metrics = fit(made)
    assert metrics["train/rewards/chosen"] == pytest.approx(BETA * metrics["train/logps/chosen"], rel=1e-5)
    assert "train/log_ratio" not in metrics
    with pytest.raises(ValueError, match="SigmoidLoss compares the policy with a reference"):
        module(tokenizer, NoReference())


def test_documents_are_refused(tokenizer: TokenizerSpec, cache: Path) -> None:
    with pytest.raises(ValueError, match="use PreferenceDataModule"):
        fit(module(tokenizer), [row()])


def test_checkpoints_say_what_the_policy_was_compared_with(
    tokenizer: TokenizerSpec, cache: Path, tmp_path: Path
) -> None:
    made = module(tokenizer)
    run = trainer(max_epochs=1)
    run.fit(made, Rows(BATCHES))
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["lion"]["reference"] == made.reference.identity()
    assert not any(name.startswith("reference.") for name in saved["state_dict"])
    loaded = DPOModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.reference.identity() == made.reference.identity()
