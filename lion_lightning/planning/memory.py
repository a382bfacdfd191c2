"""What one device holds at the peak of a training step, from the shape of the model and the way it is spread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from lion_lightning.models.sharding import decoder_layers
from lion_lightning.models.spec import PolicySpec
from lion_lightning.planning.rehearsal import Factory, Rehearsal, sketch

GIB = 2**30


@dataclass(frozen=True)
class Job:
    """What decides the memory and the time of a step.

    Attributes:
        spec: The policy.
        lengths: Tokens of each segment of a micro-batch.
        parents: Parent of each segment.
        precision: The trainer's.
        optimizer: From parameter groups to an optimizer.
        accumulate: Micro-batches of a step, on each device.
        reference: A second model in memory; None for none.
        reference_passes: Forward passes of a reference in each step: 1 for a second model, or adapters switched off.
        sampler_share: Of a device's memory that an engine takes between rounds of sampling.
        on_gpu: Whether devices are GPUs.
        overhead: Bytes that frameworks take for themselves.
    """

    spec: PolicySpec
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    precision: str
    optimizer: Factory
    accumulate: int = 1
    reference: PolicySpec | None = None
    reference_passes: int = 0
    sampler_share: float = 0.0
    on_gpu: bool = True
    overhead: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return sum(self.lengths)

    @property
    def mixed(self) -> bool:
        """Whether products run in bf16 and weights are kept in fp32."""
        return self.precision.endswith("-mixed") and self.spec.dtype == "float32"

    @cached_property
    def model(self) -> nn.Module:
        """The policy on the meta device."""
        return sketch(self.spec)

    def rehearsed(self, stays: str, gathered: str | None = None) -> dict[str, Counter[str]]:
        """What a micro-batch holds beyond weights, state and earlier gradients, by moment and kind.

        Args:
            stays: See :class:`~lion_lightning.planning.rehearsal.Rehearsal`.
            gathered: Likewise.
        """
        mixed = self.precision.endswith("-mixed")
        own = (self.spec, self.lengths, self.parents, mixed, self.optimizer, self.on_gpu)
        return Rehearsal(*own, stays=stays, gathered=gathered).held()


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one device holds at the peak of a step; what is not there at that moment is 0.

    Attributes:
        weights: Parameters and buffers of all but the reference.
        in_flight: 16-bit copies that autocast makes; or of a sharded model, layers that are gathered for the moment,
            their gradients before they are reduced, and the buffers of both.
        gradients: Those that have been added up, with DDP's buckets.
        optimizer: State of the optimizer.
        reference: Weights of the model that the policy is compared with.
        activations: What the backward pass needs of the forward's results, and temporaries.
        logits: Chunks of logits.
        overhead: What frameworks take for themselves.
        moment: When the peak is.
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
        """What is always there, and what is there at a moment besides.

        Args:
            moment: Its name.
            kinds: What a rehearsal held; of its kinds, gradients and copies are left to the caller.
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
    """How a model is spread over devices.

    Attributes:
        devices: How many there are.
    """

    devices: int = 1
    name: ClassVar[str]

    def peak(self, job: Job) -> MemoryEstimate:
        """What a device holds when it holds most.

        Args:
            job: What is trained.
        """
        return max(self.moments(job), key=lambda estimate: estimate.total)

    @abstractmethod
    def moments(self, job: Job) -> list[MemoryEstimate]:
        """What a device holds at the peak of each moment of a step."""

    @abstractmethod
    def traffic(self, job: Job) -> float:
        """Bytes that a device sends for a step."""


@dataclass(frozen=True)
class Whole(Placement):
    """The model whole on every device: one device, or DDP.

    Attributes:
        bucket_views: Whether gradients are views of DDP's buckets (``gradient_as_bucket_view``).
    """

    bucket_views: bool = False
    name: ClassVar[str] = "ddp"

    def moments(self, job: Job) -> list[MemoryEstimate]:
        """See the base class."""
        gradients = size_of(trained(job.model))
        stand = job.accumulate > 1 or (self.devices > 1 and self.bucket_views)
        buckets = gradients if self.devices > 1 and not self.bucket_views else 0
        held = job.rehearsed("none" if stand else "all")
        base = MemoryEstimate(
            weights=size_of(tensors(job.model)),
            optimizer=state_bytes(held, gradients),
            reference=size_of(tensors(sketch(job.reference))) if job.reference else 0,
            overhead=job.overhead,
        )
        # Gradients of the step before live through the forward pass: Lightning drops them between it and the backward.
        old = {moment: gradients if stand or moment in ("forward", "optimizer step") else 0 for moment in held}
        return [
            base.at(moment, kinds, buckets + old[moment] + kinds["gradients"], kinds["copies"])
            for moment, kinds in held.items()
        ]

    def traffic(self, job: Job) -> float:
        """An all-reduce of the gradients, once a step."""
        return 2 * (self.devices - 1) / self.devices * size_of(trained(job.model))


