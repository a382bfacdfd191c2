"""Estimate of the time per step, from FLOPs and from bytes sent between devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lion_lightning.planning.flops import forward_flops, training_flops
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
    """Estimate the time of an optimizer step of a job, placed on devices of such a speed."""
    return StepTime(
        compute=job.accumulate * micro_batch_flops(job) / (machine.tflops * 1e12 * machine.mfu),
        traffic=placement.traffic(job) / (machine.bandwidth * 1e9),
        tokens=job.tokens * job.accumulate * placement.devices,
    )


def micro_batch_flops(job: Job) -> float:
    """FLOPs of a micro-batch on a device: training, recomputation and reference forwards."""
    model: Any = job.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = forward_flops(base)
    # The head is recomputed in any case.
    again = forward if job.spec.recompute == "full" else forward._replace(per_token=0.0, per_pair={})
    every, trained, untrained = (job.lengths, job.parents), job.trained_rows, job.untrained_rows
    runs = [(training_flops(base), trained), (again, trained), (forward, untrained)]
    total = 0.0
    for flops, (lengths, parents) in [*runs, *[(forward, every)] * job.reference_passes]:
        total += flops.on(segment_table(lengths, parents), sum(lengths), sum(lengths))
    return total
