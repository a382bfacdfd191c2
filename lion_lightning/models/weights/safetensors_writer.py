"""Weights written to a Hugging Face folder one file at a time: the full model is never in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from lion_lightning.cache import unwrap_os_errors
from lion_lightning.ops.logprobs import to_the_end

FILE_BYTES = 2**30
"""Size of a file of weights, and what its writer holds in memory; a larger tensor has a file to itself."""


def save_weights(weights: Iterator[tuple[str, Tensor]], folder: Path | None, file_bytes: int = FILE_BYTES) -> None:
    """Write ``model.safetensors``, or several files with an index, in place of earlier ones.

    Args:
        weights: Full tensors by name; read to the end on every rank.
        folder: Where to; None on ranks that only help to gather.
        file_bytes: Size at which another file is begun.
    """
    with to_the_end(weights):
        if folder is None:
            return
        for old in (*folder.glob("model-[0-9]*.safetensors"), folder / SAFE_WEIGHTS_INDEX_NAME):
            old.unlink(missing_ok=True)
        writer = _ShardWriter(folder, file_bytes)
        for name, tensor in weights:
            writer.add(name, tensor)
        writer.close()


class _ShardWriter:
    """Collects tensors and writes a file whenever enough have come."""

    def __init__(self, folder: Path, file_bytes: int) -> None:
        self.folder, self.file_bytes = folder, file_bytes
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = self.total_bytes = 0
        self.weight_map: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor."""
        if self.pending and self.pending_bytes + tensor.nbytes > self.file_bytes:
            self._flush()
        self.pending[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self.pending_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the rest, and the index where there are several files."""
        self._flush()
        files = sorted(set(self.weight_map.values()))
        if len(files) == 1:
            (self.folder / files[0]).replace(self.folder / SAFE_WEIGHTS_NAME)
            return
        (self.folder / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)  # loaders would take it rather than the index
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": self.weight_map}
        (self.folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _flush(self) -> None:
        file = f"model-{len(set(self.weight_map.values())) + 1:05}.safetensors"
        with unwrap_os_errors():
            save_file(self.pending, self.folder / file, metadata={"format": "pt"})
        self.weight_map |= dict.fromkeys(self.pending, file)
        self.total_bytes += self.pending_bytes
        self.pending, self.pending_bytes = {}, 0
