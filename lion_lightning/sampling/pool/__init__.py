"""Answers of several models to the same prompts."""

from lion_lightning.sampling.pool.frozen import FrozenSampler
from lion_lightning.sampling.pool.pooled import PooledSampler

__all__ = ["FrozenSampler", "PooledSampler"]
