"""The losses that TRL 1.16 has, run through its own trainer's code on the same per-token log-probs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lion_lightning.losses import (
    AlphaDivergence,
    AOTLoss,
    AOTUnpairedLoss,
    APODownLoss,
    APOZeroLoss,
    APOZeroUnpairedLoss,
    BCOLoss,
    BCOPairLoss,
    ChosenNLLLoss,
    CPOLoss,
    DiscoPOPLoss,
    EXOLoss,
    ForwardKL,
    HingeLoss,
    IPOLoss,
    JensenShannon,
    KTOLoss,
    LDDPOLoss,
    NCALoss,
    ORPOLoss,
    PreferenceLoss,
    RobustLoss,
    SigmoidLoss,
    SigmoidNormLoss,
    SimPOLoss,
    SPPOHardLoss,
    WeightedSum,
    WPOLoss,
)
from lion_lightning.types import AnswerLogps, PairLogps, TokenLogps

trl_dpo = pytest.importorskip("trl.trainer.dpo_trainer", reason="needs the test extra: pip install -e '.[test]'")

UNEQUAL = ((3, 7, 1, 5, 9, 2), (6, 2, 4, 5, 1, 8))
EQUAL_CHOSEN = ((4, 4, 4, 4, 4, 4), UNEQUAL[1])  # TRL's SFT term is a mean over the batch's tokens, ours over pairs
PROMPT = 2


class Tokens(NamedTuple):
    """What a model says of padded rows, chosen answers first: ``(2 * pairs, length - 1)`` each, 0 where masked."""

    logps: Tensor
    log_collision_prob: Tensor


class Batch(NamedTuple):
    """Random log-probs of answers of given lengths, behind a prompt of two tokens."""

    mask: Tensor
    policy: Tokens
    reference: Tokens

    @staticmethod
    def make(lengths: tuple[Sequence[int], Sequence[int]], dtype: torch.dtype = torch.float64) -> Batch:
        counts = torch.tensor([*lengths[0], *lengths[1]])
        places = torch.arange(PROMPT + int(counts.max()))
        mask = (places >= PROMPT) & (places < PROMPT + counts[:, None])
        rows = -2 * torch.rand(4, *mask[:, 1:].shape) * mask[:, 1:]
        return Batch(mask, Tokens(rows[0], rows[1]), Tokens(rows[2], rows[3]))

    def pairs(self) -> tuple[PairLogps, PairLogps]:
        """The same as our losses are given it."""
        policy, reference = (
            PairLogps(*map(answers, tokens.logps.chunk(2), tokens.log_collision_prob.chunk(2), self.mask.chunk(2)))
            for tokens in (self.policy, self.reference)
        )
        return policy, reference


def answers(logps: Tensor, log_collision_prob: Tensor, mask: Tensor) -> AnswerLogps:
    """Masked rows as answers' tokens, one after the other."""
    supervised = mask[:, 1:]
    tokens = TokenLogps(logps[supervised], None, log_collision_prob[supervised])
    return AnswerLogps(tokens, supervised.nonzero()[:, 0], mask.sum(1).to(logps))


class Model(nn.Module):
    """Answers like a TRL model with a fused head, with log-probs that are given."""

    is_gradient_checkpointing = False

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        nothing = torch.zeros_like(tokens.logps)
        self.outputs = SimpleNamespace(
            log_probs=tokens.logps,
            log_sum_sq_probs=tokens.log_collision_prob,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )

    def forward(self, **_: Any) -> SimpleNamespace:
        return self.outputs


