"""A LoRA policy as engines want it that put adapters on by themselves: the base once, then adapters alone."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from lion_lightning.models.cached import has_adapters, weights_digest
from lion_lightning.models.gathering import bare, peft_layers, plain_weights, whole_tensors
from lion_lightning.models.passes import Process
from lion_lightning.models.policy import PolicyModel


class ServedAdapters:
    """The active adapter of a policy; see :class:`~lion_lightning.sampling.base.Adapters`.

    Args:
        policy: With adapters on linear layers and no other changes.
        process: This process's place among the others.
    """

    def __init__(self, policy: PolicyModel, process: Process) -> None:
        self.policy, self.process = policy, process

    @property
    def rank(self) -> int:
        """Rank of the largest adapter."""
        return int(max(layer.r[_active(self.policy)] for layer in peft_layers(self.policy.causal_lm).values()))

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """The weights below the adapters, as :meth:`ServedPolicy.weights` gives those of the policy."""
        return plain_weights(self.policy.causal_lm, bare)

    def digest(self) -> str:
        """Hash of the adapters; all ranks must call this where they are sharded."""
        return weights_digest(self._tensors())

    def write(self, folder: Path | None) -> None:
        """Write peft's folder of an adapter: ``adapter_config.json`` and ``adapter_model.safetensors``.

        Args:
            folder: Where to; None on ranks that only help to gather.

        Raises:
            OSError: The folder cannot be written, here or by another process.
        """
        with self.process.together():
            tensors = whole_tensors(self._tensors().items())
            held = {name: tensor.cpu().contiguous() for name, tensor in tensors if folder is not None}
            if folder is not None:
                self._save(held, folder)

    def _tensors(self) -> dict[str, Tensor]:
        """The adapters' tensors, as sharded as they are, under peft's names."""
        from peft import get_peft_model_state_dict

        model: Any = self.policy.model
        adapter = _active(self.policy)
        return dict(get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False))

    def _save(self, tensors: dict[str, Tensor], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = copy(_config(self.policy))
        config.inference_mode = True
        config.save_pretrained(str(folder))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def only_linear_adapters(policy: PolicyModel) -> bool:
    """Whether a policy is its base and plain low-rank adapters on linear layers, which engines know.

    Args:
        policy: With or without adapters.
    """
    if not has_adapters(policy):
        return False
    config = _config(policy)
    plain = not getattr(config, "use_dora", False) and getattr(config, "bias", "none") == "none"
    layers = peft_layers(policy.causal_lm).values()
    return plain and all(hasattr(layer, "lora_A") and isinstance(bare(layer), nn.Linear) for layer in layers)


def _active(policy: PolicyModel) -> str:
    model: Any = policy.model
    return str(model.active_adapter)


def _config(policy: PolicyModel) -> Any:
    model: Any = policy.model
    return model.peft_config[_active(policy)]
