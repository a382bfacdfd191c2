"""What a run is going to do, said once before its first step."""

from __future__ import annotations

import json
from math import ceil, inf, isfinite
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lion_lightning.callbacks.folders import require_writable
from lion_lightning.callbacks.memory import (
    MemoryEstimate,
    causal_lm,
    device_memory,
    estimate_memory,
    local_bytes,
    references,
)
from lion_lightning.callbacks.progress import readable
from lion_lightning.data.loader import PackedLoader

GIB = 2**30

Summary = dict[str, dict[str, Any]]
"""Section to figures, in plain data; bytes and counts are whole numbers."""


class StartupSummary(Callback):
    """Says what is about to happen before the first step: policy, reference, data, steps, batch, devices, memory.

    Rank 0 prints a table and writes the same figures to ``startup.json`` under ``default_root_dir``, bytes as bytes.
    The memory is an estimate for one device (:func:`~lion_lightning.callbacks.memory.estimate_memory` says how it is
    reckoned; docs/logging.md how far it was off where it was measured); a warning says so if it is more than there is.
    What frameworks take for themselves (Python, libraries, CUDA's context, fragments) comes on top.

    Works with any module; what a module or a loader does not tell is left out.

    Raises:
        MisconfigurationException: Before training, if the file cannot be written.
    """

    filename = "startup.json"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before training whether the file can be written (Lightning calls this)."""
        if stage == "fit":
            require_writable(trainer, Path(trainer.default_root_dir), "give the trainer another default_root_dir.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write it (Lightning calls this).

        Not earlier: asked for the steps, the trainer would set the loader up before a checkpoint's state reached it.
        """
        if not trainer.is_global_zero:
            return
        summary = summarise(trainer, pl_module)
        path = Path(trainer.default_root_dir) / self.filename
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        _print(summary)
        needed, there = summary["memory"]["total"], summary["memory"]["device"]
        if needed > there:
            rank_zero_warn(
                f"StartupSummary: the run needs about {needed / GIB:.1f} GiB a device, which has {there / GIB:.1f}: "
                "lower data.batch_size (and raise trainer.accumulate_grad_batches), shorten the rows, set "
                "policy.gradient_checkpointing or lora, or shard the model."
            )


def summarise(trainer: Trainer, module: LightningModule) -> Summary:
    """The figures. Call it when training starts, not before.

    Args:
        trainer: The trainer.
        module: The module that it trains.
    """
    loader = trainer.train_dataloader
    data = _data(trainer, loader) if isinstance(loader, PackedLoader) else {}
    tokens = loader.capacity * loader.batch_size if isinstance(loader, PackedLoader) else 0
    memory = estimate_memory(trainer, module, tokens)
    return {
        "policy": _policy(module),
        "reference": _reference(module),
        "data": data,
        "run": _run(trainer, data),
        "memory": {**memory._asdict(), "total": memory.total, "device": device_memory(trainer)},
    }


def _policy(module: LightningModule) -> dict[str, Any]:
    others = {id(parameter) for part in references(module) for parameter in part.parameters()}
    own = [parameter for parameter in module.parameters() if id(parameter) not in others]
    return {
        "class": type(causal_lm(module) or module).__name__,
        "parameters": sum(map(_size, own)),
        "trainable": sum(_size(parameter) for parameter in own if parameter.requires_grad),
        "dtype": " and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in own})),
    }


def _size(parameter: Tensor) -> int:
    """Elements of the whole parameter; FSDP's flat ones know it under a name of their own, DTensors say it."""
    return int(getattr(parameter, "_unpadded_unsharded_size", parameter.shape).numel())


def _reference(module: nn.Module) -> dict[str, Any]:
    kind = getattr(module, "reference", None)
    if kind is None:
        return {}
    return {"kind": type(kind).__name__, "parameters": sum(_size(p) for part in references(module) for p in part.parameters())}


def _data(trainer: Trainer, loader: PackedLoader) -> dict[str, Any]:
    settings, rows = loader.settings(), len(loader.rows)
    return {}


def _run(trainer: Trainer, data: dict[str, Any]) -> dict[str, Any]:
    return {}
