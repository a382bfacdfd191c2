"""The reward stage: its loss by hand and against TRL, what it logs, and how a step is normalized."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.optim import SGD

from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.rewards.model import RewardModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.reward import RewardModule
from lion_lightning.types import PackedBatch, Sample, SampleSegment
from tests.marks import slow
from tests.tiny import Rows, merge, pairs, policy, row, shallow, trainer

BATCHES = [pairs((5, 4, 7), (3, 6, 2), seed=1), pairs((4, 1, 3), seed=2), pairs((2, 5, 5), (6, 3, 3), seed=3)]


class Given(nn.Module):
    """Rewards that are given, for any batch."""

    def __init__(self, *rewards: float) -> None:
        super().__init__()
        self.rewards = torch.tensor(rewards)

    def forward(self, batch: PackedBatch) -> Tensor:
        return self.rewards


def module(tokenizer: TokenizerSpec, lr: float = 0.5, **options: Any) -> RewardModule:
    torch.manual_seed(0)
    policy = PolicySpec(config=shallow())
    made = RewardModule(policy, tokenizer=tokenizer, optimizer=lambda p: SGD(p, lr=lr), **options)
    made.configure_model()
    return made


def output(batch: PackedBatch, rewards: Sequence[float], tokenizer: TokenizerSpec, **options: Any) -> Any:
    """What the module makes of given rewards."""
    made = RewardModule(PolicySpec(config=shallow()), tokenizer=tokenizer, **options)
    made.policy = Given(*rewards)  # type: ignore[assignment]
    return made.compute_loss(batch)


def test_the_loss_by_hand(tokenizer: TokenizerSpec) -> None:
    batch = pairs((2, 1, 1), (2, 1, 1))
    # ln(1 + e^-1) + ln(1 + e^2)
    assert output(batch, (2, 1, 0, 2), tokenizer).total.item() == pytest.approx(0.3132617 + 2.1269280)
    # the margin of 0.5 is taken off both differences, 1 and -2
    assert output(batch, (2, 1, 0, 2), tokenizer, margin=0.5).total.item() == pytest.approx(0.4740770 + 2.5788887)
    # the squared sums of both rewards, 9 and 4, times 0.1
    centered = output(batch, (2, 1, 0, 2), tokenizer, center_rewards_coefficient=0.1)
    assert centered.total.item() == pytest.approx(0.3132617 + 2.1269280 + 1.3)
    assert centered.num_items == 2


def test_margins_follow_the_difference_of_scores(tokenizer: TokenizerSpec) -> None:
    batch = replace(pairs((2, 1, 1), (2, 1, 1)), values=(5.0, 3.0, 1.0, 1.0))
    made = RewardModule(PolicySpec(config=shallow()), tokenizer=tokenizer, margin=0.25, margin_per_score=0.5)
    assert made.margins(batch) == [1.25, 0.25]
    assert made.margins(replace(batch, values=(3.0, 5.0, 1.0, 1.0))) == [0.25, 0.25]  # joined: of rows that disagree
    # ln(1 + e^(1.25 - 1)) + ln(1 + e^(0.25 + 2))
    both = output(batch, (2, 1, 0, 2), tokenizer, margin=0.25, margin_per_score=0.5)
    assert both.total.item() == pytest.approx(0.8259394 + 2.3502079)
    with pytest.raises(ValueError, match=r"model\.margin_per_score: answers of a pair have no scores"):
        made.margins(replace(batch, values=(5.0, math.nan, 1.0, 1.0)))


def test_metrics_are_means_over_pairs_and_a_tie_is_half_right(tokenizer: TokenizerSpec) -> None:
    metrics = output(pairs(*[(2, 1, 1)] * 3), (2, 1, 0, 2, 1, 1), tokenizer).metrics
    assert {name: value.item() for name, value in metrics.items()} == {
        "rewards/chosen": 3.0,
        "rewards/rejected": 4.0,
        "rewards/margin": -1.0,
        "rewards/accuracy": 1.5,
    }


@pytest.mark.parametrize("settings", [{}, {"margin": 0.3}, {"center_rewards_coefficient": 0.2}])
def test_the_loss_is_that_of_trls_reward_trainer(settings: dict[str, float], tokenizer: TokenizerSpec) -> None:
    trl = pytest.importorskip("trl.trainer.reward_trainer", reason="needs the test extra: pip install -e '.[test]'")
    torch.manual_seed(1)
    rewards = torch.randn(5, 2, dtype=torch.float64) * 3
    standing: Any = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=settings.get("center_rewards_coefficient")),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _total_train_tokens=0,
        _tp_size=1,
        _metrics={"train": defaultdict(list)},
    )
    inputs: dict[str, Any] = {"attention_mask": torch.ones(10, 1)}
    if "margin" in settings:
        inputs["margin"] = torch.full((5,), settings["margin"], dtype=torch.float64)
    answers = rewards.T.reshape(-1, 1)  # chosen first, then rejected
    theirs = trl.RewardTrainer.compute_loss(standing, lambda **_: SimpleNamespace(logits=answers), inputs)
    ours = output(pairs(*[(2, 1, 1)] * 5), rewards.flatten().tolist(), tokenizer, **settings)
    assert ours.total.item() / 5 == pytest.approx(theirs.item(), rel=1e-6)
    assert ours.metrics["rewards/accuracy"].item() / 5 == pytest.approx(standing._metrics["train"]["accuracy"][0])
    assert ours.metrics["rewards/margin"].item() / 5 == pytest.approx(standing._metrics["train"]["margin"][0])


def test_all_pairs_of_a_tree_compute_each_answer_once(
    tokenizer: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = row((4, 3, 2, 5), (-1, 0, 0, 0), seed=5)
    tree = replace(tree, pairs=((1, 0), (0, 2), (1, 2)))
    made = module(tokenizer)
    seen: list[tuple[int, ...]] = []
    scores = RewardModel._scores

    def counted(self: RewardModel, states: Tensor) -> Tensor:
        seen.append(tuple(states.shape))
        return scores(self, states)

    monkeypatch.setattr(RewardModel, "_scores", counted)
    found = made.compute_loss(tree)
    assert seen == [(3, 32)]  # three answers for six sides of pairs
    rewards = made.reward_model(tree)
    expected = -logsigmoid(torch.stack([rewards[1] - rewards[0], rewards[0] - rewards[2], rewards[1] - rewards[2]]))
    torch.testing.assert_close(found.total, expected.sum())
    assert found.num_items == 3


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_divides_by_the_pairs_of_all_its_micro_batches(accumulate: int, tokenizer: TokenizerSpec) -> None:
    batches = BATCHES if accumulate == 3 else [merge(BATCHES)]
    made = module(tokenizer)
    run = trainer(max_epochs=1, num_sanity_val_steps=0, accumulate_grad_batches=accumulate)
    run.fit(made, Rows(batches))
    start = module(tokenizer)
    output = start.compute_loss(merge(BATCHES))
    torch.autograd.backward(output.total / 5)  # five pairs
    for name, parameter in start.policy_model.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() - 0.5 * parameter.grad
        torch.testing.assert_close(made.policy_model.get_parameter(name).detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_run_logs_loss_accuracy_margin_and_rewards(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer)
    run = trainer(max_epochs=1, num_sanity_val_steps=0)
    run.fit(made, Rows(BATCHES), Rows(BATCHES))
    names = {"loss", "rewards/accuracy", "rewards/margin", "rewards/chosen", "rewards/rejected"}
    assert {name for name in run.callback_metrics if name.startswith("val/")} == {f"val/{name}" for name in names}
    whole = made.eval().compute_loss(merge(BATCHES))
    assert run.callback_metrics["val/loss"].item() == pytest.approx(whole.total.item() / 5, rel=1e-5)


def test_documents_are_refused(tokenizer: TokenizerSpec) -> None:
    with pytest.raises(ValueError, match="RewardModule trains on preference pairs, and the batch holds documents"):
        trainer(max_epochs=1, num_sanity_val_steps=0).fit(module(tokenizer), Rows([row()]))


@pytest.mark.parametrize("name", ["margin", "margin_per_score", "center_rewards_coefficient"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_numbers_that_make_no_sense_are_refused(name: str, value: float, tokenizer: TokenizerSpec) -> None:
    with pytest.raises(ValueError, match=rf"model\.{name} is "):
        RewardModule(PolicySpec(config=shallow()), tokenizer=tokenizer, **{name: value})


def test_a_module_is_made_from_its_checkpoint(tmp_path: Path, tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, margin=0.5)
    run = trainer(max_epochs=1, num_sanity_val_steps=0)
    run.fit(made, Rows(BATCHES))
    run.save_checkpoint(tmp_path / "one.ckpt")
    again = RewardModule.load_from_checkpoint(tmp_path / "one.ckpt")
    assert again.margin == 0.5
    assert again.reward_model.causal_lm.config.pad_token_id == 0  # <unk>, not the <|im_end|> that ends answers
    torch.testing.assert_close(again.eval().reward_model(BATCHES[0]), made.eval().reward_model(BATCHES[0]))


class Kill(Callback):
    """Stops the run before the batch of this number, counted over epochs."""

    def __init__(self, batch: int | None) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch * 4 + batch_idx == self.batch:
            raise RuntimeError("killed")


@pytest.mark.parametrize("lora", [False, *slow(True)])
def test_a_run_stopped_inside_an_epoch_ends_bit_for_bit_as_one_that_was_not(
    lora: bool, tmp_path: Path, tokenizer: TokenizerSpec
) -> None:
    lengths = [(2, 3, 4), (3, 2, 2), (4, 1, 5), (2, 2, 3), (3, 4, 2), (1, 5, 3), (2, 2, 6)]
    rng = np.random.default_rng(1)
    samples = []
    for number, sizes in enumerate(lengths):
        ids = [rng.integers(3, 101, size).astype(np.int32) for size in sizes]
        parts = [SampleSegment(one, np.full(len(one), place > 0), min(place, 1) - 1) for place, one in enumerate(ids)]
        samples.append(Sample(tuple(parts), number, values=(math.nan, math.nan), pairs=((0, 1),)))
    policy(num_hidden_layers=1).causal_lm.save_pretrained(tmp_path / "model")

    def fit(name: str, kill: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        spec = PolicySpec(str(tmp_path / "model"), lora=LoRASpec(r=2, dropout=0.1) if lora else None)
        made = RewardModule(spec, tokenizer=tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2))
        saver = ModelCheckpoint(tmp_path / name, save_last=True, save_top_k=-1, every_n_train_steps=1)
        run = trainer(max_epochs=2, callbacks=[saver, Kill(kill)], enable_checkpointing=True, num_sanity_val_steps=0)
        rows = PackedLoader(samples, np.array([one.length for one in samples]), capacity=18, batch_size=1, shuffle=True)
        try:
            run.fit(made, rows, ckpt_path="last")
        except RuntimeError:
            assert kill is not None
        else:
            assert run.global_step == 8
        return dict(made.state_dict())

    whole = fit("whole")
    fit("killed", kill=6)  # in the second epoch
    resumed = fit("killed")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