def trl_loss(batch: Batch, loss: str | list[str], **settings: Any) -> float:
    """The loss of TRL's DPOTrainer, without a trainer."""
    itself = {"gather": lambda x: x, "gather_for_metrics": lambda x: x, "unwrap_model": lambda x: x}
    names = [loss] if isinstance(loss, str) else loss
    standing = {
        "model": Model(batch.policy),
        "ref_model": Model(batch.reference),
        "accelerator": SimpleNamespace(device=torch.device("cpu"), **itself),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=settings.pop("discopop_tau", 0.05)),
        "loss_types": names,
        "loss_weights": [1.0] * len(names),
        "beta": 0.1,
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    trainer = SimpleNamespace(**standing | settings)
    ids = torch.zeros_like(batch.mask, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": batch.mask.long(), "completion_mask": batch.mask.long()}
    value = trl_dpo.DPOTrainer._compute_loss(trainer, trainer.model, inputs, return_outputs=False)
    return float(value)


def our_loss(batch: Batch, loss: PreferenceLoss) -> float:
    return float(loss(*batch.pairs()).mean())


CASES: dict[str, tuple[PreferenceLoss, dict[str, Any]]] = {
    "sigmoid": (SigmoidLoss(0.3), {"loss": "sigmoid"}),
    "sigmoid, forward KL": (
        SigmoidLoss(0.3, divergence=ForwardKL()),
        {"loss": "sigmoid", "f_divergence_type": "forward_kl"},
    ),
    "sigmoid, JS": (
        SigmoidLoss(0.3, divergence=JensenShannon()),
        {"loss": "sigmoid", "f_divergence_type": "js_divergence"},
    ),
    "sigmoid, LD": (LDDPOLoss(0.3, 0.4), {"loss": "sigmoid", "ld_alpha": 0.4}),
    "sigmoid, WPO": (WPOLoss(SigmoidLoss(0.3)), {"loss": "sigmoid", "use_weighting": True}),
    "sigmoid_norm": (SigmoidNormLoss(0.3), {"loss": "sigmoid_norm"}),
    "robust": (RobustLoss(0.3, 0.2), {"loss": "robust", "label_smoothing": 0.2}),
    "hinge": (HingeLoss(0.3), {"loss": "hinge"}),
    "hinge, WPO": (WPOLoss(HingeLoss(0.3)), {"loss": "hinge", "use_weighting": True}),
    "ipo": (IPOLoss(0.3), {"loss": "ipo"}),
    "exo_pair": (EXOLoss(0.3, 0.2), {"loss": "exo_pair", "label_smoothing": 0.2}),
    "nca_pair": (NCALoss(0.3), {"loss": "nca_pair"}),
    "bco_pair, first step": (BCOPairLoss(0.3), {"loss": "bco_pair"}),
    "sppo_hard": (SPPOHardLoss(0.3), {"loss": "sppo_hard"}),
    "aot": (AOTLoss(0.3), {"loss": "aot"}),
    "aot, smoothed": (AOTLoss(0.3, 0.2), {"loss": "aot", "label_smoothing": 0.2}),
    "aot_unpaired": (AOTUnpairedLoss(0.3), {"loss": "aot_unpaired"}),
    "aot_unpaired, smoothed": (AOTUnpairedLoss(0.3, 0.2), {"loss": "aot_unpaired", "label_smoothing": 0.2}),
    "apo_zero": (APOZeroLoss(0.3), {"loss": "apo_zero"}),
    "apo_down": (APODownLoss(0.3), {"loss": "apo_down"}),
    "discopop": (DiscoPOPLoss(0.3, 0.07), {"loss": "discopop", "discopop_tau": 0.07}),
    "weighted sum": (
        WeightedSum([SigmoidLoss(0.3), IPOLoss(0.3), NCALoss(0.3)], [0.5, 2.0, 1.5]),
        {"loss": ["sigmoid", "ipo", "nca_pair"], "loss_weights": [0.5, 2.0, 1.5]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_equals_trl(name: str) -> None:
    torch.manual_seed(1)
    batch = Batch.make(UNEQUAL)
    loss, settings = CASES[name]
    assert our_loss(batch, loss) == pytest.approx(trl_loss(batch, **{"beta": 0.3, **settings}), rel=1e-6)


def test_alpha_divergence_equals_trl() -> None:
    torch.manual_seed(1)
    batch = Batch.make(UNEQUAL, torch.float32)  # TRL has no bound for the exponent in fp64
    settings = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}
    loss = SigmoidLoss(0.3, divergence=AlphaDivergence(0.7))
    assert our_loss(batch, loss) == pytest.approx(trl_loss(batch, "sigmoid", beta=0.3, **settings), rel=1e-6)


def test_label_smoothing_of_dpo_equals_trl_where_it_has_it() -> None:
    torch.manual_seed(1)
    batch = Batch.make(((3,), (5,)))
    # TRL 1.16's sigmoid loss ignores label_smoothing; its AOT does not, and is DPO for a batch of one pair
    expected = trl_loss(batch, "aot", beta=0.3, label_smoothing=0.2)
    assert our_loss(batch, SigmoidLoss(0.3, 0.2)) == pytest.approx(expected, rel=1e-6)


def test_sft_term_equals_trl_but_for_the_weight_of_each_pair() -> None:
    torch.manual_seed(1)
    equal, unequal = Batch.make(EQUAL_CHOSEN), Batch.make(UNEQUAL)
    assert our_loss(equal, ChosenNLLLoss()) == pytest.approx(trl_loss(equal, "sft"), rel=1e-6)
    counts = torch.tensor(UNEQUAL[0])
    by_token = (ChosenNLLLoss()(*unequal.pairs()) * counts).sum() / counts.sum()
    assert by_token.item() == pytest.approx(trl_loss(unequal, "sft"), rel=1e-6)


def test_mpo_equals_trl() -> None:
    torch.manual_seed(1)
    batch, weights = Batch.make(EQUAL_CHOSEN), [0.8, 0.2, 1.0]
    mpo = WeightedSum([SigmoidLoss(0.3), BCOPairLoss(0.3), ChosenNLLLoss()], weights)
    expected = trl_loss(batch, ["sigmoid", "bco_pair", "sft"], beta=0.3, loss_weights=weights)
    assert our_loss(batch, mpo) == pytest.approx(expected, rel=1e-6)


def cpo(batch: Batch, loss: PreferenceLoss, **settings: Any) -> Tensor:
    """Losses of TRL's CPOTrainer on the answers' log-probs as our loss reduces them."""
    module = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    trainer = SimpleNamespace(alpha=0.0, label_smoothing=0.0, accelerator=accelerator, **settings)
    losses: Tensor = module.CPOTrainer.cpo_loss(trainer, *map(loss.reduce, batch.pairs()[0]))[0]
    return losses


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_simpo_equals_trl() -> None:
    torch.manual_seed(1)
    batch, loss = Batch.make(UNEQUAL), SimPOLoss(2.0, 0.7)
    torch.testing.assert_close(loss(*batch.pairs()), cpo(batch, loss, loss_type="simpo", beta=2.0, simpo_gamma=0.7))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_cpo_without_its_nll_equals_trl() -> None:
    torch.manual_seed(1)
    batch, loss = Batch.make(UNEQUAL), CPOLoss(0.3, alpha=0.0)
    torch.testing.assert_close(loss(*batch.pairs()), cpo(batch, loss, loss_type="sigmoid", beta=0.3))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_odds_ratio_of_orpo_equals_trl() -> None:
    module = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    torch.manual_seed(1)
    batch, loss = Batch.make(UNEQUAL), ORPOLoss(0.3)
    policy, reference = batch.pairs()
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device=torch.device("cpu")))
    odds = partial(module.ORPOTrainer.odds_ratio_loss, trainer)
    # TRL's NLL is over prompt and answer, so the odds term is compared alone; there it is subtracted
    nll = ChosenNLLLoss()(policy, reference)
    torch.testing.assert_close(loss(policy, reference) - nll, -odds(*map(loss.reduce, policy))[0])


LABELS = torch.tensor([True, False, True, True, False, True])


def trl_kto(batch: Batch, mismatched: Batch, **settings: Any) -> float:
    """The loss of TRL's KTOTrainer on the first half of a batch's answers, without a trainer."""
    module = pytest.importorskip("trl.trainer.kto_trainer")
    itself = {"gather_for_metrics": lambda x: x, "unwrap_model": lambda x: x}
    models = [Model(Tokens(*(rows[:6] for rows in tokens))) for tokens in (batch.policy, batch.reference)]
    completions = [tokens.logps.sum(1)[:6] for tokens in (mismatched.policy, mismatched.reference)]
    standing = {
        "model": models[0],
        "ref_model": models[1],
        "accelerator": SimpleNamespace(device=torch.device("cpu"), **itself),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "calculate_KL": True,
        "_compute_kl_logps": lambda model, _: completions[0] if model is models[0] else completions[1],
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    trainer = SimpleNamespace(**standing | settings)
    mask = batch.mask[:6].long()
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": mask, "completion_mask": mask, "label": LABELS}
    return float(module.KTOTrainer._compute_loss(trainer, models[0], inputs, return_outputs=False))


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (KTOLoss(0.3), {"loss_type": "kto"}),
        (KTOLoss(0.3, 1.3, 0.7), {"loss_type": "kto", "desirable_weight": 1.3, "undesirable_weight": 0.7}),
        (
            APOZeroUnpairedLoss(0.3, 1.3, 0.7),
            {"loss_type": "apo_zero_unpaired", "calculate_KL": False}
            | {"desirable_weight": 1.3, "undesirable_weight": 0.7},
        ),
    ],
    ids=["kto", "kto, weighted", "apo_zero_unpaired"],
)
@pytest.mark.parametrize("shift", [1.5, -1.5])
def test_losses_of_single_answers_equal_trl(loss: KTOLoss, settings: dict[str, Any], shift: float) -> None:
    torch.manual_seed(1)
    batch, mismatched = Batch.make(UNEQUAL), Batch.make(UNEQUAL)
    moved = mismatched.policy.logps + shift * mismatched.mask[:, 1:]  # above the reference, or below and cut at 0
    mismatched = mismatched._replace(policy=mismatched.policy._replace(logps=moved))
    if loss.needs_mismatched:
        loss.observe_mismatched(*(pairs.chosen for pairs in mismatched.pairs()))
    policy, reference = (pairs.chosen for pairs in batch.pairs())
    anchor = (mismatched.pairs()[0].chosen.sums - mismatched.pairs()[1].chosen.sums).mean()
    assert (anchor > 0) == (shift > 0)
    expected = trl_kto(batch, mismatched, beta=0.3, **settings)
    assert loss(policy, reference, LABELS).mean().item() == pytest.approx(expected, rel=1e-6)


def test_bco_of_the_answers_of_pairs_equals_trl_at_the_first_step() -> None:
    torch.manual_seed(1)
    batch, loss = Batch.make(UNEQUAL), BCOLoss(0.3)
    (chosen, rejected), (base, other) = batch.pairs()
    good, bad = torch.ones(6).bool(), torch.zeros(6).bool()
    both = loss(chosen, base, good) + loss(rejected, other, bad)  # TRL 1.16 has no BCO of single answers any more
    assert both.mean().item() == pytest.approx(trl_loss(batch, "bco_pair", beta=0.3), rel=1e-6)
