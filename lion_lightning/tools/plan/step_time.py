"""Estimate of the time per step, from FLOPs and from bytes sent between devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lion_lightning.planning.flops import TrainingFlops, forward_flops, training_flops
from lion_lightning.planning.job import Job
from lion_lightning.planning.memory import Placement
from lion_lightning.types import segment_table


@dataclass(frozen=True)
class Machine:
    """Speed of a device.

    Attributes:
        tflops: Peak TFLOP/s of dense matrix products in the training dtype.
        mfu: Share of the peak that training reaches.
        bandwidth: GB/s that a device sends to others while all devices send.
    """

    tflops: float
    mfu: float
    bandwidth: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step.

    Attributes:
        compute: Time of matrix products, with recomputation and reference forwards.
        traffic: Time of all-gathers and reductions.
        tokens: Tokens per step over all devices.
    """

    compute: float
    traffic: float
    tokens: int

    @property
    def seconds(self) -> float:
        """The longer of the two, assuming full overlap."""
        return max(self.compute, self.traffic)


def step_time(job: Job, placement: Placement, machine: Machine) -> StepTime:
    """Estimate the time of an optimizer step.

    Args:
        job: The training job.
        placement: Its sharding over devices.
        machine: Speed of each device.
    """
    return StepTime(
        compute=job.accumulate * micro_batch_flops(job) / (machine.tflops * 1e12 * machine.mfu),
        traffic=placement.traffic(job) / (machine.bandwidth * 1e9),
        tokens=job.tokens * job.accumulate * placement.devices,
    )


def micro_batch_flops(job: Job) -> float:
    """FLOPs of a micro-batch on a device: training, recomputation and reference forwards.

    Args:
        job: The training job.
    """
    model: Any = job.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = forward_flops(base)
    again = forward if job.spec.recompute == "full" else forward._replace(per_token=0.0, per_pair={})
    passes = job.reference_passes * _of(forward, job)
    return _of(training_flops(base), job) + _of(again, job) + passes


def _of(flops: TrainingFlops, job: Job) -> float:
    return flops.on(segment_table(job.lengths, job.parents), job.tokens, job.tokens)
