"""Bytes of weights, gradients and buffers, from shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.fsdp import decoder_layers
from lion_lightning.planning.job import Job
from lion_lightning.planning.memory_counter import size_of
from lion_lightning.planning.meta_model import packed_layers


@dataclass(frozen=True)
class Units:
    """Bytes of one FSDP unit when gathered and reduced, in the dtypes of communication.

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
        """Units of a job's policy."""
        model: Any = job.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        layers = [list(layer.parameters()) for layer in decoder_layers(base)]
        inner: set[int] = set()
        for layer in layers:
            inner.update(map(id, layer))
        root = [parameter for parameter in model.parameters() if id(parameter) not in inner]
        largest = max(layers, key=_numel)
        size = 2 if job.mixed else largest[0].element_size()
        sizes = []
        for unit in (largest, root):
            trained = _numel(parameter for parameter in unit if parameter.requires_grad)
            sizes += [_numel(unit) * size, trained * size, trained * 4]  # gradients are reduced in fp32
        return cls(*sizes)


def weight_bytes(spec: PolicySpec, model: nn.Module) -> int:
    """Bytes of parameters and buffers of a spec's model, in four bits where they are quantized."""
    size = size_of([*model.parameters(), *model.buffers()])
    packed = [layer.weight for layer in packed_layers(spec, model)]
    bits = spec.quantization.bits if spec.quantization else 0.0
    return size - size_of(packed) + round(_numel(packed) * bits / 8)


def state_bytes(held: dict[str, Counter[str]], gradients: int) -> int:
    """Bytes of the optimizer's state for so many bytes of gradients, in proportion to what a dry run has ``held``."""
    last = held["optimizer step"]
    return last["state"] * gradients // max(1, last["trained"])


def _numel(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
