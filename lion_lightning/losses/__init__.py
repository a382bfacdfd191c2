"""Losses: small classes over log-probs, with no Lightning in them."""

from lion_lightning.losses.combined import WeightedSum, WPOLoss
from lion_lightning.losses.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from lion_lightning.losses.dpo import DPOPLoss, LDDPOLoss, LogisticLoss, RDPOLoss, SigmoidLoss, SigmoidNormLoss
from lion_lightning.losses.margins import DiscoPOPLoss, EXOLoss, HingeLoss, IPOLoss, RobustLoss
from lion_lightning.losses.pointwise import APODownLoss, APOZeroLoss, BCOLoss, KTOPairLoss, NCALoss, SPPOHardLoss
from lion_lightning.losses.preference import Pair, PreferenceLoss
from lion_lightning.losses.reference_free import ChosenNLLLoss, CPOLoss, ORPOLoss, ReferenceFreeLoss, SimPOLoss
from lion_lightning.losses.sft import DFTLoss, NLLLoss, SFTLoss
from lion_lightning.losses.transport import AOTLoss, AOTUnpairedLoss

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
    "SFTLoss",
    "SPPOHardLoss",
    "SigmoidLoss",
    "SigmoidNormLoss",
    "SimPOLoss",
    "WPOLoss",
    "WeightedSum",
]
