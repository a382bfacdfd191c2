"""Auto-wrap policy for Lightning's FSDPStrategy."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lion_lightning.models.packing.model import PackedModel


class WrapLayers:
    """An ``auto_wrap_policy`` for any causal LM of transformers: units are its decoder layers, found by their class.

    The rest of each model is a unit too, so that a frozen reference shares none with the policy. It serves as
    ``activation_checkpointing_policy`` as well; ``policy.recompute: full`` does the same under any strategy.
    """

    def __call__(self, module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        """True if a module is a unit, or if its children are to be visited (FSDP calls this)."""
        return recurse or isinstance(module, GradientCheckpointingLayer | PackedModel)
