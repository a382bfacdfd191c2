"""Weights known by their content."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from lion_lightning.models.pieces import whole
from lion_lightning.models.quantization import scales


def weights_digest(parameters: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and bytes of weights, and of the scales of those in four bits.

    Args:
        parameters: By name.
    """
    state = blake2b(digest_size=20)
    for name, parameter in parameters.items():
        parts = [whole(parameter), *scales(parameter)]
        state.update(" ".join([name, *map(_tensor_digest, parts)]).encode())
    return state.hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    raw: Any = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {blake2b(raw, digest_size=20).hexdigest()}"
