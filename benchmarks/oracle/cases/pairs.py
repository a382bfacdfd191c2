"""Preference losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.oracle import by_hand, ours
from benchmarks.oracle.cases.case import Case, Run, hand, named, trl
from benchmarks.oracle.comparison import Settings
from benchmarks.oracle.differences import (
    BY_TOKEN,
    CPO_BY_TOKEN,
    MODULATION,
    POWER,
    PROMPT,
    SHIFT,
    SHORT,
    SMOOTHING,
    BCOWithoutShift,
    Difference,
    likelihood_of_answers,
)
from lion_lightning import losses as l

ONE_AT_A_TIME = Settings(micro_batch=1, accumulate=4)


def of_pairs() -> Iterator[Case]:
    """All preference losses."""
    yield from _same()
    yield from _powers()
    yield from _more_pairs()


SAME: tuple[tuple[str, l.PreferenceLoss, dict[str, Any]], ...] = (
    ("DPO", l.SigmoidLoss(0.1), {"loss_type": "sigmoid"}),
    ("DPO, beta 0.5", l.SigmoidLoss(0.5), {"loss_type": "sigmoid", "beta": 0.5}),
    ("LD-DPO", l.LDDPOLoss(0.1, 0.4), {"ld_alpha": 0.4}),
    ("WPO", l.WPOLoss(l.SigmoidLoss(0.1)), {"use_weighting": True}),
    ("DPO a token", l.SigmoidNormLoss(5.0), {"loss_type": "sigmoid_norm", "beta": 5.0}),
    ("rDPO", l.RobustLoss(0.1, 0.2), {"loss_type": "robust", "label_smoothing": 0.2}),
    ("SLiC", l.HingeLoss(0.1), {"loss_type": "hinge"}),
    ("IPO", l.IPOLoss(0.1), {"loss_type": "ipo"}),
    ("EXO", l.EXOLoss(0.1, 0.2), {"loss_type": "exo_pair", "label_smoothing": 0.2}),
    ("NCA", l.NCALoss(0.1), {"loss_type": "nca_pair"}),
    ("SPPO", l.SPPOHardLoss(0.1), {"loss_type": "sppo_hard"}),
    ("AOT", l.AOTLoss(0.1), {"loss_type": "aot"}),
    ("AOT, unpaired", l.AOTUnpairedLoss(0.1), {"loss_type": "aot_unpaired"}),
    ("APO-zero", l.APOZeroLoss(0.1), {"loss_type": "apo_zero"}),
    ("APO-down", l.APODownLoss(0.1), {"loss_type": "apo_down"}),
    (
        "a sum of DPO, IPO and NCA",
        l.WeightedSum([l.SigmoidLoss(0.1), l.IPOLoss(0.1), l.NCALoss(0.1)], [0.5, 0.2, 1.5]),
        {"loss_type": ["sigmoid", "ipo", "nca_pair"], "loss_weights": [0.5, 0.2, 1.5]},
    ),
)
"""Objective, our loss and TRL's settings, where both sides are to agree."""


def _same() -> Iterator[Case]:
    """Losses of DPOTrainer that are the same."""
    for objective, loss, own in SAME:
        run = partial(ours.pairs, loss=loss)
        yield Case(objective, f"TRL DPOTrainer, {named(own)}", run, trl("DPOTrainer", **own))
        if objective == "DPO":
            yield Case(objective, "by hand", run, hand("pairs", lambda: by_hand.of_pairs(by_hand.dpo)))
            yield from _dpo_otherwise(run)


def _dpo_otherwise(run: Run) -> Iterator[Case]:
    """Plain DPO under other settings."""
    theirs = trl("DPOTrainer")
    plain = Settings()
    ahead = trl("DPOTrainer", precompute_ref_log_probs=True)
    yield Case("DPO", "TRL DPOTrainer, `precompute_ref_log_probs`", run, ahead)
    yield Case("DPO, their attention `sdpa`", "TRL DPOTrainer", run, theirs, replace(plain, attention="sdpa"))
    yield Case("DPO, one pair at a time", "TRL DPOTrainer", run, theirs, ONE_AT_A_TIME)
    short = "DPO, one pair missing in the last step"
    without = Case("two pairs missing, a whole micro-batch", "TRL DPOTrainer", run, theirs, replace(plain, left_out=2))
    yield Case(short, "TRL DPOTrainer", run, theirs, replace(plain, left_out=1), SHORT, (without,))


SLOW = Settings(learning_rate=1e-5)
"""For losses with a power of e, which multiplies what fp32 has rounded; ten times TRL's default."""


