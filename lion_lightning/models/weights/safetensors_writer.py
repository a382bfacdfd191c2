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
        weight_map: dict[str, str] = {}  # file of each tensor
        total_bytes, files = 0, 0
        for part in _parts(weights, file_bytes):
            files += 1
            file = f"model-{files:05}.safetensors"
            with unwrap_os_errors():
                save_file(part, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
            total_bytes += sum(tensor.nbytes for tensor in part.values())
            part.clear()  # freed before the next part is gathered
        if files == 1:
            (folder / file).replace(folder / SAFE_WEIGHTS_NAME)
            return
        (folder / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)  # loaders would take it rather than the index
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _parts(weights: Iterator[tuple[str, Tensor]], file_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Tensors of one file after the other, on the CPU; there is always one, if an empty one."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        if part and size + tensor.nbytes > file_bytes:
            yield part
            part, size = {}, 0
        part[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
    yield part
