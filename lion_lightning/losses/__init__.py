"""Losses: small classes over log-probs, with no Lightning in them."""

from lion_lightning.losses.sft import DFTLoss, NLLLoss, SFTLoss

__all__ = ["DFTLoss", "NLLLoss", "SFTLoss"]
