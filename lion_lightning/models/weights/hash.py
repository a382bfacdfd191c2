"""Weights known by their content."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from lion_lightning.models.quantization import scales


def weights_digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of names, dtypes, shapes and bytes of weights, and of the scales of those in 4 bits, in whatever order.

    Args:
        parameters: Whole, with their names.
    """
    digests = sorted(_parameter_digest(name, parameter) for name, parameter in parameters)
    return blake2b("\n".join(digests).encode(), digest_size=20).hexdigest()


def _parameter_digest(name: str, parameter: Tensor) -> str:
    return " ".join([name, *map(_tensor_digest, [parameter, *scales(parameter)])])


def _tensor_digest(tensor: Tensor) -> str:
    # A copy: numpy would hold on to memory that a sharded model frees between its forwards.
    raw: Any = tensor.detach().to("cpu", copy=True).reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {blake2b(raw, digest_size=20).hexdigest()}"
