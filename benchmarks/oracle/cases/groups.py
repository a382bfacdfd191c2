"""Policy gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.oracle import by_hand, ours
from benchmarks.oracle.cases.case import Case, hand, named, trl
from benchmarks.oracle.comparison import Settings
from benchmarks.oracle.differences import MICRO_BATCH, ROUND
from benchmarks.oracle.rows import LONGEST
from examples.cispo import CISPOLoss
from lion_lightning import losses as l

FOUR_STEPS = Settings(updates=4, learning_rate=1e-3)
"""Four steps on each round, so that ratios move and are clipped."""


SAME: tuple[tuple[str, l.PolicyGradientLoss, dict[str, Any]], ...] = (
    ("GRPO, k3", l.GRPOLoss(beta=0.1), {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False}),
    ("GRPO, k3 weighted", l.GRPOLoss(beta=0.1, kl=l.K3(weighted=True)), {"loss_type": "grpo", "beta": 0.1}),
    ("GRPO, not scaled", l.GRPOLoss(scale=False), {"loss_type": "grpo", "scale_rewards": "none"}),
    ("Dr. GRPO", l.DrGRPOLoss(LONGEST), {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    (
        "GSPO",
        l.GSPOLoss(),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
)
"""Objective, our loss and TRL's settings, where both sides are to agree."""


def of_groups() -> Iterator[Case]:
    """All policy gradients."""
    grpo = partial(ours.groups, loss=l.GRPOLoss())
    theirs = trl("GRPOTrainer", loss_type="grpo")
    yield Case("GRPO, one step a round", "by hand", grpo, hand("groups", by_hand.GRPO))
    yield Case("GRPO, one step a round", "TRL GRPOTrainer, `grpo`", grpo, theirs)
    yield Case("GRPO", "by hand", grpo, hand("groups", partial(by_hand.GRPO, updates=4)), FOUR_STEPS)
    yield Case("GRPO", "TRL GRPOTrainer, `grpo`", grpo, theirs, FOUR_STEPS)
    k3 = partial(ours.groups, loss=l.GRPOLoss(beta=0.1))
    yield Case("GRPO, k3", "by hand", k3, hand("groups", partial(by_hand.GRPO, beta=0.1, updates=4)), FOUR_STEPS)
    for objective, loss, own in SAME:
        run = partial(ours.groups, loss=loss)
        yield Case(objective, f"TRL GRPOTrainer, {named(own)}", run, trl("GRPOTrainer", **own), FOUR_STEPS)
    yield from _by_tokens()
    for beta in (0.0, 0.05):
        run, theirs = partial(ours.groups, loss=l.RLOOLoss(beta=beta)), trl("RLOOTrainer", beta=beta)
        yield Case(
            f"RLOO, beta {beta:g}, rate 2e-5", "TRL RLOOTrainer", run, theirs, replace(FOUR_STEPS, learning_rate=2e-5)
        )


def _by_tokens() -> Iterator[Case]:
    """Losses that are means over tokens."""
    dapo, theirs = partial(ours.groups, loss=l.DAPOLoss()), trl("GRPOTrainer", loss_type="dapo", epsilon_high=0.28)
    other = "TRL GRPOTrainer, `dapo`"
    yield Case("DAPO", other, dapo, theirs, FOUR_STEPS, ROUND, (Case("one step a round", other, dapo, theirs),))
    plain = partial(ours.groups, loss=l.DAPOLoss(clip_high=None))
    theirs, other = trl("GRPOTrainer", loss_type="bnpo"), "TRL GRPOTrainer, `bnpo`"
    at_once = replace(FOUR_STEPS, micro_batch=4, accumulate=1)
    without = Case("one micro-batch a step", other, plain, theirs, at_once)
    yield Case("DAPO, equal clips", other, plain, theirs, FOUR_STEPS, MICRO_BATCH, (without,))
    cispo = partial(ours.groups, loss=CISPOLoss(clip_high=0.1))
    theirs = trl("GRPOTrainer", loss_type="cispo", epsilon_high=1.1)
    yield Case("CISPO, one step a round", "TRL GRPOTrainer, `cispo`", cispo, theirs)
