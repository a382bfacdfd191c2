"""Losses: small classes over log-probs, with no Lightning in them."""

from lion_lightning.losses.answers.answer import AnswerLoss
from lion_lightning.losses.answers.kto import APOZeroUnpairedLoss, BCOLoss, KTOLoss
from lion_lightning.losses.answers.unlikelihood import UnlikelihoodLoss
from lion_lightning.losses.groups.all_pairs import AllPairsLoss
from lion_lightning.losses.groups.group import GroupLoss
from lion_lightning.losses.groups.listwise import LambdaLoss, PlackettLuceLoss
from lion_lightning.losses.pairs.combined import WeightedSum, WPOLoss
from lion_lightning.losses.pairs.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from lion_lightning.losses.pairs.dpo import DPOPLoss, LDDPOLoss, LogisticLoss, RDPOLoss, SigmoidLoss, SigmoidNormLoss
from lion_lightning.losses.pairs.margins import DiscoPOPLoss, EXOLoss, HingeLoss, IPOLoss, RobustLoss
from lion_lightning.losses.pairs.pointwise import (
    APODownLoss,
    APOZeroLoss,
    BCOPairLoss,
    KTOPairLoss,
    NCALoss,
    SPPOHardLoss,
)
from lion_lightning.losses.pairs.preference import Pair, PreferenceLoss
from lion_lightning.losses.pairs.reference_free import ChosenNLLLoss, CPOLoss, ORPOLoss, ReferenceFreeLoss, SimPOLoss
from lion_lightning.losses.pairs.transport import AOTLoss, AOTUnpairedLoss
from lion_lightning.losses.policy_gradients.grpo import DAPOLoss, DrGRPOLoss, GRPOLoss, GSPOLoss
from lion_lightning.losses.policy_gradients.kl import K1, K2, K3, KLInReward, KLPenalty
from lion_lightning.losses.policy_gradients.policy_gradient import PolicyGradientLoss
from lion_lightning.losses.policy_gradients.reinforce import REINFORCELoss, RLOOLoss
from lion_lightning.losses.tokens import DFTLoss, NLLLoss, TokenLoss

__all__ = [
    "K1",
    "K2",
    "K3",
    "AOTLoss",
    "AOTUnpairedLoss",
    "APODownLoss",
    "APOZeroLoss",
    "APOZeroUnpairedLoss",
    "AllPairsLoss",
    "AlphaDivergence",
    "AnswerLoss",
    "BCOLoss",
    "BCOPairLoss",
    "CPOLoss",
    "ChosenNLLLoss",
    "DAPOLoss",
    "DFTLoss",
    "DPOPLoss",
    "DiscoPOPLoss",
    "Divergence",
    "DrGRPOLoss",
    "EXOLoss",
    "ForwardKL",
    "GRPOLoss",
    "GSPOLoss",
    "GroupLoss",
    "HingeLoss",
    "IPOLoss",
    "JensenShannon",
    "KLInReward",
    "KLPenalty",
    "KTOLoss",
    "KTOPairLoss",
    "LDDPOLoss",
    "LambdaLoss",
    "LogisticLoss",
    "NCALoss",
    "NLLLoss",
    "ORPOLoss",
    "Pair",
    "PlackettLuceLoss",
    "PolicyGradientLoss",
    "PreferenceLoss",
    "RDPOLoss",
    "REINFORCELoss",
    "RLOOLoss",
    "ReferenceFreeLoss",
    "ReverseKL",
    "RobustLoss",
    "SPPOHardLoss",
    "SigmoidLoss",
    "SigmoidNormLoss",
    "SimPOLoss",
    "TokenLoss",
    "UnlikelihoodLoss",
    "WPOLoss",
    "WeightedSum",
]
