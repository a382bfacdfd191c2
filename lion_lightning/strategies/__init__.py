"""Strategies of Lightning, with what training Hugging Face models under them needs."""

from lion_lightning.strategies.fsdp2 import FSDP2Strategy

__all__ = ["FSDP2Strategy"]
