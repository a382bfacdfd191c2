"""Optimizers in plain PyTorch."""

from lion_lightning.optim.adalomo import AdaLomo

__all__ = ["AdaLomo"]
