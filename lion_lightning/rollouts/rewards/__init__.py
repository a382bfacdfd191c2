"""From a judge's scores to what is trained: the scores of answers, and their shaping."""

from lion_lightning.rollouts.rewards.scoring import Scoring
from lion_lightning.rollouts.rewards.shaping import RewardShaping, SoftOverlongPunishment, UnfinishedScore

__all__ = ["RewardShaping", "Scoring", "SoftOverlongPunishment", "UnfinishedScore"]
