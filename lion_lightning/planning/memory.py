"""Peak memory of one device in a training step, from the model's shapes and the sharding layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, fields, replace

from typing_extensions import override

from lion_lightning.planning.job import Job
from lion_lightning.planning.memory_counter import size_of
from lion_lightning.planning.meta_model import meta_model, packed_layers
from lion_lightning.planning.sizes import Units, state_bytes, weight_bytes

GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device at the peak of a step; parts that do not exist at that moment are 0.

    Attributes:
        weights: Parameters and buffers of all but the reference.
        in_flight: 16-bit copies that autocast makes, a weight of four bits that is unpacked for its product; or of a
            sharded model, layers gathered for the moment, their gradients before they are reduced, and buffers of both.
        gradients: Those that have been added up, with DDP's buckets.
        optimizer: State of the optimizer.
        reference: Weights of the models that do not learn.
        activations: What the backward pass needs of the forward's results, and temporaries.
        logits: Chunks of logits.
        overhead: Memory of frameworks (CUDA context, libraries).
        moment: Phase of the step that has the peak.
    """

    weights: int = 0
    in_flight: int = 0
    gradients: int = 0
    optimizer: int = 0
    reference: int = 0
    activations: int = 0
    logits: int = 0
    overhead: int = 0
    moment: str = ""

    @property
    def parts(self) -> dict[str, int]:
        """The bytes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())

    def at(self, moment: str, kinds: Counter[str], gradients: int = 0, in_flight: int = 0) -> MemoryEstimate:
        """This estimate plus the memory of one phase of the step.

        Args:
            moment: Name of the phase.
            kinds: Memory of the dry run by kind; gradients and copies are left to the caller.
            gradients: To add.
            in_flight: To add.
        """
        return replace(
            self,
            moment=moment,
            gradients=self.gradients + gradients,
            in_flight=self.in_flight + in_flight,
            activations=self.activations + kinds["activations"],
            logits=self.logits + kinds["logits"],
        )


@dataclass(frozen=True)
class Placement(ABC):
    """Placement of a model on devices.

    Attributes:
        devices: How many there are.
    """

    devices: int = 1

    @property
    @abstractmethod
    def name(self) -> str:
        """For a person."""

    def peak(self, job: Job) -> MemoryEstimate:
        """Memory of a device at the peak of a step."""
        return max(self.moments(job), key=lambda estimate: estimate.total)

    @abstractmethod
    def moments(self, job: Job) -> list[MemoryEstimate]:
        """Memory of a device at the peak of each phase of a step."""

    @abstractmethod
    def traffic(self, job: Job) -> float:
        """Bytes that a device sends per step."""


@dataclass(frozen=True)
class Replicated(Placement):
    """The full model on each device: one device, or DDP.

    Attributes:
        bucket_views: True if gradients are views of DDP's buckets (``gradient_as_bucket_view``).
    """

    bucket_views: bool = False

    @property
    @override
    def name(self) -> str:
        return "ddp" if self.devices > 1 else "one GPU"

    @override
    def moments(self, job: Job) -> list[MemoryEstimate]:
        gradients = size_of(job.trained)
        fused = job.fused and self.devices == 1  # which DDP does not allow
        stand = job.accumulate > 1 or (self.devices > 1 and self.bucket_views)
        buckets = gradients if self.devices > 1 and not self.bucket_views else 0
        held = job.held("none" if stand or fused else "all")
        stepped = max(size_of([weight]) for weight in job.trained) if fused else gradients  # at once
        # A weight of four bits is unpacked into the dtype of its product, one at a time.
        element = 2 if job.mixed or job.spec.dtype != "float32" else 4
        largest = max((layer.weight.numel() for layer in packed_layers(job.spec, job.model)), default=0)
        base = MemoryEstimate(
            weights=weight_bytes(job.spec, job.model),
            in_flight=element * largest,
            optimizer=state_bytes(held, gradients),
            reference=_reference_bytes(job),
            overhead=job.overhead,
        )
        estimates = []
        for moment, kinds in held.items():
            # Gradients of this micro-batch are among what is held; those of earlier ones stand, all do in the step.
            old = stepped if stand or moment == "optimizer step" else 0
            estimates.append(base.at(moment, kinds, buckets + old + kinds["gradients"], kinds["copies"]))
        return estimates

    @override
    def traffic(self, job: Job) -> float:
        """An all-reduce of the gradients, once per step."""
        return 2 * (self.devices - 1) / self.devices * size_of(job.trained)


@dataclass(frozen=True)
class Sharded(Placement):
    """FSDP: weights, gradients and optimizer state sharded, with a unit per decoder layer and one for the rest.

    In flight at a time: the weights of two layers (the one that runs and the one that is gathered, or a layer and the
    buffer it comes in), in the backward pass a layer's gradients and the buffer that they are reduced in, and from the
    forward pass to the end of the backward the unit of embedding and head, of whose gradients the same is true.
    """

    @property
    @override
    def name(self) -> str:
        return "fsdp"

    @override
    def moments(self, job: Job) -> list[MemoryEstimate]:
        gradients, units = size_of(job.trained), Units.of(job)
        held = job.held("root", gathered="bfloat16" if job.mixed else None)
        base = MemoryEstimate(
            weights=self._shard(weight_bytes(job.spec, job.model)),
            gradients=0 if job.fused else self._shard(gradients),
            optimizer=self._shard(state_bytes(held, gradients)),
            reference=self._shard(_reference_bytes(job)),
            overhead=job.overhead,
        )
        forward = units.root + 2 * units.layer + units.root * len(job.references)
        backward = forward + units.layer_gradients + units.layer_buffer
        update = Counter(activations=self._shard(held["optimizer step"]["activations"]))
        last = units.root + units.root_gradients + units.root_buffer
        estimates = []
        for (moment, kinds), gathered in zip(held.items(), (forward, forward, backward, backward), strict=False):
            flying = gathered + kinds["copies"] + kinds["gradients"]
            estimates.append(base.at(moment, kinds, in_flight=flying))
        estimates.append(base.at("embedding's gradients reduced", Counter(), in_flight=last))
        estimates.append(base.at("optimizer step", update))
        return estimates

    @override
    def traffic(self, job: Job) -> float:
        """For each micro-batch weights gathered twice and gradients reduced in fp32; those of references once."""
        size = 2 if job.mixed else 4 if job.spec.dtype == "float32" else 2
        own = sum(parameter.numel() for parameter in job.model.parameters())
        theirs = 0
        for spec in job.references:
            theirs += sum(parameter.numel() for parameter in meta_model(spec).parameters())
        reduced = sum(parameter.numel() for parameter in job.trained)
        sent = (2 * own + theirs) * size + 4 * reduced
        return job.accumulate * sent * (self.devices - 1) / self.devices

    def _shard(self, size: int) -> int:
        return -(-size // self.devices)


@dataclass(frozen=True)
class Offloaded(Sharded):
    """FSDP2 with ``cpu_offload``: shards stay in the host's memory, where the optimizer works too."""

    @property
    @override
    def name(self) -> str:
        return "fsdp, offloaded"

    @override
    def moments(self, job: Job) -> list[MemoryEstimate]:
        *working, _ = super().moments(job)
        return [replace(estimate, weights=0, gradients=0, optimizer=0, reference=0) for estimate in working]


def _reference_bytes(job: Job) -> int:
    return sum(weight_bytes(spec, meta_model(spec)) for spec in job.references)
