"""What a run is going to do, said once before its first step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lion_lightning.cache import atomic_write
from lion_lightning.callbacks.folders import require_writable, writes_files
from lion_lightning.callbacks.memory import causal_lm, device_memory, estimate_memory, references
from lion_lightning.callbacks.progress import readable
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.modules.optimization.run_length import run_length

GIB = 2**30

FEW_STEPS = 10
"""With fewer, a warmup and a few examples decide the whole run."""

Figures = dict[str, Any]


class StartupSummary(Callback):
    """Says before the first step what is about to happen: policy, reference, data, steps, memory.

    Rank 0 prints five lines and writes the same figures to ``startup.json`` under ``default_root_dir``, memory in
    bytes; under ``fast_dev_run`` nothing is written. The memory is an estimate for one device
    (:func:`~lion_lightning.callbacks.memory.estimate_memory`; how far it was off where it was measured:
    docs/logging.md); a warning says so if it is more than the device has. What frameworks take for themselves (Python,
    libraries, CUDA's context, fragments) comes on top.

    Works with any module and any loader; of a loader other than
    :class:`~lion_lightning.data.packing.loader.PackedLoader` it tells the steps alone.

    Raises:
        MisconfigurationException: Before training, if the file cannot be written.
    """

    filename = "startup.json"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before training whether the file can be written."""
        if stage == "fit":
            require_writable(trainer, Path(trainer.default_root_dir), "give the trainer another default_root_dir.")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write it.

        Not earlier: asked for the steps, the trainer would set the loader up before a checkpoint's state reached it.
        """
        if not trainer.is_global_zero:
            return
        figures = summarize(trainer, pl_module)
        if writes_files(trainer):
            with atomic_write(Path(trainer.default_root_dir) / self.filename) as temporary:
                temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        rank_zero_info("\n".join(lines(figures)))
        _warn_of_few_steps(trainer, figures["run"]["steps"])
        needed, there = figures["memory"]["total"], figures["memory"]["device"]
        if needed > there:
            rank_zero_warn(
                f"StartupSummary: the run needs about {needed / GIB:.1f} GiB a device, which has {there / GIB:.1f}: "
                "lower data.batch_size (and raise trainer.accumulate_grad_batches), shorten the rows, set "
                "policy.gradient_checkpointing or lora, or shard the model."
            )


def _warn_of_few_steps(trainer: Trainer, steps: int | str) -> None:
    """Say so where the data came out as few steps, and nobody asked for just so many."""
    asked = trainer.max_steps >= 0 or trainer.limit_train_batches != 1.0
    if isinstance(steps, int) and steps < FEW_STEPS and not asked:
        rank_zero_warn(
            f"StartupSummary: the run makes {steps} optimizer step{'s' * (steps != 1)}, which is few: raise "
            "trainer.max_epochs, or lower trainer.accumulate_grad_batches, data.batch_size or the length of a row "
            "(data.max_length, data.row_length)"
        )


def summarize(trainer: Trainer, module: LightningModule) -> dict[str, Figures]:
    """The figures, section by section, as plain data. Call it when training starts, not before.

    Args:
        trainer: The trainer.
        module: The module that it trains.
    """
    loader = trainer.train_dataloader
    packed = loader if isinstance(loader, PackedLoader) else None
    memory = estimate_memory(trainer, module, packed.sampler.capacity * packed.sampler.batch_size if packed else 0)
    return {
        "policy": _policy(module),
        "reference": _reference(module),
        "data": _data(packed) if packed else {},
        "rows": _rows(trainer),
        "run": _run(trainer, packed),
        "memory": {**memory._asdict(), "total": memory.total, "device": device_memory(trainer)},
    }


def lines(figures: dict[str, Figures]) -> list[str]:
    """The figures for a person, a line a section; sections of which nothing is known are left out.

    Args:
        figures: What :func:`summarize` gives.
    """
    told = {
        "policy": "{class}, {parameters} parameters, {trainable} of them trained, {dtype}",
        "reference": "{kind}, {parameters} parameters",
        "data": "{samples} samples of {tokens} tokens in {rows} rows of {row_tokens}, {full} full",
        "run": "{epochs} epochs, {steps} optimizer steps; a step: {accumulate} accumulated x {devices} device(s)"
        + (", up to {step_tokens} tokens" if "step_tokens" in figures["run"] else ""),
    }
    known = {name: text for name, text in told.items() if figures[name]}
    texts = {
        name: text.format(**{key: _count(value) for key, value in figures[name].items()})
        for name, text in known.items()
    }
    found = [f"{'rows':<10} {source}: {'; '.join(said)}" for source, said in figures["rows"].items() if said]
    sections = {**texts, "memory": _memory(figures["memory"])}
    return [*(f"{name:<10} {text}" for name, text in sections.items()), *found]


def _rows(trainer: Trainer) -> Figures:
    """What was found in the rows of each source: columns that are not used, rows left out."""
    found: Figures = getattr(getattr(trainer, "datamodule", None), "row_messages", dict)()
    return found


def _memory(figures: Figures) -> str:
    parts = {name: size for name, size in figures.items() if size and name not in ("total", "device")}
    listed = ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items())
    return f"about {_bytes(figures['total'])} of the {_bytes(figures['device'])} of a device: {listed}"


def _policy(module: LightningModule) -> Figures:
    others = {id(parameter) for part in references(module) for parameter in part.parameters()}
    own = [parameter for parameter in module.parameters() if id(parameter) not in others]
    return {
        "class": type(causal_lm(module) or module).__name__,
        "parameters": sum(map(_size, own)),
        "trainable": sum(_size(parameter) for parameter in own if parameter.requires_grad),
        "dtype": " and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in own})),
    }


def _reference(module: nn.Module) -> Figures:
    kind = getattr(module, "reference", None)
    if kind is None:
        return {}
    size = sum(_size(parameter) for part in references(module) for parameter in part.parameters())
    return {"kind": type(kind).__name__, "parameters": size}


def _data(loader: PackedLoader) -> Figures:
    tokens = int(loader.sampler.lengths.sum())
    return {
        "samples": len(loader.sampler.lengths),
        "tokens": tokens,
        "rows": len(loader.rows),
        "row_tokens": loader.sampler.capacity,
        "full": f"{tokens / (len(loader.rows) * loader.sampler.capacity):.1%}",
    }


def _run(trainer: Trainer, loader: PackedLoader | None) -> Figures:
    steps = run_length(trainer)
    figures: Figures = {
        "epochs": trainer.max_epochs if (trainer.max_epochs or -1) >= 0 else "unlimited",
        "steps": "unlimited" if math.isinf(steps) else int(steps),
        "accumulate": trainer.accumulate_grad_batches,
        "devices": trainer.world_size,
    }
    if loader:
        batches = trainer.accumulate_grad_batches * loader.sampler.world_size
        figures["step_tokens"] = loader.sampler.capacity * loader.sampler.batch_size * batches
    return figures


def _size(parameter: Tensor) -> int:
    """Elements of the whole parameter; FSDP's flat ones know it under a name of their own, DTensors say it."""
    return int(getattr(parameter, "_unpadded_unsharded_size", parameter.shape).numel())


def _count(value: Any) -> str:
    return readable(value) if isinstance(value, int) and value >= 10_000 else str(value)


def _bytes(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
