"""What tests of modules over answers and groups share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.references.base import FrozenReference
from lion_lightning.types import PackedBatch
from tests.tiny import Rows, alone, shallow, trainer


def built(kind: Any, tokenizer: TokenizerSpec, lr: float = 0.5, lora: bool = False, **options: Any) -> Any:
    """A module with a tiny random policy, always the same."""
    torch.manual_seed(0)
    spec = PolicySpec(config=shallow(), lora=LoRASpec(r=4) if lora else None)
    made = kind(spec, tokenizer=tokenizer, optimizer=lambda p: SGD(p, lr=lr), **options)
    made.configure_model()
    return made


def against_another(kind: Any, tokenizer: TokenizerSpec, **options: Any) -> Any:
    """The same with a frozen reference of other weights."""
    made = built(kind, tokenizer, reference=FrozenReference(), **options)
    torch.manual_seed(1)
    made.reference.model = PolicySpec(config=shallow()).build().requires_grad_(False)
    return made


def fit(made: Any, batches: list[PackedBatch], **options: Any) -> dict[str, float]:
    """Train and validate on batches, and return what was logged."""
    run = trainer(**({"max_epochs": 1, "num_sanity_val_steps": 0} | options))
    run.fit(made, Rows(batches), Rows(batches))
    return {name: value.item() for name, value in run.callback_metrics.items()}


def weights(made: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.policy_model.named_parameters()}


@torch.no_grad()
def log_ratios(made: Any, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Log-probs of a batch's answers by the plain policy, each with its prompt alone, and their log-ratios."""
    sums = []
    for model in (made.policy_model, made.reference.model):
        values = alone(model.causal_lm, batch)
        sums.append(torch.stack([values[batch.target_segments == segment].sum() for segment in batch.answers]))
    return sums[0], sums[0] - sums[1]


def assert_same_steps(found: list[dict[str, Tensor]], start: dict[str, Tensor]) -> None:
    """Weights moved the same way from the start in all runs."""
    for name, value in start.items():
        moved = [result[name] - value for result in found]
        for other in moved[1:]:
            torch.testing.assert_close(other, moved[0], rtol=1e-4, atol=1e-6)