@dataclass(frozen=True)
class Sharded(Placement):
    """FSDP2: weights, gradients and optimizer state in equal pieces, a unit for each decoder layer and one for the rest.

    In flight at a time: the weights of two layers (the one that runs and the one that is gathered, or a layer and the
    buffer it comes in), in the backward pass a layer's gradients and the buffer that they are reduced in, and from the
    forward pass to the end of the backward the unit of embedding and head, of whose gradients the same is true.
    """

    name: ClassVar[str] = "fsdp2"

    def moments(self, job: Job) -> list[MemoryEstimate]:
        """See the base class."""
        gradients, units = size_of(trained(job.model)), Units.of(job)
        held = job.rehearsed("root", gathered="bfloat16" if job.mixed else None)
        base = MemoryEstimate(
            weights=self._piece(size_of(tensors(job.model))),
            gradients=self._piece(gradients),
            optimizer=self._piece(state_bytes(held, gradients)),
            reference=self._piece(size_of(tensors(sketch(job.reference)))) if job.reference else 0,
            overhead=job.overhead,
        )
        forward = units.root + 2 * units.layer + (units.root if job.reference else 0)
        backward = forward + units.layer_gradients + units.layer_buffer
        update = Counter(activations=self._piece(held.pop("optimizer step")["activations"]))
        flying = dict(zip(held, (forward, forward, backward, backward), strict=True))
        last = units.root + units.root_gradients + units.root_buffer
        return [
            *(base.at(m, k, in_flight=flying[m] + k["copies"] + k["gradients"]) for m, k in held.items()),
            base.at("embedding's gradients reduced", Counter(), in_flight=last),
            base.at("optimizer step", update),
        ]

    def traffic(self, job: Job) -> float:
        """For each micro-batch weights gathered twice and gradients reduced in fp32; a reference's gathered once."""
        size = 2 if job.mixed else 4 if job.spec.dtype == "float32" else 2
        own = sum(parameter.numel() for parameter in job.model.parameters())
        theirs = sum(p.numel() for p in sketch(job.reference).parameters()) if job.reference else 0
        reduced = sum(parameter.numel() for parameter in trained(job.model))
        sent = (2 * own + theirs) * size + 4 * reduced
        return job.accumulate * sent * (self.devices - 1) / self.devices

    def _piece(self, size: int) -> int:
        return -(-size // self.devices)


@dataclass(frozen=True)
class Units:
    """Bytes of what is gathered and reduced at once, in the dtypes that it travels in.

    Attributes:
        layer: Weights of the largest decoder layer.
        layer_gradients: Its gradients.
        layer_buffer: The buffer in which they are reduced, fp32.
        root: Weights outside of decoder layers: embedding, head, last norm.
        root_gradients: Their gradients.
        root_buffer: The buffer in which they are reduced.
    """

    layer: int
    layer_gradients: int
    layer_buffer: int
    root: int
    root_gradients: int
    root_buffer: int

    @classmethod
    def of(cls, job: Job) -> Units:
        """Of a job's policy."""
        model: Any = job.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        layers = [list(layer.parameters()) for layer in decoder_layers(base)]
        inner = {id(parameter) for layer in layers for parameter in layer}
        root = [parameter for parameter in model.parameters() if id(parameter) not in inner]
        largest = max(layers, key=_numel)
        size = 2 if job.mixed else largest[0].element_size()
        counts = [(_numel(unit), _numel(p for p in unit if p.requires_grad)) for unit in (largest, root)]
        (layer, layer_trained), (rest, rest_trained) = counts
        return cls(
            *(layer * size, layer_trained * size, layer_trained * 4),
            *(rest * size, rest_trained * size, rest_trained * 4),
        )


def tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def trained(model: nn.Module) -> list[Tensor]:
    """Parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def size_of(parts: Iterable[Tensor]) -> int:
    """Bytes of whole tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in parts)


def state_bytes(held: dict[str, Counter[str]], gradients: int) -> int:
    """Bytes of the optimizer's state, in proportion to the weights that it was seen with.

    Args:
        held: Of a rehearsal.
        gradients: Bytes of the gradients of the whole model.
    """
    last = held["optimizer step"]
    return last["state"] * gradients // max(1, last["trained"])


def pair_row(row: int, longest: int, rows: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and parents of rows of preference pairs whose prompts and answers are equally long.

    Args:
        row: Tokens of a row.
        longest: Most tokens of a prompt and one answer.
        rows: Rows of a micro-batch.
    """
    part = max(1, min(longest // 2, row // 3))
    pairs = max(1, round(row / (3 * part))) * rows
    lengths = [row * rows // (3 * pairs)] * (3 * pairs)
    return tuple(lengths), tuple(parent for pair in range(pairs) for parent in (-1, 3 * pair, 3 * pair))


def _numel(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