def _powers() -> Iterator[Case]:
    """Losses with a power of e; two also at the others' rate, with TRL against itself in the next line."""
    kinds: tuple[tuple[str, l.PreferenceLoss, dict[str, Any], Difference | None], ...] = (
        ("DPO, forward KL", _dpo(l.ForwardKL()), {"f_divergence_type": "forward_kl"}, POWER),
        ("DPO, Jensen-Shannon", _dpo(l.JensenShannon()), {"f_divergence_type": "js_divergence"}, None),
        (
            "DPO, alpha divergence",
            _dpo(l.AlphaDivergence(0.7)),
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
            None,
        ),
        ("DiscoPOP", l.DiscoPOPLoss(0.05), {"loss_type": "discopop", "beta": 0.05}, MODULATION),
    )
    for objective, loss, own, difference in kinds:
        run, theirs, other = partial(ours.pairs, loss=loss), trl("DPOTrainer", **own), f"TRL DPOTrainer, {named(own)}"
        yield Case(f"{objective}, rate 1e-5", other, run, theirs, SLOW)
        if difference is not None:
            exact = trl("DPOTrainer", attention="sdpa", **own)
            itself = Case(f"TRL's `sdpa` in place of ours: {objective}", other, exact, theirs, difference=difference)
            yield Case(objective, other, run, theirs, difference=difference, shown_by=(itself,))


def _dpo(divergence: l.Divergence) -> l.SigmoidLoss:
    return l.SigmoidLoss(0.1, divergence=divergence)


def _more_pairs() -> Iterator[Case]:
    """Those that are not the same in TRL, and those that TRL does not have."""
    smoothed = partial(ours.pairs, loss=l.SigmoidLoss(0.1, label_smoothing=0.1))
    aot = trl("DPOTrainer", loss_type="aot", label_smoothing=0.1)
    without = Case("TRL's `aot`, which is cDPO for one pair at a time", "TRL DPOTrainer", smoothed, aot, ONE_AT_A_TIME)
    yield Case("cDPO", "by hand", smoothed, _by_hand(partial(by_hand.dpo, smoothing=0.1)))
    theirs = trl("DPOTrainer", label_smoothing=0.1)
    yield Case("cDPO", "TRL DPOTrainer, `label_smoothing`", smoothed, theirs, difference=SMOOTHING, shown_by=(without,))

    bco, theirs = partial(ours.pairs, loss=l.BCOPairLoss(0.1)), trl("DPOTrainer", loss_type="bco_pair")
    none = partial(ours.pairs, loss=BCOWithoutShift(0.1))
    without = Case("our side without a shift", "TRL DPOTrainer, `bco_pair`", none, theirs)
    yield Case("BCO", "by hand", bco, hand("pairs", by_hand.BCO))
    yield Case("BCO", "TRL DPOTrainer, `bco_pair`", bco, theirs, difference=SHIFT, shown_by=(without,))

    yield from _with_likelihood()
    simpo = partial(ours.pairs, loss=l.SimPOLoss(2.0, 1.0))
    own = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}
    yield Case("SimPO", "by hand", simpo, _by_hand(by_hand.simpo))
    yield Case("SimPO", "TRL CPOTrainer, `simpo`", simpo, trl("CPOTrainer", **own))
    yield Case("IPO", "by hand", partial(ours.pairs, loss=l.IPOLoss(0.1)), _by_hand(by_hand.ipo))
    yield Case("DPO-positive", "by hand", partial(ours.pairs, loss=l.DPOPLoss()), _by_hand(by_hand.dpop))
    yield Case("R-DPO", "by hand", partial(ours.pairs, loss=l.RDPOLoss()), _by_hand(by_hand.r_dpo))


def _with_likelihood() -> Iterator[Case]:
    """Losses with the chosen answer's likelihood, which TRL adds up otherwise."""
    rpo = partial(ours.pairs, loss=l.WeightedSum([l.SigmoidLoss(0.1), l.ChosenNLLLoss()]))
    theirs = trl("DPOTrainer", loss_type=["sigmoid", "sft"])
    other = "TRL DPOTrainer, `['sigmoid', 'sft']`"
    without = Case("one pair at a time", other, rpo, theirs, ONE_AT_A_TIME)
    yield Case("RPO: DPO and the likelihood", "by hand", rpo, _by_hand(by_hand.rpo))
    yield Case("RPO: DPO and the likelihood", other, rpo, theirs, difference=BY_TOKEN, shown_by=(without,))

    cpo, theirs, other = partial(ours.pairs, loss=l.CPOLoss(0.1)), trl("CPOTrainer"), "TRL CPOTrainer, `sigmoid`"
    without = Case("one pair at a time", other, cpo, theirs, ONE_AT_A_TIME)
    yield Case("CPO", "by hand", cpo, _by_hand(by_hand.cpo))
    yield Case("CPO", other, cpo, theirs, difference=CPO_BY_TOKEN, shown_by=(without,))

    orpo, theirs, other = partial(ours.pairs, loss=l.ORPOLoss(0.1)), trl("ORPOTrainer"), "TRL ORPOTrainer"
    changed = trl("ORPOTrainer", changed=likelihood_of_answers)
    without = Case("their likelihood the answers' alone, a mean over pairs", f"{other}, patched", orpo, changed)
    yield Case("ORPO", "by hand", orpo, _by_hand(by_hand.orpo))
    yield Case("ORPO", other, orpo, theirs, difference=PROMPT, shown_by=(without,))


def _by_hand(loss: Callable[[by_hand.Answer, by_hand.Answer], Any]) -> Run:
    return hand("pairs", lambda: by_hand.of_pairs(loss))
