"""The learning rates of a run's steps: the first one trains, and what trains nothing is said."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import ConstantWithWarmup, CosineWithWarmup, LinearWithWarmup
from tests.marks import exhaustive
from tests.sft import module
from tests.tiny import DOCUMENTS, Rows, row, trainer

ROWS = [row(*DOCUMENTS, seed=seed) for seed in range(10)]


class Rates(Callback):
    """Writes down the rate of each step, and how long its window was."""

    def __init__(self) -> None:
        self.used: list[float] = []
        self.windows: list[int] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])
        self.windows.append(trainer.accumulate_grad_batches)


@pytest.mark.parametrize("kind", [CosineWithWarmup, LinearWithWarmup, ConstantWithWarmup])
def test_a_run_of_one_step_moves_the_weights_by_one_step_of_adam(tokenizer: TokenizerSpec, kind: Any) -> None:
    made = module(tokenizer, optimizer=partial(AdamW, lr=1e-3, weight_decay=0.0), lr_scheduler=kind)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    torch.autograd.backward(-made.policy_model(ROWS[0]).values.mean())
    gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    trainer(max_epochs=1).fit(made, Rows(ROWS[:1]))
    for name, parameter in made.named_parameters():
        # Adam's first step: both moments are corrected to the gradient's own, so it is the rate times the sign,
        # nearly; a warmup of 0.1 is the one step of this run, at half of the peak.
        gradient = gradients[name]
        step = 0.5e-3 * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(parameter, before[name] - step, atol=1e-7), name
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({"max_epochs": 2}, 20),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 6),  # windows of 4, 4 and 2
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 2, "limit_train_batches": 0.5, "accumulate_grad_batches": 2}, 6),  # 5 batches: 2, 2, 1
        ({"max_epochs": 3, "overfit_batches": 2}, 6),
        ({"max_epochs": 3, "fast_dev_run": 2}, 2),
        ({"max_epochs": 3, "callbacks": {0: 4, 2: 5}}, 8),  # 3 and 3 windows, then 2
        *exhaustive(({"max_epochs": 2, "max_steps": 7}, 7), ({"max_epochs": 2, "limit_train_batches": 3}, 6)),
    ],
    ids=str,
)
def test_a_schedule_ends_with_the_run_however_its_length_is_given(
    tokenizer: TokenizerSpec, options: dict[str, Any], total: int
) -> None:
    rates = Rates()
    changing = [GradientAccumulationScheduler(options.pop("callbacks"))] if "callbacks" in options else []
    made = module(tokenizer, optimizer=partial(SGD, lr=1.0), lr_scheduler=partial(LinearWithWarmup, warmup=0))
    run = trainer(callbacks=[rates, *changing], **options)
    run.fit(made, Rows(ROWS))
    schedule: Any = run.lr_scheduler_configs[0].scheduler
    assert schedule.total_steps == total
    assert rates.used == pytest.approx([1 - step / total for step in range(total)])


def test_a_schedule_that_begins_at_zero_is_told_of_in_a_run_of_one_step(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, step / 10)))
    with pytest.warns(UserWarning, match=r"one optimizer step, and its learning rate is 0, so nothing is trained"):
        trainer(max_steps=1).fit(made, Rows(ROWS))


def test_a_run_that_trained_nothing_says_so_at_its_end(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, optimizer=partial(SGD, lr=0.0))
    with pytest.warns(UserWarning, match=r"no step of this run had a learning rate above 0"):
        trainer(max_steps=3).fit(made, Rows(ROWS))


def test_a_warmup_longer_than_the_run_is_told(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, lr_scheduler=partial(LinearWithWarmup, warmup=100))
    with pytest.warns(UserWarning, match=r"100 steps of warmup in a run of 3, which never reaches"):
        trainer(max_steps=3).fit(made, Rows(ROWS))
