"""Meta-learned training: episodes by hand, what is seen of them outside, exact resume and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import SGD, AdamW

from lion_lightning import LoRASpec, PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.callbacks.optimization.fused_backward import FusedBackward
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.experimental.meta_sft import MetaSFTModule
from lion_lightning.types import LossOutput, PackedBatch, Sample, SampleSegment
from tests.tiny import Rows, row, shallow, trainer

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [row(seed=seed, supervised=range(25 - 3 * seed, 25) if seed else None) for seed in range(6)]
PLACE = "model.norm.weight"


def built(kind: type[SFTModule], tokenizer: TokenizerSpec, lora: LoRASpec | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"tokenizer": tokenizer, "optimizer": partial(AdamW, lr=1e-2, weight_decay=0.1)}
    made = kind(PolicySpec(config=shallow(), lora=lora), **settings | options)
    made.configure_model()
    return made


def fit(module: SFTModule, window: int, rows: Sequence[Any] = ROWS, *callbacks: Callback, **options: Any) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    settings = {"max_epochs": 1, "accumulate_grad_batches": window, "callbacks": list(callbacks)}
    run = trainer(**settings | options)
    run.fit(module, Rows(rows), Rows(rows[:2]), ckpt_path=ckpt_path)
    return run


def weights(module: SFTModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.policy_model.named_parameters()}


def assert_equal(one: SFTModule, other: SFTModule) -> None:
    expected = weights(other)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(one).items())


# --- episodes


class Parabola(MetaSFTModule):
    """The loss of a batch is ``(w - c)^2 / 2`` of one weight, and a batch is its number ``c``."""

    def require_kind(self, batch: Any) -> None:
        pass

    @property
    def weight(self) -> Tensor:
        return self.policy_model.causal_lm.get_parameter(PLACE)[0]

    def compute_loss(self, batch: Any) -> LossOutput:
        return LossOutput((self.weight - batch) ** 2 / 2, torch.tensor(1), {})


@pytest.mark.parametrize(
    ("numbers", "window", "expected"),
    [
        ((1.0, 2.0), 2, 0.95),  # w_1 = 0.1, G = 0.1 - 2 = -1.9, w = 0 + 0.5 * 1.9
        ((1.0, 1.0, 2.0), 3, 0.905),  # w_2 = 0.1 + 0.1 * 0.9 = 0.19, G = -1.81
        ((2.0,), 2, 1.0),  # an epoch that is over after the window's first micro-batch: G = -2
        ((1.0, 1.0, 2.0, 2.0), 3, 1.4525),  # 0.905, then a window of one: G = 0.905 - 2 = -1.095
    ],
)
def test_episodes_by_hand(tokenizer: TokenizerSpec, numbers: Any, window: int, expected: float) -> None:
    module = built(Parabola, tokenizer, inner_lr=0.1, optimizer=partial(SGD, lr=0.5))
    with torch.no_grad():
        module.weight.zero_()
    fit(module, window, [torch.tensor(number) for number in numbers], limit_val_batches=0)
    assert module.weight.item() == pytest.approx(expected)


def by_hand(module: SFTModule, rows: Sequence[PackedBatch], window: int, inner_lr: float, rate: float) -> None:
    """The same with plain tensors: first-order MAML with SGD outside."""
    parameters = [p for p in module.policy_model.parameters() if p.requires_grad]

    def gradients(batch: PackedBatch) -> Any:
        loss = -module.policy_model(batch).values.mean()
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    def move(step: float, found: Any) -> None:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    parameter.sub_(step * gradient)

    for first in range(0, len(rows), window):
        *inner, last = rows[first : first + window]
        start = [p.detach().clone() for p in parameters]
        for batch in inner:
            move(inner_lr, gradients(batch))
        found = gradients(last)
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        move(rate, found)


@pytest.mark.parametrize("lora", [None, LoRASpec(r=2, alpha=4)])
@pytest.mark.parametrize("window", [2, 4])  # with 4, the second is cut short
def test_the_loop_written_by_hand(tokenizer: TokenizerSpec, window: int, lora: LoRASpec | None) -> None:
    options: dict[str, Any] = {"inner_lr": 0.1, "optimizer": partial(SGD, lr=0.3), "lora": lora}
    module, expected = built(MetaSFTModule, tokenizer, **options), built(MetaSFTModule, tokenizer, **options)
    start = weights(expected)
    fit(module, window)
    by_hand(expected, ROWS, window, 0.1, 0.3)
    moved = weights(expected)
    for name, weight in weights(module).items():
        torch.testing.assert_close(weight, moved[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not all(torch.equal(value, moved[name]) for name, value in start.items())


@pytest.mark.parametrize("reduction", ["token_mean", "sum"])
def test_with_a_rate_of_zero_it_is_sft_on_every_windows_last_row(tokenizer: TokenizerSpec, reduction: str) -> None:
    meta, plain = built(MetaSFTModule, tokenizer, inner_lr=0.0, reduction=reduction), built(SFTModule, tokenizer)
    plain.reduction = reduction
    run = fit(meta, 2, gradient_clip_val=0.5)
    other = fit(plain, 1, ROWS[1::2], gradient_clip_val=0.5)
    assert_equal(meta, plain)
    assert run.callback_metrics["train/loss"] == other.callback_metrics["train/loss"]
    assert run.callback_metrics["train/grad_norm"] == other.callback_metrics["train/grad_norm"]


def test_a_window_of_three_at_a_rate_of_zero_is_sft_with_targets_in_the_last_row_alone(
    tokenizer: TokenizerSpec,
) -> None:
    meta, plain = built(MetaSFTModule, tokenizer, inner_lr=0.0), built(SFTModule, tokenizer)
    fit(meta, 3)
    fit(plain, 3, [batch if place % 3 == 2 else batch.without_targets() for place, batch in enumerate(ROWS)])
    assert_equal(meta, plain)


def test_a_row_without_targets_makes_no_inner_step(tokenizer: TokenizerSpec) -> None:
    meta, plain = built(MetaSFTModule, tokenizer, inner_lr=0.1), built(SFTModule, tokenizer)
    fit(meta, 2, [ROWS[0].without_targets(), ROWS[1]])
    fit(plain, 1, ROWS[1:2])
    assert_equal(meta, plain)


# --- what is seen of an episode


class Seen(Callback):
    """The weight at each hook outside of a micro-batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def look(self, module: Any) -> None:
        self.values.append(module.policy_model.causal_lm.get_parameter(PLACE)[0].item())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.look(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.look(pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.look(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.look(pl_module)


def test_outside_of_a_micro_batch_the_weights_are_those_of_the_last_step(tokenizer: TokenizerSpec) -> None:
    seen = Seen()
    fit(built(MetaSFTModule, tokenizer, inner_lr=0.5), 6, ROWS, seen, val_check_interval=1)
    before, after = set(seen.values[:-3]), set(seen.values[-3:])  # the last batch's end, and two rows of validation
    assert (before, len(after)) == ({1.0}, 1)
    assert after != before


def test_validation_within_a_window_sees_and_changes_nothing(tokenizer: TokenizerSpec) -> None:
    one, other = (built(MetaSFTModule, tokenizer, inner_lr=0.5) for _ in range(2))
    fit(one, 3, val_check_interval=1)
    fit(other, 3, limit_val_batches=0)
    assert_equal(one, other)


class Stopped(Callback):
    """Raises within the micro-batch of this number, when the policy holds adapted weights, and may save then."""

    def __init__(self, batch: int, path: Path | None = None) -> None:
        self.path, self.batch = path, batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if trainer.fit_loop.batch_idx == self.batch:
            raise KeyError("stopped")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.path:
            trainer.save_checkpoint(self.path)


def test_a_module_that_was_stopped_within_a_micro_batch_is_validated_by_the_weights_of_the_last_step(
    tokenizer: TokenizerSpec,
) -> None:
    module, expected = (built(MetaSFTModule, tokenizer, inner_lr=0.5) for _ in range(2))
    with pytest.raises(KeyError, match="stopped"):
        fit(module, 2, ROWS, Stopped(3))
    fit(expected, 2, ROWS[:2])
    one, other = (trainer().validate(each, Rows(ROWS), verbose=False) for each in (module, expected))
    assert one == other


def test_a_checkpoint_of_an_error_within_a_micro_batch_holds_the_weights_of_the_last_step(
    tokenizer: TokenizerSpec, tmp_path: Path
) -> None:
    module, expected = (built(MetaSFTModule, tokenizer, inner_lr=0.5) for _ in range(2))
    with pytest.raises(KeyError, match="stopped"):
        fit(module, 2, ROWS, Stopped(3, tmp_path / "a.ckpt"), max_epochs=2)
    fit(expected, 2, ROWS[:2])
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    own = weights(expected)
    assert all(torch.equal(saved[f"policy.{name}"], weight) for name, weight in own.items())
    fit(module, 2, ROWS[2:4])  # the same module again: nothing of the stopped episode is left
    whole = built(MetaSFTModule, tokenizer, inner_lr=0.5)
    whole.load_state_dict(saved, strict=False)
    fit(whole, 2, ROWS[2:4])
    assert_equal(module, whole)


class Saved(Callback):
    """Saves a checkpoint after every batch, also within a window."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        trainer.save_checkpoint(self.folder / f"{batch}.ckpt")


def test_a_run_goes_on_equal_from_any_batch(tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    samples = [
        Sample((SampleSegment(np.arange(3, 11, dtype=np.int32) + 5 * n, np.ones(8, bool)),), n) for n in range(5)
    ]

    def run(*callbacks: Callback, ckpt_path: Path | None = None) -> Any:
        module = built(MetaSFTModule, tokenizer, inner_lr=0.5)
        loader = PackedLoader(samples, np.full(5, 8), capacity=8, batch_size=1, shuffle=True, seed=1)
        made = trainer(max_epochs=2, accumulate_grad_batches=3, callbacks=list(callbacks))
        made.fit(module, loader, ckpt_path=ckpt_path)  # episodes of 3 and 2 rows in each epoch
        assert made.global_step == 4
        return module

    whole = run(Saved(tmp_path))
    for batch in (1, 2, 3, 4, 7):
        assert_equal(run(ckpt_path=tmp_path / f"{batch}.ckpt"), whole)


# --- refusals


@pytest.mark.parametrize("inner_lr", [-0.1, float("inf"), float("nan")])
def test_a_negative_or_infinite_rate_is_refused(tokenizer: TokenizerSpec, inner_lr: float) -> None:
    with pytest.raises(ValueError, match=r"model\.inner_lr is .*at least 0"):
        built(MetaSFTModule, tokenizer, inner_lr=inner_lr)


def test_settings_of_an_optimizer_step_are_refused(tokenizer: TokenizerSpec) -> None:
    for options in ({"policy": PolicySpec(config=shallow(), trainable_rows=[3])}, {"router_aux_loss_coef": 0.1}):
        with pytest.raises(ValueError, match=r"policy\.trainable_rows and model\.router_aux_loss_coef"):
            MetaSFTModule(**({"policy": PolicySpec(config=shallow())} | options), tokenizer=tokenizer, inner_lr=0.1)


def test_a_window_of_one_and_scaled_losses_are_refused(
    tokenizer: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = built(MetaSFTModule, tokenizer, inner_lr=0.1)
    with pytest.raises(MisconfigurationException, match="one micro-batch makes no step within it"):
        fit(module, 1)
    run = trainer(accumulate_grad_batches=2)
    monkeypatch.setattr(run.precision_plugin, "scaler", object(), raising=False)
    with pytest.raises(MisconfigurationException, match="16-mixed scales the loss"):
        run.fit(module, Rows(ROWS))


@pytest.mark.parametrize(("window", "message"), [(1, "MetaSFTModule takes its inner"), (2, "cannot be added up")])
def test_gradients_that_are_not_kept_are_refused(tokenizer: TokenizerSpec, window: int, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(built(MetaSFTModule, tokenizer, inner_lr=0.1), window, ROWS, FusedBackward())
