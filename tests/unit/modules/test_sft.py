"""The SFT module: what it logs, how it evaluates, and that it needs no whole logits tensor."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim import SGD

from lion_lightning.losses import DFTLoss, TokenLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from lion_lightning.ops.logprobs import LOGITS_PER_TILE
from lion_lightning.types import PackedBatch
from tests.tiny import VOCABULARY, LargestTensor, Rows, alone, alone_all, merge, row, shallow, trainer

LONG, SHORT = row(seed=1), row(seed=2, supervised=[3, 4])


def module(tokenizer: TokenizerSpec, lr: float = 0.0, **options: Any) -> SFTModule:
    torch.manual_seed(0)
    policy = PolicySpec(config=shallow(**options.pop("shape", {})))
    made = SFTModule(policy, tokenizer=tokenizer, optimizer=lambda groups: SGD(groups, lr=lr), **options)
    made.configure_model()
    return made


def by_hand(made: SFTModule, batches: list[PackedBatch]) -> tuple[Tensor, float]:
    """Log-probs of all targets by the plain model, and the share of targets that it would have said."""
    model = made.policy_model.causal_lm
    with torch.no_grad():
        logps = torch.cat([alone(model, batch) for batch in batches])
        said = torch.cat([alone_all(model, batch).argmax(1) for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    return logps, (said == targets).float().mean().item()


@pytest.mark.parametrize("stage", ["train", "val", "test"])
def test_metrics_are_those_of_all_tokens_together_not_means_over_batches(tokenizer: TokenizerSpec, stage: str) -> None:
    made = module(tokenizer, shape={"num_hidden_layers": 2})  # of one layer it would be right once more
    run = trainer(max_epochs=1, accumulate_grad_batches=2)
    said = alone_all(made.policy_model.causal_lm, LONG).argmax(1)
    half = torch.arange(len(said)) % 2 == 0
    guessed = replace(LONG, targets=torch.where(half, said, LONG.targets))  # a random model is right only so
    batches = Rows([guessed, SHORT])
    if stage == "test":
        run.test(made, batches, verbose=False)
    else:
        run.fit(made, batches, batches)
    logps, accuracy = by_hand(made, [guessed, SHORT])
    metrics = {name: value.item() for name, value in run.callback_metrics.items() if name.startswith(stage)}
    assert metrics[f"{stage}/loss"] == pytest.approx(-logps.mean().item(), rel=1e-5)
    assert metrics[f"{stage}/perplexity"] == pytest.approx((-logps.mean()).exp().item(), rel=1e-5)
    assert metrics[f"{stage}/accuracy"] == pytest.approx(accuracy, rel=1e-6) == pytest.approx(11 / 23)
    means = [-by_hand(made, [batch])[0].mean() for batch in (guessed, SHORT)]
    wrong = torch.stack(means).exp().mean().item()  # the mean of the batches' perplexities
    assert abs(wrong / metrics[f"{stage}/perplexity"] - 1) > 0.01


def test_validation_starts_afresh_each_epoch_and_test_after_fit_has_its_own_meters(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, lr=0.5)
    run = trainer(max_epochs=2)
    run.fit(made, Rows([LONG]), Rows([LONG, SHORT]))
    after = -by_hand(made, [LONG, SHORT])[0].mean().item()
    assert run.callback_metrics["val/loss"].item() == pytest.approx(after, rel=1e-5)
    (tested,) = run.test(made, Rows([SHORT]), verbose=False)
    assert tested["test/loss"] == pytest.approx(-by_hand(made, [SHORT])[0].mean().item(), rel=1e-5)


class Stop(Callback):
    """Stops a run behind its first batch of validation, or of a test."""

    def on_validation_batch_end(self, *args: Any) -> None:
        raise RuntimeError("stop")

    def on_test_batch_end(self, *args: Any) -> None:
        raise RuntimeError("stop")


def test_an_evaluation_behind_one_that_was_stopped_counts_its_own_batches(tokenizer: TokenizerSpec) -> None:
    made, batches = module(tokenizer), Rows([LONG, SHORT])
    expected = -by_hand(made, [LONG, SHORT])[0].mean().item()
    for run in (Trainer.validate, Trainer.test):
        with pytest.raises(RuntimeError, match="stop"):
            run(trainer(callbacks=[Stop()]), made, batches, verbose=False)
        (found,) = run(trainer(), made, batches, verbose=False)
        assert [value for name, value in found.items() if name.endswith("/loss")] == [pytest.approx(expected, rel=1e-5)]


def test_perplexity_is_of_the_likelihood_whatever_the_loss(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, loss=DFTLoss())
    run = trainer(max_steps=1)
    run.fit(made, Rows([LONG]))
    logps, _ = by_hand(made, [LONG])
    assert run.callback_metrics["train/loss"].item() == pytest.approx(-(logps.exp() * logps).mean().item(), rel=1e-4)
    assert run.callback_metrics["train/perplexity"].item() == pytest.approx((-logps.mean()).exp().item(), rel=1e-5)


def test_dft_gradient_is_that_of_the_likelihood_weighted_by_a_detached_probability(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, loss=DFTLoss())
    torch.autograd.backward(made.compute_loss(LONG).total)
    actual = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    logps = alone(made.policy_model.causal_lm, LONG)
    torch.autograd.backward((-logps.detach().exp() * logps).sum())
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None
        assert (actual[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_a_loss_of_ones_own_is_injected_and_trains(tokenizer: TokenizerSpec) -> None:
    class Smoothed(TokenLoss):
        def forward(self, logps: Tensor) -> Tensor:
            return (1 - logps.exp()) / 0.5

    made = module(tokenizer, lr=0.5, loss=Smoothed())
    before = by_hand(made, [LONG])[0].exp().mean()
    trainer(max_epochs=10).fit(made, Rows([LONG]))
    assert by_hand(made, [LONG])[0].exp().mean() > 2 * before


def test_the_loss_falls_and_moves_from_its_first_value(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, lr=0.3)
    first = -by_hand(made, [LONG])[0].mean().item()
    trainer(max_epochs=20).fit(made, Rows([LONG]))
    assert -by_hand(made, [LONG])[0].mean().item() < first / 4


# --- weights of targets


def by_token(batch: PackedBatch) -> tuple[Tensor, PackedBatch]:
    """A weight for each word of the vocabulary, and the batch with those of its targets."""
    weights = torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(0)) + 0.1
    return weights, replace(batch, target_weights=weights[batch.targets])


def test_a_weighted_loss_and_its_gradient_are_those_of_torch(tokenizer: TokenizerSpec) -> None:
    weights, batch = by_token(LONG)
    made = module(tokenizer)
    output = made.compute_loss(batch)
    torch.autograd.backward(output.total / output.num_items)
    actual = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    logits = alone_all(made.policy_model.causal_lm, batch)  # log-probs, which a softmax leaves as they are
    expected = torch.nn.CrossEntropyLoss(weight=weights)(logits, batch.targets)
    torch.autograd.backward(expected)
    assert (output.total / output.num_items).item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None
        assert (actual[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_weights_of_a_half_and_two_by_hand(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer)
    (first, second), _ = by_hand(made, [SHORT])
    output: Any = made.compute_loss(replace(SHORT, target_weights=torch.tensor([0.5, 2.0])))
    assert output.num_items.item() == 2.5
    assert output.total.item() == pytest.approx(-(0.5 * first + 2 * second).item(), rel=1e-6)
    assert output.metrics["perplexity"].item() == output.total.item()
    dft = module(tokenizer, loss=DFTLoss()).compute_loss(replace(SHORT, target_weights=torch.tensor([0.5, 2.0])))
    expected = -(0.5 * first.exp() * first + 2 * second.exp() * second)
    assert dft.total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("stage", ["train", "val"])
def test_logged_means_divide_by_the_weights_also_below_one(tokenizer: TokenizerSpec, stage: str) -> None:
    made = module(tokenizer)
    said = alone_all(made.policy_model.causal_lm, SHORT).argmax(1)
    guessed = replace(SHORT, targets=torch.stack([said[0], SHORT.targets[1]]))  # the first is right
    weights = torch.tensor([0.125, 0.375])
    run = trainer(max_steps=1)
    batches = Rows([replace(guessed, target_weights=weights)])
    run.fit(made, batches, batches)
    logps, accuracy = by_hand(made, [guessed])
    assert accuracy == 0.5  # of tokens
    metrics = {name.split("/")[1]: value.item() for name, value in run.callback_metrics.items() if stage in name}
    loss = -(logps * weights).sum().item() / 0.5
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(0.25)  # of weights


def test_weights_are_added_up_in_fp32_whatever_the_precision(tokenizer: TokenizerSpec) -> None:
    batch = merge([LONG] * 20)
    weights = torch.full((20 * 21,), 1.5, dtype=torch.bfloat16)
    output = module(tokenizer).compute_loss(replace(batch, target_weights=weights))
    assert weights.sum().item() == 632  # of these numbers, bf16 holds every fourth
    assert output.num_items.item() == 630


def test_weights_of_1_change_no_bit(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer)
    plain: Any
    ones: Any
    plain, ones = (
        made.compute_loss(batch) for batch in (LONG, replace(LONG, target_weights=torch.ones(len(LONG.targets))))
    )
    assert torch.equal(plain.total, ones.total)
    assert plain.num_items == ones.num_items
    assert all(torch.equal(value.float(), ones.metrics[name].float()) for name, value in plain.metrics.items())


def test_no_tensor_of_targets_by_vocabulary_exists_in_a_whole_training_step(
    tokenizer: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGITS_PER_TILE, "cpu", 2**19)
    vocabulary = 8_000
    documents = row((64,) * 8, (-1,) * 8, vocabulary=vocabulary)
    made = module(tokenizer, shape={"vocab_size": vocabulary})
    with LargestTensor() as largest:
        torch.autograd.backward(made.compute_loss(documents).total)
    targets = len(documents.targets)
    assert targets == 8 * 63
    # the largest tensors are a tile of logits and the head's own gradient, at an eighth of the logits
    assert vocabulary * 32 < largest.numel <= 2**19 < targets * vocabulary / 7
    with LargestTensor() as naive:
        made.policy_model.causal_lm(input_ids=documents.input_ids[None], use_cache=False)
    assert naive.numel == 512 * vocabulary
