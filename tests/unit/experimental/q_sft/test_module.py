"""The module of Q-SFT: values of actions by hand, the target network, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.optim import SGD

from lion_lightning.callbacks.startup import summarize
from lion_lightning.experimental.q_sft import DummyRest, QSFTLoss, QSFTModule
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.planning.job import job_of
from lion_lightning.types import PackedBatch
from tests import tiny

TREES = tiny.trees((4, (3, 5), (0.5, 0.0)), (6, (1,), (1.0,)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return TokenizerSpec(str(tiny.tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))))


def made(tokenizer: TokenizerSpec, lora: bool = False, **options: Any) -> QSFTModule:
    torch.manual_seed(0)
    spec = PolicySpec(config=tiny.shallow(), lora=LoRASpec(r=4) if lora else None)
    behaviour = options.pop("behaviour", PolicySpec(config=tiny.shallow()))
    module = QSFTModule(
        spec, behaviour, tokenizer=tokenizer, optimizer=lambda groups: SGD(groups, lr=0.5), **{"floor": 1e-3} | options
    )
    module.configure_model()
    return module


@torch.no_grad()
def ratios(module: QSFTModule, batch: PackedBatch) -> Tensor:
    """``(targets, vocabulary)`` of target network and behaviour, by plain models; NaN below the floor."""
    models = [reference.model for reference in (module.target, module.behaviour)]
    target, behaviour = (tiny.alone_all(model.causal_lm, batch) for model in models if model is not None)
    return torch.where(behaviour >= math.log(module.floor), (target - behaviour).exp(), math.nan)


def best(row: Tensor) -> float:
    return float(row.nan_to_num(0).max())


def test_a_value_is_the_discounted_best_one_of_the_next_state_and_the_reward_at_the_end(
    tokenizer: TokenizerSpec,
) -> None:
    module = made(tokenizer, gamma=0.1)
    by_hand = ratios(module, TREES)
    expected: list[float] = []
    for last, reward in ((2, 0.5), (7, 0.0), (8, 1.0)):  # answers of 3, 5 and 1 targets
        expected += [0.1 * best(by_hand[place + 1]) for place in range(len(expected), last)] + [reward]
    clipped = [value > 1 for value in expected]
    assert 0 < sum(clipped) < len(clipped)
    values, over = module.targets(TREES)
    torch.testing.assert_close(values, torch.tensor([min(value, 1.0) for value in expected]), rtol=1e-4, atol=1e-5)
    assert over.tolist() == clipped
    metrics = module.compute_loss(TREES).metrics
    assert metrics["q/clipped"] == sum(clipped)
    assert float(metrics["q/target"]) == pytest.approx(float(values.sum()))  # type: ignore[arg-type]


def test_between_turns_the_next_state_is_the_one_before_the_next_supervised_token(tokenizer: TokenizerSpec) -> None:
    """An answer of 7 tokens, of which 2 and 5, 6 are the player's: behind 2 comes the state before 5, not that of 3."""
    module = made(tokenizer, gamma=0.1)
    turns = replace(tiny.row((4, 7), (-1, 0), supervised=[4 + 2, 4 + 5, 4 + 6]), values=(0.25,))
    assert turns.logit_positions.tolist() == [5, 8, 9]
    by_hand = ratios(module, turns)
    expected = torch.tensor([0.1 * best(by_hand[1]), 0.1 * best(by_hand[2]), 0.25]).clamp(max=1)
    torch.testing.assert_close(module.targets(turns)[0], expected, rtol=1e-4, atol=1e-5)


def test_single_actions_that_were_worth_1_are_fine_tuned_on(tokenizer: TokenizerSpec) -> None:
    module = made(tokenizer)
    single = tiny.trees((4, (1, 1), (1.0, 1.0)))
    output = module.compute_loss(single)
    torch.testing.assert_close(output.total, -module.policy_model(single).values.sum())
    assert output.num_items == 2


def test_no_discount_but_0_is_a_bandit_of_the_last_token(tokenizer: TokenizerSpec) -> None:
    values, over = made(tokenizer, gamma=0.0).targets(TREES)
    assert values.tolist() == [0, 0, 0.5, 0, 0, 0, 0, 0, 1.0]
    assert not over.any()


