"""Summary of a run before its first step: policy, reference, data, steps and memory."""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from functools import reduce
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lion_lightning.callbacks.folders import require_writable_root, write_json
from lion_lightning.callbacks.monitors.peak_memory import PeakMemory, peaks, reset_peaks
from lion_lightning.callbacks.optimization.fused_backward import steps_within_backward
from lion_lightning.callbacks.progress import readable
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.data.reports.tree_reports import AnswerReport, TreeReport
from lion_lightning.data.streaming.loader import StreamLoader
from lion_lightning.errors import first_line
from lion_lightning.models.packing.model import PackedModel
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.optimization.run_length import run_length
from lion_lightning.one_lightning import LionCallback
from lion_lightning.planning.job import job_of
from lion_lightning.planning.memory import GIB, MemoryEstimate
from lion_lightning.planning.sharding_layout import placements, with_recompute_of
from lion_lightning.references.base import FrozenReference

log = logging.getLogger(__name__)

FEW_STEPS = 10
"""With fewer, a warmup and a few examples decide the run."""

Section = dict[str, Any]


class StartupSummary(LionCallback):
    """Prints before the first step what is about to happen: policy, reference, data, steps, memory.

    Rank 0 prints a line per section and writes the same to ``startup.json`` under ``default_root_dir``, memory in
    bytes; under ``fast_dev_run`` nothing is written. The memory is the estimate of ``lion plan`` for one device
    (docs/planning.md), without the overhead of frameworks (Python, libraries, CUDA's context, fragments), which comes
    on top. If it is more than the device has, a warning says so.

    Works with any module and any loader. Data is described for a
    :class:`~lion_lightning.data.packing.loader.PackedLoader` or a
    :class:`~lion_lightning.data.streaming.loader.StreamLoader`, memory for such a loader and an
    :class:`~lion_lightning.modules.base.AlignmentModule`.

    Raises:
        MisconfigurationException: Before training, if the file cannot be written.
    """

    filename = "startup.json"
    _summary: dict[str, Section]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            require_writable_root(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        # Not earlier: asked for the steps, the trainer would set the loader up before a checkpoint's state reached it.
        summary = summarize(trainer, pl_module)
        write_json(trainer, self.filename, summary)
        self._summary = summary
        with suppress(OSError):  # a system that does not tell
            reset_peaks(trainer.strategy.root_device)
        rank_zero_info("\n".join(lines(summary)))
        _warn(trainer, run_length(trainer), summary["memory"])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the measured peak next to the estimate, unless somebody else measures from step to step."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if not trainer.is_global_zero or any(isinstance(one, PeakMemory) for one in callbacks):
            return
        device = trainer.strategy.root_device
        with suppress(OSError):
            measured = peaks(device)["peak_memory"]
            memory = self._summary["memory"]
            write_json(trainer, self.filename, {**self._summary, "measured": {"memory": measured}})
            whose = "tensors" if device.type == "cuda" else "the process, with all libraries"
            estimated = f"; {_bytes(memory['total'])} were estimated for tensors" if memory else ""
            rank_zero_info(f"{'memory':<10} measured, {_bytes(measured)} at the peak ({whose}){estimated}")


def summarize(trainer: Trainer, module: LightningModule) -> dict[str, Section]:
    """The summary as plain data, section by section. Call it when training starts, not before."""
    loader = trainer.train_dataloader if isinstance(trainer.train_dataloader, PackedLoader | StreamLoader) else None
    data: Section = {}
    if isinstance(loader, StreamLoader):
        sources, settings = loader.streamed.sources, loader.streamed.settings
        data = {"sources": len(sources), "window": settings.window, "row_tokens": loader.capacity}
    elif loader:
        lengths, capacity = loader.sampler.lengths, loader.sampler.capacity
        tokens, trees = int(lengths.sum()), _trees(trainer)
        data = {
            "samples": len(lengths),
            **({"units": trees.units(), "prompts": trees.prompts, "answers": trees.answers} if trees else {}),
            "tokens": tokens,
            "rows": len(loader.rows),
            "row_tokens": capacity,
            "full": f"{tokens / (len(loader.rows) * capacity):.1%}",
        }
    return {
        **_models(module),
        "objective": {"loss": module.objective} if isinstance(module, AlignmentModule) else {},
        "data": data,
        "rows": getattr(getattr(trainer, "datamodule", None), "row_messages", dict)(),  # by source, what was left out
        "run": _run(trainer, loader),
        "memory": _memory(trainer, module, loader),
    }


def lines(summary: dict[str, Section]) -> list[str]:
    """The result of :func:`summarize` for a person, a line per section; empty sections are left out."""
    templates = {
        "policy": "{class}, {parameters} parameters, {trainable} of them trained, {dtype}, recompute: {recompute}"
        + (", {notes}" if "notes" in summary["policy"] else ""),
        "reference": "{kind}" + (", {parameters} parameters" if summary["reference"].get("parameters") else ""),
        "objective": "{loss}",
        "data": ("{units}:" if "units" in summary["data"] else "{samples} samples of")
        + " {tokens} tokens in {rows} rows of {row_tokens}, {full} full"
        if "samples" in summary["data"]
        else "{sources} streamed source(s), packed {window} documents at a time in rows of {row_tokens}",
        "run": "epochs: {epochs}, optimizer steps: {steps}; a step: {accumulate} accumulated x {devices} device(s)"
        + (", up to {step_tokens} tokens" if "step_tokens" in summary["run"] else ""),
    }
    texts = []
    for name, template in templates.items():
        if summary[name]:
            values = {key: _shown(value) for key, value in summary[name].items()}
            texts.append(f"{name:<10} {template.format(**values)}")
    if memory := summary["memory"]:
        names = {name: "copies" if name == "in_flight" else name for name in MemoryEstimate().parts if memory[name]}
        parts = ", ".join(f"{shown} {_bytes(memory[name])}" for name, shown in names.items())
        share = f"estimated, about {_bytes(memory['total'])} of the {_bytes(memory['device'])} of a device"
        texts.append(f"{'memory':<10} {share} at the peak ({memory['peak_in']}): {parts}")
    for source, messages in summary["rows"].items():
        if messages:
            texts.append(f"{'rows':<10} {source}: {'; '.join(messages)}")
    return texts


def _trees(trainer: Trainer) -> TreeReport | None:
    """Counts of an epoch's prompts and answers, over all sources; None for documents."""
    reports = getattr(getattr(trainer, "datamodule", None), "reports", ())
    trees = [report for report in reports if isinstance(report, TreeReport)]
    return reduce(TreeReport.merged, trees) if trees else None


def _shown(value: Any) -> Any:
    return readable(value) if isinstance(value, int) and value >= 10_000 else value


def _models(module: LightningModule) -> dict[str, Section]:
    """The policy, and the references if there are any."""
    references = []
    for name, part in module.named_children():
        if name == "reference" or isinstance(part, FrozenReference):  # others are caches that modules keep
            references.append(part)
    compared: list[Tensor] = []
    inside: set[int] = set()  # the models in them
    for part in references:
        compared += part.parameters()
        inside.update(map(id, part.modules()))
    others = set(map(id, compared))
    own = [parameter for parameter in module.parameters() if id(parameter) not in others]
    models = (model for model in module.modules() if isinstance(model, PreTrainedModel) and id(model) not in inside)
    policy: Section = {
        "class": type(next(models, module)).__name__,
        "parameters": sum(map(_size, own)),
        "trainable": sum(_size(parameter) for parameter in own if parameter.requires_grad),
        "dtype": " and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in own})),
        "recompute": getattr(getattr(module, "policy_spec", None), "recompute", "none"),
    }
    notes = _notes(module)
    if notes:
        policy["notes"] = notes
    kinds = " and ".join(type(part).__name__ for part in references)
    reference = {"kind": kinds, "parameters": sum(map(_size, compared))} if references else {}
    return {"policy": policy, "reference": reference}


def _notes(module: LightningModule) -> str:
    """Notes on how the policy runs: layers that see no flat rows, balance of experts; mostly none."""
    policy = getattr(module, "policy", None)
    if not isinstance(policy, PackedModel):
        return ""
    notes = []
    if not policy.packed:
        notes.append("padded")
    if policy.mixers.names:
        notes.append(f"{len(policy.mixers.names)} token mixers run sequence by sequence")
    coefficient = module.hparams.get("router_aux_loss_coef", 0.0)
    own = getattr(policy.causal_lm.config.get_text_config(), "router_aux_loss_coef", None)
    if coefficient:
        notes.append(f"experts balanced by router_aux_loss_coef {coefficient:g}")
    elif own:
        notes.append(f"experts not balanced (router_aux_loss_coef is 0; the {own:g} of the model's config is not used)")
    return ", ".join(notes)


def _run(trainer: Trainer, loader: PackedLoader | StreamLoader | None) -> Section:
    steps = run_length(trainer)
    section: Section = {
        "epochs": trainer.max_epochs if (trainer.max_epochs or -1) >= 0 else "unlimited",
        "steps": "unlimited" if math.isinf(steps) else int(steps),
        "accumulate": trainer.accumulate_grad_batches,
        "devices": trainer.world_size,
    }
    if loader:
        batches = trainer.accumulate_grad_batches * loader.sampler.world_size
        section["step_tokens"] = loader.sampler.capacity * loader.sampler.batch_size * batches
    return section


def _memory(trainer: Trainer, module: LightningModule, loader: PackedLoader | StreamLoader | None) -> Section:
    """Bytes on one device at the peak of a step; empty where no estimate can be made."""
    if not isinstance(module, AlignmentModule) or loader is None:
        return {}
    try:
        with isolate_rng():  # the run draws the same numbers with and without a summary
            peak = _peak(trainer, module, loader.sampler.capacity * loader.sampler.batch_size)
    except Exception as error:  # of a model, optimizer or strategy that cannot be estimated, but perhaps trained
        log.info("StartupSummary: no estimate of memory: %s", first_line(error))
        return {}
    if trainer.strategy.root_device.type == "cuda":
        device = int(torch.cuda.get_device_properties(trainer.strategy.root_device).total_memory)
    else:  # processes that share a machine's memory share it evenly
        device = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(1, trainer.num_devices)
    return {**peak.parts, "total": peak.total, "peak_in": peak.moment, "device": device}


def _peak(trainer: Trainer, module: AlignmentModule, tokens: int) -> MemoryEstimate:
    trees = _trees(trainer)
    answers: int | None = None
    if trees:  # answers per prompt, without those of other prompts, which the job adds
        mismatched = trees.mismatched.documents if isinstance(trees, AnswerReport) else 0
        answers = max(1, round((trees.answers - mismatched) / max(trees.prompts, 1)))
    job = job_of(
        module,
        tokens,
        getattr(getattr(trainer, "datamodule", None), "max_length", tokens),
        str(trainer.precision),
        answers,
        accumulate=trainer.accumulate_grad_batches,
        fused=steps_within_backward(trainer.callbacks),  # type: ignore[attr-defined]
        on_gpu=trainer.strategy.root_device.type != "cpu",
    )
    quantized = module.policy_spec.quantization is not None
    own, *_ = placements(trainer.strategy, trainer.world_size, packed=quantized)
    return own.peak(with_recompute_of(trainer.strategy, job))


def few_steps(trainer: Trainer, steps: float) -> str | None:
    """Warning of a run with few optimizer steps, unless the trainer was told to make just so many."""
    asked = trainer.max_steps >= 0 or trainer.limit_train_batches != 1.0
    if steps >= FEW_STEPS or asked:
        return None
    return (
        f"the run makes {steps:.0f} optimizer step{'s' * (steps != 1)}, which is few: raise trainer.max_epochs, or "
        "lower trainer.accumulate_grad_batches, data.batch_size or the length of a row (data.max_length, "
        "data.row_length)"
    )


def _warn(trainer: Trainer, steps: float, memory: Section) -> None:
    """Warn of few steps, and of a device that is too small."""
    if text := few_steps(trainer, steps):
        rank_zero_warn(text)
    if memory and memory["total"] > memory["device"]:
        rank_zero_warn(
            f"StartupSummary: the run needs about {memory['total'] / GIB:.1f} GiB per device, which has "
            f"{memory['device'] / GIB:.1f}: lower data.batch_size (and raise trainer.accumulate_grad_batches), shorten "
            "the rows, set policy.recompute or lora, or shard the model."
        )


def _size(parameter: Tensor) -> int:
    """Elements of the full parameter; FSDP's flat ones keep their number in a private attribute."""
    return int(getattr(parameter, "_unpadded_unsharded_size", parameter.shape).numel())


def _bytes(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
