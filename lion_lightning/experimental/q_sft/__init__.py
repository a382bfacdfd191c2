"""Q-SFT (arXiv 2411.05193): offline Q-learning by supervised fine-tuning, for conversations of several turns."""

from lion_lightning.experimental.q_sft.data import TrajectoryDataModule
from lion_lightning.experimental.q_sft.loss import DummyRest, QSFTLoss, UniformRest
from lion_lightning.experimental.q_sft.module import QSFTModule
from lion_lightning.experimental.q_sft.sampler import QSFTSampler

__all__ = ["DummyRest", "QSFTLoss", "QSFTModule", "QSFTSampler", "TrajectoryDataModule", "UniformRest"]
