"""Numbers and callbacks that make no sense are refused by name, before a step is made of them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from lion_lightning.losses import TokenLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import CosineWithWarmup, SFTModule
from lion_lightning.modules.optimization.limits import has_bf16
from tests.sft import module
from tests.tiny import Rows, row, shallow, trainer

ROWS = [row(seed=seed) for seed in range(4)]
HALT = pytest.mark.filterwarnings("ignore")


TRAINER = {
    "accumulate_grad_batches is 0; give a number of at least 1": {"accumulate_grad_batches": 0},
    "accumulate_grad_batches is -2": {"accumulate_grad_batches": -2},
    "gradient_clip_val is -1; give a number of at least 0": {"gradient_clip_val": -1},
    "gradient_clip_val is nan": {"gradient_clip_val": math.nan},
    "gradient_clip_val is inf": {"gradient_clip_val": math.inf},
    "val_check_interval is 0; give a share": {"val_check_interval": 0},
    "check_val_every_n_epoch is 0": {"check_val_every_n_epoch": 0},
    "min_steps is -4": {"min_steps": -4},
    "log_every_n_steps is -1": {"log_every_n_steps": -1},
}


@pytest.mark.parametrize(("said", "options"), TRAINER.items(), ids=TRAINER)
def test_numbers_that_lightning_lets_pass(tokenizer: TokenizerSpec, said: str, options: dict[str, Any]) -> None:
    before = module(tokenizer)
    weights = [p.detach().clone() for p in before.parameters()]
    with pytest.raises(MisconfigurationException, match=f"^trainer.{said}"):
        trainer(max_epochs=1, **options).fit(before, Rows(ROWS), Rows(ROWS))
    assert all(torch.equal(*both) for both in zip(before.parameters(), weights, strict=True))


STEPS = {
    r"^model\.optimizer\.lr is inf; give a finite number": {"optimizer": partial(AdamW, lr=math.inf)},
    r"^model\.optimizer\.lr is -1\.0; give a number of at least 0": {"optimizer": partial(SGD, lr=-1.0)},
    r"^model\.optimizer\.weight_decay is inf": {"optimizer": partial(AdamW, weight_decay=math.inf)},
    r"^model\.optimizer\.betas\.1 is nan": {"optimizer": partial(AdamW, betas=(0.9, math.nan))},
    r"^model\.optimizer\.eps is inf": {"optimizer": lambda groups: AdamW(groups, eps=math.inf)},  # no keywords to see
    r"^model\.optimizer: Invalid learning rate: -1": {"optimizer": lambda groups: AdamW(groups, lr=-1)},
    r"^model\.lr_scheduler\.step_size is 0; give a number of at least 1": {
        "lr_scheduler": partial(StepLR, step_size=0)
    },
    r"^model\.lr_scheduler\.T_max is 0": {"lr_scheduler": partial(CosineAnnealingLR, T_max=0)},
    r"^model\.lr_scheduler\.gamma is nan": {"lr_scheduler": partial(StepLR, step_size=1, gamma=math.nan)},
    r"^lr_scheduler\.warmup is -1; give": {"lr_scheduler": partial(CosineWithWarmup, warmup=-1)},
}


@pytest.mark.parametrize(("said", "options"), STEPS.items(), ids=STEPS)
def test_numbers_of_optimizers_and_schedules(tokenizer: TokenizerSpec, said: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=said):
        trainer(max_epochs=1).fit(module(tokenizer, **options), Rows(ROWS))


def test_a_number_of_ones_own_objective(tokenizer: TokenizerSpec) -> None:
    class Own(SFTModule):
        def __init__(self, policy: Any, tokenizer: Any, margin: float) -> None:
            super().__init__(policy, tokenizer=tokenizer)
            self.margin = margin

    own = Own(PolicySpec(config=shallow()), tokenizer, math.nan)
    with pytest.raises(ValueError, match=r"^model\.margin is nan; give a finite number"):
        trainer(max_epochs=1).fit(own, Rows(ROWS))


class Spoiled(TokenLoss):
    """Is NaN, or infinite, from its third batch on."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.calls = torch.tensor(value), 0

    def forward(self, logps: Tensor) -> Tensor:
        self.calls += 1
        return -logps * (self.value if self.calls > 2 else 1.0)


