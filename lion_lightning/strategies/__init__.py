"""Strategies of Lightning, with what training Hugging Face models under them needs."""

from lion_lightning.strategies.fsdp2 import FSDP2Strategy
from lion_lightning.strategies.wrapping import WrapLayers

__all__ = ["FSDP2Strategy", "WrapLayers"]
