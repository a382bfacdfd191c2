"""Hashes of tensors, and of models on disk."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lion_lightning.cache import hash_file, hash_json
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


def hash_model(path: str, revision: str | None) -> str:
    """Identity of a stored model: of a folder a hash of its content, else the hub's id and revision."""
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{revision or 'main'}"
    kinds = ("*.safetensors", "*.json", "*.jinja")
    files = chain.from_iterable(map(folder.glob, kinds))  # a later training stage may replace them
    return hash_json({file.name: hash_file(file) for file in files})
