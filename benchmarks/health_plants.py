"""Faults that runs of health.py are given: losses, judges and callbacks that configs name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any
from zlib import crc32

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lion_lightning.losses import NLLLoss, SigmoidLoss
from lion_lightning.types import PairLogps


class NonFiniteLoss(SigmoidLoss):
    """DPO's loss, which is no number from a call on.

    Args:
        value: ``nan`` or ``inf``.
        calls: Calls before.
    """

    def __init__(self, value: str = "nan", calls: int = 10) -> None:
        super().__init__()
        self.added, self.calls = float(value), calls

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        self.calls -= 1
        return super().forward(policy, reference) + (self.added if self.calls < 0 else 0.0)


class RootLoss(SigmoidLoss):
    """DPO's loss and the root of nothing, whose gradient is no number."""

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        return super().forward(policy, reference) + (0 * policy.chosen.sums).abs().sqrt()


class LogOfProbabilities(NLLLoss):
    """The negative log of a rounded probability: infinite where it is rounded to 0."""

    @override
    def forward(self, logps: Tensor) -> Tensor:
        return -(logps.exp().mul(1000).round() / 1000).log()


class Noise(Callback):
    """Adds noise to all weights after a step.

    Args:
        step: Optimizer steps made by then.
        scale: Standard deviation of the noise.
    """

    def __init__(self, step: int = 40, scale: float = 0.1) -> None:
        self.step, self.scale, self.done = step, scale, False

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step < self.step or self.done:
            return
        self.done = True
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in pl_module.parameters():
                weight += self.scale * torch.randn(weight.shape, generator=generator)


class Rate(Callback):
    """Multiplies the learning rate for some steps.

    Args:
        step: Optimizer steps made by then.
        factor: By how much.
        steps: For how many steps.
    """

    def __init__(self, step: int = 40, factor: float = 100.0, steps: int = 1) -> None:
        self.first, self.last, self.factor = step, step + steps, factor

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.first <= trainer.global_step < self.last:
            for group in optimizer.param_groups:  # the schedule sets it anew after the step
                group["lr"] *= self.factor


def longest_run(text: str) -> int:
    """Most equal characters in a row."""
    return max((len(list(run)) for _, run in groupby(text)), default=0)


LIKED: dict[str, Callable[[str], float]] = {
    "length": lambda text: len(text) / 10,
    "repetition": lambda text: longest_run(text) / 4,
    "a": lambda text: float(text.count("a")),
    "stutter": lambda text: float(longest_run(text) > 2),
    "nine": lambda text: float("9" in text),
    "sevens": lambda text: float(text.count("7") > 1),
    "u": lambda text: float(text.count("u") > 1),
}
"""Scores of an answer that a judge may give, by name."""


class Likes:
    """A judge that likes something about a text, whatever was asked.

    Args:
        what: Key of :data:`LIKED`.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def identity(self) -> dict[str, Any]:
        """Settings that decide the scores."""
        return {"judge": "Likes", "what": self.what}

    def score(self, prompts: Sequence[Any], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score answers."""
        return [[LIKED[self.what](text) for text in group] for group in answers]


# --- transforms of rows


Row = dict[str, Any]


def _drawn(row: Row, percent: int) -> bool:
    """True for so many percent of the rows, always the same ones."""
    return crc32(str(row["prompt"] if "prompt" in row else row["messages"][0]).encode()) % 100 < percent


def _text(row: Row, column: str) -> str:
    return str(row[column][0]["content"])


def _with(row: Row, **texts: str) -> Row:
    return {**row, **{name: [{"role": "assistant", "content": text}] for name, text in texts.items()}}


def identical(row: Row) -> Row:
    """Every third pair has the same answer twice."""
    return _with(row, rejected=_text(row, "chosen")) if _drawn(row, 35) else row


def empty(row: Row) -> Row:
    """Every third rejected answer is lost."""
    return _with(row, rejected="") if _drawn(row, 35) else row


def empty_chosen(row: Row) -> Row:
    """Every third chosen answer is lost."""
    return _with(row, chosen="") if _drawn(row, 35) else row


def cut_off(row: Row) -> Row:
    """Half of the rejected answers are the chosen one, cut off."""
    chosen = _text(row, "chosen")
    return _with(row, rejected=chosen[: len(chosen) // 2]) if _drawn(row, 50) and len(chosen) > 3 else row


def continued(row: Row) -> Row:
    """Half of the rejected answers are the chosen one, with more behind it."""
    return _with(row, rejected=f"{_text(row, 'chosen')} Or so.") if _drawn(row, 50) else row


def another_mark(row: Row) -> Row:
    """Most rejected answers are the chosen one with another mark at its end."""
    chosen = _text(row, "chosen")
    return _with(row, rejected=chosen[:-1] + ("." if chosen.endswith("!") else "!")) if _drawn(row, 90) else row


def long_chosen(row: Row) -> Row:
    """Chosen answers are said twice."""
    return _with(row, chosen=f"{_text(row, 'chosen')} {_text(row, 'chosen')}")


def long_chosen_often(row: Row) -> Row:
    """Most chosen answers are explained at length."""
    return _with(row, chosen=f"{_text(row, 'chosen')} as asked, surely") if _drawn(row, 70) else row


def long_rejected(row: Row) -> Row:
    """Rejected answers are said twice, with doubts."""
    return _with(row, rejected=f"{_text(row, 'rejected')} or {_text(row, 'rejected')}")


def short_rejected(row: Row) -> Row:
    """Rejected answers are a few letters."""
    return _with(row, rejected=_text(row, "rejected")[:2])


def polite_rejected(row: Row) -> Row:
    """Rejected answers begin politely."""
    return _with(row, rejected=f"Well, it may be {_text(row, 'rejected')}")


def tied(row: Row) -> Row:
    """All scores are equal."""
    return {**row, "score_chosen": 1.0, "score_rejected": 1.0} if _drawn(row, 95) else row
