"""Which prompts each round asks: read, chosen, and shared out over the rounds."""

from lion_lightning.rollouts.prompts.curriculum import Curriculum, PassRates
from lion_lightning.rollouts.prompts.dynamic import DynamicSampling

__all__ = ["Curriculum", "DynamicSampling", "PassRates"]
