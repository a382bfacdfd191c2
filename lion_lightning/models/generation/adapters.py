"""LoRA adapters apart from their base model, for engines that load the base model once and then only adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.lora import adapter_weights, write_adapter
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.weights.full_state import base_layer, full_tensors, full_weights, peft_layers, unflattened
from lion_lightning.models.weights.hash import hash_tensors


class PolicyAdapters:
    """The active adapter of a policy. All ranks must call its methods together where the weights are sharded.

    Args:
        policy: With plain LoRA on linear layers (:func:`has_plain_lora`).
        ranks: This process among the ranks of the run.
    """

    def __init__(self, policy: PolicyModel, ranks: Ranks) -> None:
        self.policy, self.ranks = policy, ranks
        self.model: Any = policy.model

    @property
    def rank(self) -> int:
        """Highest rank of the low-rank matrices."""
        return int(max(layer.r[self.model.active_adapter] for layer in peft_layers(self.policy.causal_lm).values()))

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights of the base model by Hugging Face's names, tied ones under both."""
        with unflattened(self.policy):
            yield from full_weights(self.policy.causal_lm, base_layer)

    def digest(self) -> str:
        """Hash of the adapter."""
        with unflattened(self.policy):
            return hash_tensors(self._tensors())

    def write(self, folder: Path | None) -> None:
        """Write peft's folder of an adapter: ``adapter_config.json`` and ``adapter_model.safetensors``.

        Args:
            folder: Where to; None on ranks that only help to gather.
        """
        gathered: dict[str, Tensor] = {}
        with self.ranks.together(), unflattened(self.policy):
            for name, tensor in self._tensors():  # all ranks gather, to the last
                if folder is not None:
                    gathered[name] = tensor.cpu()
            if folder is not None:
                write_adapter(self.model, folder, gathered)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return full_tensors(adapter_weights(self.model).items())


def has_plain_lora(policy: PolicyModel) -> bool:
    """True for a base model with plain LoRA on linear layers and nothing else trained, which engines support."""
    if not policy.has_adapters:
        return False
    model: Any = policy.model
    config = model.peft_config[model.active_adapter]
    if getattr(config, "use_dora", False) or getattr(config, "bias", "none") != "none":
        return False
    for layer in peft_layers(policy.causal_lm).values():
        if not hasattr(layer, "lora_A") or not isinstance(base_layer(layer), nn.Linear):
            return False  # e.g. trainable tokens, or modules_to_save
    return True
