"""Hash of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from lion_lightning.models.quantization import scales


def hash_tensors(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of names, dtypes, shapes and values, whatever their order; 4-bit weights count with their scales."""
    lines = []
    for name, parameter in parameters:
        line = name
        for tensor in (parameter, *scales(parameter)):
            # A copy, since numpy would hold on to memory that a sharded model frees between its forwards.
            raw: Any = tensor.detach().to("cpu", copy=True).reshape(-1).view(torch.uint8).numpy()
            line += f" {tensor.dtype} {tuple(tensor.shape)} {blake2b(raw, digest_size=20).hexdigest()}"
        lines.append(line)
    return blake2b("\n".join(sorted(lines)).encode(), digest_size=20).hexdigest()
