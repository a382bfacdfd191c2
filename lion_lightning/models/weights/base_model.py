"""The model that adapters were put on: found again by its path, and known by a digest of its weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from lion_lightning.errors import first_line
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.dtensor import unwrapped
from lion_lightning.models.weights.hash import weights_digest
from lion_lightning.models.weights.sharded_loading import WeightFiles


def has_base(spec: PolicySpec) -> bool:
    """Whether a policy is adapters on a model that can be had again, so that checkpoints need not hold that model.

    Args:
        spec: The policy. One that starts from random weights has its base nowhere else.
    """
    return spec.lora is not None and spec.path is not None


def base_digest(spec: PolicySpec) -> str:
    """Hash of the weights as they are stored, whatever dtype, quantization or new rows they get in memory.

    Args:
        spec: A policy with a ``path``.

    Raises:
        ValueError: If there is no such model any more.
    """
    weights = _stored(spec)
    return weights_digest(tqdm(weights.items(), f"hash of {spec.path}", delay=2, leave=False))


def require_base(spec: PolicySpec, digest: str) -> None:
    """Refuse another base than the one that adapters were trained on.

    Args:
        spec: A policy with a ``path``.
        digest: Of the base that is wanted.

    Raises:
        ValueError: If the base has changed or is gone.
    """
    if base_digest(spec) != digest:
        raise ValueError(
            f"the base model at {spec.path} has changed since this checkpoint's adapters were trained on it; put the "
            "old weights back, or say where they are: --model.policy.path DIR, or lion export --base DIR"
        )


def trained_names(policy: nn.Module) -> set[str]:
    """Names of what is not the base's: parameters that learn, by all their names where weights are tied; and buffers.

    Args:
        policy: A model with its adapters on (peft marks them as frozen while they are off).
    """
    learning = {unwrapped(name) for name, p in policy.named_parameters(remove_duplicate=False) if p.requires_grad}
    return learning | {unwrapped(name) for name, _ in policy.named_buffers()}


def base_names(names: Iterable[str], prefix: str, trained: set[str]) -> set[str]:
    """Those of a state dict's names whose values come from the base again.

    Args:
        names: Of the state dict.
        prefix: Under which it has the policy, ``policy.`` say.
        trained: From :func:`trained_names`.
    """
    return {name for name in names if name.startswith(prefix) and name.removeprefix(prefix) not in trained}


def _stored(spec: PolicySpec) -> dict[str, Tensor]:
    """The weights in the files, mapped into memory rather than read into it."""
    try:
        files = WeightFiles.find(str(spec.path), spec.revision)
        return {name: tensor for file in _paths(files) for name, tensor in load_file(file).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the base model of the adapters cannot be read from {spec.path} ({first_line(error)}); "
            "put it back, or say where it is: --model.policy.path DIR, or lion export --base DIR"
        ) from error


def _paths(files: WeightFiles) -> list[Path]:
    return sorted(set(files.names.values()))
