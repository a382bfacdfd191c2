"""What is learnt early and what late: the file of losses, learning percentages, and a filter by them (2402.10430)."""

from lion_lightning.data.learning.latest_learnt import LatestLearnt

__all__ = ["LatestLearnt"]
