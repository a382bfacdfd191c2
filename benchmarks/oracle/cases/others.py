"""Supervised fine-tuning, KTO and reward models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.oracle import by_hand, ours
from benchmarks.oracle.cases.case import Case, hand, trl
from benchmarks.oracle.comparison import Settings
from benchmarks.oracle.differences import MISMATCHED, SCHEDULE
from lion_lightning import losses as l


def of_documents() -> Iterator[Case]:
    """Supervised fine-tuning."""
    run = partial(ours.sft)
    plain = Settings()
    theirs = trl("SFTTrainer")
    yield Case("SFT", "by hand", run, hand("conversations", lambda: by_hand.sft))
    yield Case("SFT", "TRL SFTTrainer, `nll`", run, theirs)
    yield Case("SFT, SGD at 1e-2", "TRL SFTTrainer", run, theirs, replace(plain, optimizer="sgd", learning_rate=1e-2))
    yield Case("SFT, no clipping", "TRL SFTTrainer", run, theirs, replace(plain, clip=0.0))
    yield Case("SFT, their attention `sdpa`", "TRL SFTTrainer", run, theirs, replace(plain, attention="sdpa"))
    yield Case("SFT, one row missing in the last step", "TRL SFTTrainer", run, theirs, replace(plain, left_out=1))
    yield Case("DFT", "TRL SFTTrainer, `dft`", partial(ours.sft, loss=l.DFTLoss()), trl("SFTTrainer", loss_type="dft"))
    everything = partial(ours.sft, mask="none"), trl("SFTTrainer", completion_only_loss=False)
    yield Case("SFT on all tokens", "TRL SFTTrainer, `completion_only_loss` off", *everything)
    warm = replace(plain, warmup=4)
    same = Case("our side with that schedule", "TRL SFTTrainer", run, theirs, replace(warm, their_schedule=True))
    yield Case("SFT, warmup and linear decay", "TRL SFTTrainer", run, theirs, warm, SCHEDULE, (same,))


def of_answers() -> Iterator[Case]:
    """KTO and reward models."""
    kto, theirs = partial(ours.labeled, loss=l.KTOLoss(0.1)), trl("KTOTrainer")
    rotated = partial(ours.labeled, loss=l.KTOLoss(0.1), rotated=True)
    without = Case("our side with TRL's mismatched answers", "TRL KTOTrainer", rotated, theirs)
    yield Case("KTO", "by hand", kto, hand("labeled", lambda: by_hand.kto))
    yield Case("KTO", "TRL KTOTrainer", kto, theirs, difference=MISMATCHED, shown_by=(without,))
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    run = partial(ours.labeled, loss=l.KTOLoss(0.1, **weights), rotated=True)
    yield Case("KTO, weighted, TRL's mismatched answers", "TRL KTOTrainer", run, trl("KTOTrainer", **weights))
    apo = trl("KTOTrainer", loss_type="apo_zero_unpaired")
    run = partial(ours.labeled, loss=l.APOZeroUnpairedLoss(0.1))
    yield Case("APO-zero, single answers", "TRL KTOTrainer, `apo_zero_unpaired`", run, apo)

    reward, other = partial(ours.reward), "TRL RewardTrainer"
    yield Case("reward model", "by hand", reward, hand("pairs", lambda: by_hand.reward))
    yield Case("reward model", other, reward, trl("RewardTrainer"))
    yield Case(
        "reward model, margin", other, partial(ours.reward, margin=0.5), trl("RewardTrainer", columns={"margin": 0.5})
    )
    center: dict[str, Any] = {"center_rewards_coefficient": 0.1}
    yield Case("reward model, centered", other, partial(ours.reward, **center), trl("RewardTrainer", **center))
