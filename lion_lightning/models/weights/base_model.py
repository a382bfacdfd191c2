"""The base model of LoRA adapters: checkpoints leave out its weights, and keep a hash of them instead."""

from __future__ import annotations

from collections.abc import Iterable

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from lion_lightning.errors import first_line
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.dtensor import unwrapped
from lion_lightning.models.weights.hash import hash_tensors
from lion_lightning.models.weights.sharded_loading import WeightFiles


def has_stored_base(spec: PolicySpec) -> bool:
    """True for adapters on a model from a path, which checkpoints need not hold."""
    return spec.lora is not None and spec.path is not None


def hash_base_model(spec: PolicySpec) -> str:
    """Hash of the weights as they are stored, before dtype, quantization and new rows change them in memory."""
    try:
        files = WeightFiles.find(str(spec.path), spec.revision)
        weights: dict[str, Tensor] = {}
        for file in sorted(set(files.names.values())):
            weights |= load_file(file)  # mapped into memory rather than read into it
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the base model of the adapters cannot be read from {spec.path} ({first_line(error)}); "
            "put it back, or say where it is: --model.policy.path DIR, or lion export --base DIR"
        ) from error
    return hash_tensors(tqdm(weights.items(), f"hash of {spec.path}", delay=2, leave=False))


def require_base_model(spec: PolicySpec, wanted: str) -> None:
    """Require the base model that adapters were trained on."""
    if hash_base_model(spec) != wanted:
        raise ValueError(
            f"the base model at {spec.path} has changed since this checkpoint's adapters were trained on it; put the "
            "old weights back, or say where they are: --model.policy.path DIR, or lion export --base DIR"
        )


def trained_names(policy: nn.Module) -> set[str]:
    """Names of all that is not the base model's: trained parameters, by each of their names if tied, and buffers.

    Args:
        policy: A model with its adapters on (peft marks them as frozen while they are off).
    """
    names = {unwrapped(name) for name, _ in policy.named_buffers()}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.add(unwrapped(name))
    return names


def base_names(names: Iterable[str], prefix: str, trained: set[str]) -> set[str]:
    """The names in a state dict that belong to the base model."""
    return {name for name in names if name.startswith(prefix) and name.removeprefix(prefix) not in trained}
