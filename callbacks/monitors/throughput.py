"""Tokens per second and model FLOPs utilization of a training run."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lion_lightning.data.packing.padded import as_packed
from lion_lightning.distributed.replicas import sum_over_replicas
from lion_lightning.one_lightning import LionCallback
from lion_lightning.planning.flops import TrainingFlops, forward_flops, training_flops
from lion_lightning.types import PackedBatch, keep_answers

DENSE_HALF = {"h200": 989.4e12, "h100 nvl": 835.5e12}
"""Dense FLOP/s in bf16 and fp16, by words of a GPU's name, where Lightning's table lacks them or counts sparsity."""


class TokenThroughput(LionCallback):
    """Logs how fast training goes: over a sliding window of optimizer steps, summed over ranks, at every step.

    - ``perf/tokens_per_second``: tokens that went through the model.
    - ``perf/samples_per_second``: documents, or prompts with all of their answers.
    - ``perf/answers_per_second``: answers, each once, however many pairs it is in; where rows hold answers. The
      mismatched ones of KTO are no answers here, nor are their tokens targets.
    - ``perf/pairs_per_second``: preference pairs, where rows hold some.
    - ``perf/supervised_tokens_per_second``: targets, the tokens that the loss is over.
    - ``perf/packing_efficiency``: tokens over the tokens that the rows could have held.
    - ``perf/mfu``: FLOPs that the model asks for (:class:`~lion_lightning.planning.flops.TrainingFlops`) over those
      that the devices could do. Left out where the module holds no transformers model or the device's peak is unknown.

    What counts as time: each micro-batch with its callbacks, and the wait for its data. Not validation, checkpoints and
    what happens between epochs; a wait that touches one of those is left out, since Lightning does not tell them apart.
    Works with any module whose batches are :class:`~lion_lightning.types.PackedBatch`, or padded ones as transformers
    takes them (``input_ids``, ``attention_mask``, ``labels``), of which padding counts as capacity alone.

    Args:
        window: Optimizer steps to average over.
        peak_flops: FLOP/s of one device in the training dtype. None: for a GPU, what is listed
            (:func:`listed_peak`; give yours to be exact); on a CPU, the rate of a large fp32 matrix product, measured
            once when the fit starts (about a second), so that MFU there is relative to what the machine did then.

    Raises:
        ValueError: If an argument is not positive.
        MisconfigurationException: At the first batch, if it is neither.
    """

    def __init__(self, window: int = 20, peak_flops: float | None = None) -> None:
        if window < 1:
            raise ValueError(f"TokenThroughput.window: {window} must be at least 1 optimizer step.")
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"TokenThroughput.peak_flops: {peak_flops} is not positive; leave it out to look it up.")
        self.peak_flops = peak_flops
        self._window: deque[tuple[Tensor, float]] = deque(maxlen=window)
        self._watch = _Stopwatch()
        self._counts = torch.zeros(7, dtype=torch.float64)
        self._global_step = 0
        self._batch: PackedBatch
        self._flops: TrainingFlops | None = None
        self._forward_flops: TrainingFlops | None = None
        self._peak: float | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._window.clear()
        self._watch = _Stopwatch()
        self._counts.zero_()
        self._global_step = trainer.global_step
        model = next((module for module in pl_module.modules() if isinstance(module, PreTrainedModel)), None)
        if model is None:
            rank_zero_warn("TokenThroughput: the module holds no transformers model, so perf/mfu is not logged.")
            return
        self._flops, self._forward_flops = training_flops(model), forward_flops(model)
        self._peak = self._find_peak(trainer, model)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = as_packed(batch, self)
        self._watch.start()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._counts += torch.tensor(self._numbers(self._batch), dtype=torch.float64)
        if trainer.global_step > self._global_step:
            strategy = trainer.strategy
            summed = sum_over_replicas(self._counts.to(strategy.root_device), strategy)
            # .cpu() waits for the device, so that the step's time is complete.
            self._window.append((summed.cpu(), self._watch.take()))
            self._counts = torch.zeros_like(self._counts)
            self._global_step = trainer.global_step
            pl_module.log_dict(self._rates(), batch_size=1)
        self._watch.lap()

    # Validation, checkpoints and what happens between epochs are left out of the time.

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.drop()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._watch.drop()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.drop()

    def _numbers(self, batch: PackedBatch) -> list[float]:
        """Tokens, targets, samples, answers, pairs, capacity and FLOPs of a micro-batch."""
        trained, apart = _parts(batch)
        flops = self._flops.of(trained) if self._flops else 0.0
        if apart is not None and self._forward_flops:
            flops += self._forward_flops.of(apart)
        counts = (batch.input_ids, trained.targets, batch.sample_indices, trained.answers, batch.pairs)
        return [*(float(len(each)) for each in counts), float(batch.capacity), flops]

    def _rates(self) -> dict[str, float]:
        seconds = sum(time for _, time in self._window)
        summed = sum((totals for totals, _ in self._window), torch.zeros(7))
        tokens, targets, samples, answers, pairs, capacity, flops = summed.tolist()
        rates = {
            "perf/tokens_per_second": tokens / seconds,
            "perf/supervised_tokens_per_second": targets / seconds,
            "perf/samples_per_second": samples / seconds,
            "perf/packing_efficiency": tokens / capacity if capacity else math.nan,
        }
        # The counts are those of all ranks, so that all of them log the same keys.
        if answers:
            rates["perf/answers_per_second"] = answers / seconds
        if pairs:
            rates["perf/pairs_per_second"] = pairs / seconds
        return rates if self._peak is None else {**rates, "perf/mfu": flops / seconds / self._peak}

    def _find_peak(self, trainer: Trainer, model: PreTrainedModel) -> float | None:
        """FLOPs a second of all devices; None, on every rank, where that of any is unknown."""
        device = trainer.strategy.root_device
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        dtype = half.get(str(trainer.precision), model.dtype)
        known = self.peak_flops or (_matmul_rate() if device.type == "cpu" else listed_peak(device, dtype))
        peak = torch.tensor(known or math.nan, dtype=torch.float64, device=device)
        total = float(trainer.strategy.reduce(peak, reduce_op="sum"))
        if math.isnan(total):
            rank_zero_warn(
                "TokenThroughput: the device's peak is not known, so perf/mfu is not logged; set peak_flops."
            )
            return None
        return total


def listed_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense FLOP/s of a device by its vendor: ``DENSE_HALF``, else Lightning's table; None if unknown.

    Some entries of that table are for sparse products, twice what dense ones can reach.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device).lower()
        for words, flops in DENSE_HALF.items():
            if all(word in name for word in words.split()):
                return flops
    return get_available_flops(device, dtype)


class _Stopwatch:
    """Adds up stretches of time; what lies between a lap and a drop does not count."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._seconds = 0.0

    def start(self) -> None:
        """Run, if it does not yet."""
        self._since = time.perf_counter() if self._since is None else self._since

    def lap(self) -> None:
        """Add the time since the last lap, and run on."""
        now = time.perf_counter()
        self._seconds += now - (now if self._since is None else self._since)
        self._since = now

    def drop(self) -> None:
        """Stop, and forget the time since the last lap."""
        self._since = None

    def take(self) -> float:
        """Seconds since the last call, and start again from zero."""
        self.lap()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _parts(batch: PackedBatch) -> tuple[PackedBatch, PackedBatch | None]:
    """The trained part of a batch, and the mismatched answers, whose values are unknown, with their prompts if any."""
    unknown = [] if batch.pairs else [place for place, value in enumerate(batch.values) if math.isnan(value)]
    if not unknown:
        return batch, None
    known = sorted({*range(len(batch.values))} - {*unknown})
    host = batch.on_cpu()
    return keep_answers(host, known), keep_answers(host, unknown)


def _matmul_rate(size: int = 2048, repeats: int = 3) -> float:
    """FLOPs a second of the best of a few square fp32 matrix products on the CPU."""
    matrix = torch.ones(size, size)
    watch = _Stopwatch()
    times = []
    for _ in range(repeats):
        watch.start()
        torch.mm(matrix, matrix)
        times.append(watch.take())
    return 2 * size**3 / min(times)
