"""A LoRA policy as engines want it that put adapters on by themselves: the base once, then adapters alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.lora import adapter_weights, write_adapter
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.weights.full_state import base_layer, full_tensors, full_weights, peft_layers, unflattened
from lion_lightning.models.weights.hash import hash_weights


class PolicyAdapters:
    """LoRA adapters on linear layers, apart from the base model: an engine loads the base model once, then only them.

    Args:
        policy: With adapters on linear layers and no other changes.
        ranks: This process among the ranks of the run.
    """

    def __init__(self, policy: PolicyModel, ranks: Ranks) -> None:
        self.policy, self.ranks = policy, ranks

    @property
    def rank(self) -> int:
        """Rank of the largest adapter."""
        return int(max(layer.r[_active(self.policy)] for layer in peft_layers(self.policy.causal_lm).values()))

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """The weights below the adapters, as :meth:`RolloutPolicy.weights` gives those of the policy."""
        with unflattened(self.policy):
            yield from full_weights(self.policy.causal_lm, base_layer)

    def digest(self) -> str:
        """Hash of the adapters; all ranks must call this where they are sharded."""
        with unflattened(self.policy):
            return hash_weights(self._tensors())

    def write(self, folder: Path | None) -> None:
        """Write peft's folder of an adapter: ``adapter_config.json`` and ``adapter_model.safetensors``.

        Args:
            folder: Where to; None on ranks that only help to gather.

        Raises:
            OSError: The folder cannot be written, on this rank or another.
        """
        model: Any = self.policy.model
        with self.ranks.together(), unflattened(self.policy):
            held = {name: tensor.cpu() for name, tensor in self._tensors() if folder is not None}
            if folder is not None:
                write_adapter(model, folder, held)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        model: Any = self.policy.model
        return full_tensors(adapter_weights(model).items())


def only_linear_adapters(policy: PolicyModel) -> bool:
    """Whether a policy is its base and plain low-rank adapters on linear layers, which engines know.

    Args:
        policy: With or without adapters.
    """
    if not policy.has_adapters:
        return False
    config = _config(policy)
    plain = not getattr(config, "use_dora", False) and getattr(config, "bias", "none") == "none"
    layers = peft_layers(policy.causal_lm).values()
    return plain and all(hasattr(layer, "lora_A") and isinstance(base_layer(layer), nn.Linear) for layer in layers)


def _active(policy: PolicyModel) -> str:
    model: Any = policy.model
    return str(model.active_adapter)


def _config(policy: PolicyModel) -> Any:
    model: Any = policy.model
    return model.peft_config[_active(policy)]
