"""A module of SFT over a random policy of one layer."""

from __future__ import annotations

from typing import Any

import torch

from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from tests.tiny import shallow


def module(tokenizer: TokenizerSpec, **options: Any) -> SFTModule:
    """Built, so that a Trainer may take it; equal arguments give equal weights."""
    torch.manual_seed(0)
    made = SFTModule(PolicySpec(config=shallow()), tokenizer=tokenizer, **options)
    made.configure_model()
    return made