@HALT
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_its_step(tokenizer: TokenizerSpec, value: float) -> None:
    whole, stopped = (module(tokenizer, optimizer=partial(SGD, lr=0.1)) for _ in range(2))
    trainer(max_steps=2).fit(whole, Rows(ROWS))
    stopped.loss = Spoiled(value)
    run = trainer(max_epochs=1)
    with pytest.raises(ValueError, match=r"^train/loss is (nan|-?inf) in step 3 \(epoch 0\), which was not made"):
        run.fit(stopped, Rows(ROWS))
    assert run.global_step == 2
    for mine, other in zip(stopped.policy_model.parameters(), whole.policy_model.parameters(), strict=True):
        assert torch.equal(mine, other)


class SpoilGradient(Callback):
    """Makes the gradient of the second step NaN; its loss is a number."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 1:
            next(iter(pl_module.policy_model.parameters())).grad.fill_(math.nan)


def test_a_loss_of_weights_that_an_earlier_gradient_has_spoilt_says_so(tokenizer: TokenizerSpec) -> None:
    run = trainer(max_epochs=1, callbacks=[SpoilGradient()])
    said = r"^train/loss is nan in step 3 \(epoch 0\), because weights are NaN or infinite already: a step before had"
    with pytest.raises(ValueError, match=said):
        run.fit(module(tokenizer, optimizer=partial(SGD, lr=0.1)), Rows(ROWS))


@pytest.mark.parametrize("tuner", [LearningRateFinder, BatchSizeFinder])
def test_tuners_are_refused_in_a_line(tokenizer: TokenizerSpec, tuner: Any) -> None:
    own = module(tokenizer)
    own.trainer = trainer(callbacks=[tuner()])
    with pytest.raises(MisconfigurationException, match=rf"^{tuner.__name__} .*: take the callback out of trainer"):
        own.setup("fit")


def watchers(key: str, folder: Path) -> dict[str, dict[str, Any]]:
    plateau = partial(ReduceLROnPlateau, monitor=key)
    return {
        "EarlyStopping": {"callbacks": [EarlyStopping(key)]},
        "ModelCheckpoint": {"callbacks": [ModelCheckpoint(folder, monitor=key)], "enable_checkpointing": True},
        "lr_scheduler: ReduceLROnPlateau": {"lr_scheduler": plateau},
    }


@HALT
@pytest.mark.parametrize("who", watchers("", Path()))
@pytest.mark.parametrize(
    ("key", "held", "said", "steps"),
    [
        ("val/loss", [], "and this run does not validate", 0),
        ("val/losss", ROWS, "which nobody logs; there is val/accuracy, val/loss, val/perplexity", 0),
        ("train/losss", ROWS, "which nobody logs; there is train/accuracy", 1),
    ],
)
def test_who_waits_for_a_metric_that_does_not_come_is_told_early(
    tokenizer: TokenizerSpec, tmp_path: Path, who: str, key: str, held: Any, said: str, steps: int
) -> None:
    options = watchers(key, tmp_path)[who]
    made = module(tokenizer, lr_scheduler=options.pop("lr_scheduler", None))
    run = trainer(max_epochs=3, **options)
    with pytest.raises(MisconfigurationException, match=f"^{who} monitors '{key}', {said}"):
        run.fit(made, Rows(ROWS), Rows(held) if held else None)
    assert run.global_step == steps


@HALT
def test_a_schedule_that_follows_a_metric_follows_it_once_an_epoch(tokenizer: TokenizerSpec) -> None:
    schedule = partial(ReduceLROnPlateau, monitor="val/loss", factor=0.5, patience=0, threshold=1e9)
    made = module(tokenizer, optimizer=partial(SGD, lr=0.8), lr_scheduler=schedule)
    run = trainer(max_epochs=3)
    run.fit(made, Rows(ROWS), Rows(ROWS))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)  # no epoch betters another by so much


def test_bf16_on_a_processor_without_it_is_told_with_the_fix(
    tokenizer: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, Any] = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    with pytest.warns(UserWarning, match=r"this CPU has no instructions for bf16, .* set trainer\.precision: 32-true"):
        trainer(max_steps=1, precision="bf16-mixed").fit(module(tokenizer), Rows(ROWS))
    for name in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: known | {name: True})
        assert has_bf16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"})
    assert has_bf16(torch.device("cpu"))
