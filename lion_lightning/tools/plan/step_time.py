"""How long a step takes, from FLOPs and from bytes between devices: arithmetic, not a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lion_lightning.planning.flops import TrainingFlops, forward_flops, training_flops
from lion_lightning.planning.job import Job
from lion_lightning.planning.memory import Placement
from lion_lightning.types import segment_table


@dataclass(frozen=True)
class Machine:
    """What a device can do.

    Attributes:
        tflops: Peak of dense products in the training dtype, in 10^12 FLOPs a second.
        mfu: Share of it that training reaches while it computes.
        bandwidth: GB a second that a device sends to others while all do so.
    """

    tflops: float
    mfu: float
    bandwidth: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step.

    Attributes:
        compute: Of products, recomputed ones and a reference's passes included.
        traffic: Of gathering and reducing.
        tokens: That all devices train on in the step.
    """

    compute: float
    traffic: float
    tokens: int

    @property
    def seconds(self) -> float:
        """The longer of the two, since they run at the same time."""
        return max(self.compute, self.traffic)


def step_time(job: Job, placement: Placement, machine: Machine) -> StepTime:
    """Time of an optimizer step over all devices.

    Args:
        job: What is trained.
        placement: How it is spread.
        machine: What each device can do.
    """
    return StepTime(
        compute=job.accumulate * micro_batch_flops(job) / (machine.tflops * 1e12 * machine.mfu),
        traffic=placement.traffic(job) / (machine.bandwidth * 1e9),
        tokens=job.tokens * job.accumulate * placement.devices,
    )


def micro_batch_flops(job: Job) -> float:
    """FLOPs that a micro-batch takes on a device: the model's, what is computed again, and a reference's.

    Args:
        job: What is trained.
    """
    model: Any = job.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = forward_flops(base)
    again = forward if job.spec.recompute == "full" else forward._replace(per_token=0.0, per_pair={})
    passes = job.reference_passes * _of(forward, job)
    return _of(training_flops(base), job) + _of(again, job) + passes


def _of(flops: TrainingFlops, job: Job) -> float:
    return flops.on(segment_table(job.lengths, job.parents), job.tokens, job.tokens)
