"""How early documents are learnt: the file of losses, learning percentages, a filter by them (arXiv 2402.10430)."""

from lion_lightning.data.learning.latest_learnt import LatestLearnt

__all__ = ["LatestLearnt"]
