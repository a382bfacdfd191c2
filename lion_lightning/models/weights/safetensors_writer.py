"""Weights to a Hugging Face folder as they come, so that nobody has to hold them all."""

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
"""Size of a file of weights, which is also what its writer holds at once; a larger tensor has a file of its own."""


def save_weights(weights: Iterator[tuple[str, Tensor]], folder: Path | None, file_bytes: int = FILE_BYTES) -> None:
    """Write weights as ``model.safetensors``, or as several files with an index. What was there is replaced.

    Args:
        weights: Whole tensors by name; gone through to the end in any case.
        folder: Where to; None to write nothing, on ranks that only help to gather.
        file_bytes: Size at which another file is begun.
    """
    with to_the_end(weights):
        if folder is None:
            return
        for old in (*folder.glob("model-[0-9]*.safetensors"), folder / SAFE_WEIGHTS_INDEX_NAME):
            old.unlink(missing_ok=True)
        files = _Files(folder, file_bytes)
        for name, tensor in weights:
            files.add(name, tensor)
        files.close()


class _Files:
    """Files of a folder, one open at a time."""

    def __init__(self, folder: Path, file_bytes: int) -> None:
        self.folder, self.file_bytes = folder, file_bytes
        self.held: dict[str, Tensor] = {}
        self.size = self.written = 0
        self.places: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor; files are written as they fill."""
        if self.held and self.size + tensor.nbytes > self.file_bytes:
            self._flush()
        self.held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self.size += tensor.nbytes

    def close(self) -> None:
        """Write the rest, and the index where there are several files."""
        self._flush()
        files = sorted(set(self.places.values()))
        if len(files) == 1:
            (self.folder / files[0]).replace(self.folder / SAFE_WEIGHTS_NAME)
            return
        (self.folder / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)  # loaders would take it rather than the index
        index = {"metadata": {"total_size": self.written}, "weight_map": self.places}
        (self.folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _flush(self) -> None:
        file = f"model-{len(set(self.places.values())) + 1:05}.safetensors"
        with unwrap_os_errors():
            save_file(self.held, self.folder / file, metadata={"format": "pt"})
        self.places |= dict.fromkeys(self.held, file)
        self.written += self.size
        self.held, self.size = {}, 0