@pytest.mark.parametrize("lora", [False, True])
def test_the_target_network_follows_after_each_step_and_the_behaviour_stays(
    tokenizer: TokenizerSpec, lora: bool
) -> None:
    module = made(tokenizer, lora, alpha=0.25)
    behaviour, target = module.behaviour.model, module.target.model
    assert behaviour is not None
    assert target is not None
    before = [{name: p.clone() for name, p in model.named_parameters()} for model in (module.policy_model, behaviour)]
    tiny.trainer(max_epochs=1).fit(module, tiny.Rows([TREES]))
    moved = 0
    for name, parameter in module.policy_model.named_parameters():
        expected = torch.lerp(before[0][name], parameter.detach(), 0.25)
        torch.testing.assert_close(dict(target.named_parameters())[name], expected)
        moved += bool((parameter != before[0][name]).any())
    trained = sum(parameter.requires_grad for parameter in module.policy_model.parameters())
    assert moved == (trained // 2 if lora else trained)  # the factor that begins at 0 moves first
    assert all(torch.equal(p, before[1][name]) for name, p in behaviour.named_parameters())


@pytest.mark.parametrize("loss", [None, DummyRest(2)], ids=["uniform", "dummy"])
def test_a_rank_without_rows_keeps_step(tokenizer: TokenizerSpec, loss: QSFTLoss | None) -> None:
    module, none = made(tokenizer, loss=loss), TREES.without_targets()
    module.require_kind(none)
    output = module.compute_loss(none)
    assert output.total == 0
    assert output.num_items == 0


def test_the_plan_and_the_summary_of_a_run_count_both_other_models(tokenizer: TokenizerSpec) -> None:
    module = made(tokenizer)
    planned = job_of(module, tokens=64, longest=32, precision="32-true")
    assert len(planned.references) == planned.reference_passes == 2
    size = sum(parameter.numel() for parameter in module.policy_model.parameters())
    run = tiny.trainer(max_epochs=1)
    summary: dict[str, Any] = {}
    run.callbacks.append(LambdaCallback(on_train_start=lambda *both: summary.update(summarize(*both))))  # type: ignore[attr-defined]
    run.fit(module, tiny.Rows([TREES]))
    assert summary["policy"]["parameters"] == size
    assert summary["reference"] == {"kind": "FrozenReference and MixedReference", "parameters": 2 * size}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"gamma": 1.1}, "QSFTModule: gamma is 1.1; give a number from 0 to 1"),
        ({"alpha": 0.0}, "QSFTModule: alpha is 0.0; give a number above 0 and at most 1"),
        ({"alpha": 1.5}, "QSFTModule: alpha is 1.5; give a number above 0 and at most 1"),
        ({"floor": 0.0}, "QSFTModule: floor is 0.0; give a number between 0 and 1"),
        ({"floor": 1.0}, "QSFTModule: floor is 1.0; give a number between 0 and 1"),
        ({"behaviour": PolicySpec(config=tiny.shallow(vocab_size=103))}, "has another vocabulary than the policy"),
        ({"behaviour": "./none"}, r"^model\.behaviour: \./none does not exist"),
        ({"loss": DummyRest(300)}, "token_id is 300, and the model has tokens 0 to 100"),
    ],
)
def test_settings_out_of_range_are_one_line(tokenizer: TokenizerSpec, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        made(tokenizer, **options)


def test_a_behaviour_of_as_many_but_other_tokens_is_refused(tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    PolicySpec(config=tiny.shallow()).build().causal_lm.save_pretrained(tmp_path)
    made(tokenizer, behaviour=str(tmp_path))  # a folder without a tokenizer says no more than its size
    tiny.tokenizer_folder(tmp_path)
    made(tokenizer, behaviour=str(tmp_path))
    words = tmp_path / "tokenizer.json"
    words.write_text(words.read_text().replace('"w3"', '"x3"'))
    with pytest.raises(ValueError, match="has another vocabulary than the policy"):
        made(tokenizer, behaviour=str(tmp_path))


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        (tiny.row(), "trains on trajectories with rewards, and the batch holds something else"),
        (tiny.pairs((4, 3, 5)), "trains on trajectories with rewards, and the batch holds something else"),
        (replace(TREES, values=(0.5, -1.0, 1.0)), "a trajectory has the reward -1.0; give numbers from 0 to 1"),
        (replace(TREES, values=(0.5, 2.0, 1.0)), "a trajectory has the reward 2.0; give numbers from 0 to 1"),
        (replace(TREES, values=(math.nan, 0.0, 1.0)), "a trajectory has the reward nan; give numbers from 0 to 1"),
    ],
)
def test_other_batches_are_refused(tokenizer: TokenizerSpec, batch: PackedBatch, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        made(tokenizer).require_kind(batch)
