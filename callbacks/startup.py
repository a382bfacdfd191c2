"""Summary of a run before its first step: policy, reference, data, steps and memory."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from lion_lightning.cache import atomic_write
from lion_lightning.callbacks.folders import require_writable, writes_files
from lion_lightning.callbacks.progress import readable
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.errors import first_line
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.optimization.run_length import run_length
from lion_lightning.planning.job import job_of
from lion_lightning.planning.memory import GIB, MemoryEstimate
from lion_lightning.planning.sharding_layout import placements, with_recompute_of

log = logging.getLogger(__name__)

FEW_STEPS = 10
"""With fewer, a warmup and a few examples decide the run."""

Section = dict[str, Any]


class StartupSummary(Callback):
    """Prints before the first step what is about to happen: policy, reference, data, steps, memory.

    Rank 0 prints a line per section and writes the same to ``startup.json`` under ``default_root_dir``, memory in
    bytes; under ``fast_dev_run`` nothing is written. The memory is the estimate of ``lion plan`` for one device
    (docs/planning.md), without the overhead of frameworks (Python, libraries, CUDA's context, fragments), which comes
    on top. If it is more than the device has, a warning says so.

    Works with any module and any loader. Data is described for a
    :class:`~lion_lightning.data.packing.loader.PackedLoader`, memory for such a loader and an
    :class:`~lion_lightning.modules.base.AlignmentModule`.

    Raises:
        MisconfigurationException: Before training, if the file cannot be written.
    """

    filename = "startup.json"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before training that the file can be written."""
        if stage == "fit":
            require_writable(trainer, Path(trainer.default_root_dir), "give the trainer another default_root_dir.")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write the summary.

        Not earlier: asked for the steps, the trainer would set the loader up before a checkpoint's state reached it.
        """
        if not trainer.is_global_zero:
            return
        summary = summarize(trainer, pl_module)
        if writes_files(trainer):
            with atomic_write(Path(trainer.default_root_dir) / self.filename) as temporary:
                temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        rank_zero_info("\n".join(lines(summary)))
        _warn_of_few_steps(trainer, summary["run"]["steps"])
        _warn_of_little_memory(summary["memory"])


def summarize(trainer: Trainer, module: LightningModule) -> dict[str, Section]:
    """The summary as plain data, section by section. Call it when training starts, not before.

    Args:
        trainer: The trainer.
        module: The module that it trains.
    """
    loader = trainer.train_dataloader
    packed = loader if isinstance(loader, PackedLoader) else None
    return {
        "policy": _policy(module),
        "reference": _reference(module),
        "data": _data(packed) if packed else {},
        "rows": _row_messages(trainer),
        "run": _run(trainer, packed),
        "memory": _memory(trainer, module, packed),
    }


def lines(summary: dict[str, Section]) -> list[str]:
    """The summary for a person, a line per section; empty sections are left out.

    Args:
        summary: The result of :func:`summarize`.
    """
    templates = {
        "policy": "{class}, {parameters} parameters, {trainable} of them trained, {dtype}, recompute: {recompute}",
        "reference": "{kind}, {parameters} parameters",
        "data": "{samples} samples of {tokens} tokens in {rows} rows of {row_tokens}, {full} full",
        "run": "{epochs} epochs, {steps} optimizer steps; a step: {accumulate} accumulated x {devices} device(s)"
        + (", up to {step_tokens} tokens" if "step_tokens" in summary["run"] else ""),
    }
    texts = []
    for name, template in templates.items():
        if summary[name]:
            values = {key: _count(value) for key, value in summary[name].items()}
            texts.append(f"{name:<10} {template.format(**values)}")
    if summary["memory"]:
        texts.append(f"{'memory':<10} {_memory_text(summary['memory'])}")
    messages = [(source, found) for source, found in summary["rows"].items() if found]
    return [*texts, *(f"{'rows':<10} {source}: {'; '.join(found)}" for source, found in messages)]


def device_memory(trainer: Trainer) -> int:
    """Bytes of memory of one device; processes that share a machine's memory share it evenly.

    Args:
        trainer: The trainer.
    """
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(1, trainer.num_devices)


def _policy(module: LightningModule) -> Section:
    others = {id(parameter) for part in _references(module) for parameter in part.parameters()}
    own = [parameter for parameter in module.parameters() if id(parameter) not in others]
    return {
        "class": type(_causal_lm(module) or module).__name__,
        "parameters": sum(map(_size, own)),
        "trainable": sum(_size(parameter) for parameter in own if parameter.requires_grad),
        "dtype": " and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in own})),
        "recompute": getattr(getattr(module, "policy_spec", None), "recompute", "none"),
    }


def _reference(module: nn.Module) -> Section:
    reference = getattr(module, "reference", None)
    if reference is None:
        return {}
    size = sum(_size(parameter) for part in _references(module) for parameter in part.parameters())
    return {"kind": type(reference).__name__, "parameters": size}


def _data(loader: PackedLoader) -> Section:
    tokens = int(loader.sampler.lengths.sum())
    return {
        "samples": len(loader.sampler.lengths),
        "tokens": tokens,
        "rows": len(loader.rows),
        "row_tokens": loader.sampler.capacity,
        "full": f"{tokens / (len(loader.rows) * loader.sampler.capacity):.1%}",
    }


def _row_messages(trainer: Trainer) -> Section:
    """Messages about the rows of each source: unused columns, rows left out."""
    messages: Section = getattr(getattr(trainer, "datamodule", None), "row_messages", dict)()
    return messages


def _run(trainer: Trainer, loader: PackedLoader | None) -> Section:
    steps = run_length(trainer)
    section: Section = {
        "epochs": trainer.max_epochs if (trainer.max_epochs or -1) >= 0 else "unlimited",
        "steps": "unlimited" if math.isinf(steps) else int(steps),
        "accumulate": trainer.accumulate_grad_batches,
        "devices": trainer.world_size,
    }
    if loader:
        batches = trainer.accumulate_grad_batches * loader.sampler.world_size
        section["step_tokens"] = _micro_batch_tokens(loader) * batches
    return section


def _memory(trainer: Trainer, module: LightningModule, loader: PackedLoader | None) -> Section:
    """Bytes on one device at the peak of a step; empty where no estimate can be made."""
    if not isinstance(module, AlignmentModule) or loader is None:
        return {}
    try:
        with isolate_rng():  # the run draws the same numbers with and without a summary
            peak = _peak(trainer, module, _micro_batch_tokens(loader))
    except Exception as error:  # of a model, optimizer or strategy that cannot be estimated, but perhaps trained
        log.info("StartupSummary: no estimate of memory: %s", first_line(error))
        return {}
    return {**peak.parts, "total": peak.total, "peak_in": peak.moment, "device": device_memory(trainer)}


def _peak(trainer: Trainer, module: AlignmentModule, tokens: int) -> MemoryEstimate:
    job = job_of(
        module,
        tokens,
        getattr(getattr(trainer, "datamodule", None), "max_length", tokens),
        str(trainer.precision),
        accumulate=trainer.accumulate_grad_batches,
        on_gpu=trainer.strategy.root_device.type != "cpu",
    )
    quantized = module.policy_spec.quantization is not None
    own, *_ = placements(trainer.strategy, trainer.world_size, packed=quantized)
    return own.peak(with_recompute_of(trainer.strategy, job))


def _memory_text(section: Section) -> str:
    parts = {name: section[name] for name in MemoryEstimate().parts if section[name]}
    listed = ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items())
    total, there = _bytes(section["total"]), _bytes(section["device"])
    return f"about {total} of the {there} of a device at the peak ({section['peak_in']}): {listed}"


def _warn_of_few_steps(trainer: Trainer, steps: int | str) -> None:
    """Warn where the data gives few steps, unless the trainer was told to make just so many."""
    asked = trainer.max_steps >= 0 or trainer.limit_train_batches != 1.0
    if isinstance(steps, int) and steps < FEW_STEPS and not asked:
        rank_zero_warn(
            f"StartupSummary: the run makes {steps} optimizer step{'s' * (steps != 1)}, which is few: raise "
            "trainer.max_epochs, or lower trainer.accumulate_grad_batches, data.batch_size or the length of a row "
            "(data.max_length, data.row_length)"
        )


def _warn_of_little_memory(memory: Section) -> None:
    if memory and memory["total"] > memory["device"]:
        rank_zero_warn(
            f"StartupSummary: the run needs about {memory['total'] / GIB:.1f} GiB per device, which has "
            f"{memory['device'] / GIB:.1f}: lower data.batch_size (and raise trainer.accumulate_grad_batches), shorten "
            "the rows, set policy.recompute or lora, or shard the model."
        )


def _references(module: nn.Module) -> list[nn.Module]:
    """Children that hold the models that the policy is compared with."""
    return [part for name, part in module.named_children() if name in ("reference", "start")]


def _causal_lm(module: nn.Module) -> PreTrainedModel | None:
    """The transformers model of a module's policy, if it has one."""
    others = {id(model) for part in _references(module) for model in part.modules()}
    models = (model for model in module.modules() if isinstance(model, PreTrainedModel) and id(model) not in others)
    return next(models, None)


def _micro_batch_tokens(loader: PackedLoader) -> int:
    return loader.sampler.capacity * loader.sampler.batch_size


def _size(parameter: Tensor) -> int:
    """Elements of the full parameter; FSDP's flat ones keep their number in a private attribute."""
    return int(getattr(parameter, "_unpadded_unsharded_size", parameter.shape).numel())


def _count(value: Any) -> str:
    return readable(value) if isinstance(value, int) and value >= 10_000 else str(value)


def _bytes(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
