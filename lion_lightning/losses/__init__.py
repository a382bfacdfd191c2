"""Losses: small classes over log-probs, with no Lightning in them."""

from lion_lightning.losses.pairs.combined import WeightedSum, WPOLoss
from lion_lightning.losses.pairs.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from lion_lightning.losses.pairs.dpo import DPOPLoss, LDDPOLoss, LogisticLoss, RDPOLoss, SigmoidLoss, SigmoidNormLoss
from lion_lightning.losses.pairs.margins import DiscoPOPLoss, EXOLoss, HingeLoss, IPOLoss, RobustLoss
from lion_lightning.losses.pairs.pointwise import APODownLoss, APOZeroLoss, BCOLoss, KTOPairLoss, NCALoss, SPPOHardLoss
from lion_lightning.losses.pairs.preference import Pair, PreferenceLoss
from lion_lightning.losses.pairs.reference_free import ChosenNLLLoss, CPOLoss, ORPOLoss, ReferenceFreeLoss, SimPOLoss
from lion_lightning.losses.pairs.transport import AOTLoss, AOTUnpairedLoss
from lion_lightning.losses.tokens import DFTLoss, NLLLoss, TokenLoss

__all__ = [
    "AOTLoss",
    "AOTUnpairedLoss",
    "APODownLoss",
    "APOZeroLoss",
    "AlphaDivergence",
    "BCOLoss",
    "CPOLoss",
    "ChosenNLLLoss",
    "DFTLoss",
    "DPOPLoss",
    "DiscoPOPLoss",
    "Divergence",
    "EXOLoss",
    "ForwardKL",
    "HingeLoss",
    "IPOLoss",
    "JensenShannon",
    "KTOPairLoss",
    "LDDPOLoss",
    "LogisticLoss",
    "NCALoss",
    "NLLLoss",
    "ORPOLoss",
    "Pair",
    "PreferenceLoss",
    "RDPOLoss",
    "ReferenceFreeLoss",
    "ReverseKL",
    "RobustLoss",
    "SPPOHardLoss",
    "SigmoidLoss",
    "SigmoidNormLoss",
    "SimPOLoss",
    "TokenLoss",
    "WPOLoss",
    "WeightedSum",
]
