"""Dry run of a training step on fake tensors: how much memory the model's own code would hold, and when."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lion_lightning.errors import first_line
from lion_lightning.models.embeddings import vocabulary_rows
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.fsdp import decoder_layers
from lion_lightning.planning.memory_counter import MemoryCounter
from lion_lightning.planning.meta_model import like_llama, materialized, meta_model, packed_layers
from lion_lightning.planning.optimizer_memory import Factory, step_memory
from lion_lightning.types import PackedBatch, segment_table

log = logging.getLogger(__name__)

MOMENTS = ("forward", "head backward", "first layer backward", "end of backward", "optimizer step")
"""Phases of a step. The peak of each grows linearly with the number of layers."""

DEPTHS = (2, 3)
"""Layers of the two models from which a deeper one is extrapolated."""


@dataclass(frozen=True)
class DryRun:
    """A micro-batch through forward, backward and optimizer on fake CPU tensors, which take no memory.

    Counts what PyTorch would allocate beyond weights, gradients of earlier micro-batches and optimizer state. Models of
    two and of three layers run, and deeper ones are extrapolated linearly: layers are assumed to be alike.

    Attributes:
        spec: The policy.
        lengths: Tokens of each segment of the micro-batch; all of them are targets, but for the first of a document.
        parents: Parent of each segment.
        autocast: True if products run in bf16 (``bf16-mixed``).
        optimizer: The optimizer.
        foreach: True if it updates all weights at once, PyTorch's default on GPUs.
        stays: Which new gradients stay: ``all``; ``root`` (those outside of decoder layers), where each layer's is
            reduced at once; ``none``, where all are added to what is there.
        gathered: Dtype in which the model has its weights while it runs, where that is not their own.
    """

    spec: PolicySpec
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    autocast: bool
    optimizer: Factory
    foreach: bool
    stays: str = "all"
    gathered: Any = None

    def held(self) -> dict[str, Counter[str]]:
        """Bytes at the peak of each moment, by kind: copies, gradients, logits, activations.

        Gradients are those of this micro-batch, as far as they stay. Of the optimizer's step, activations are its
        temporaries, ``state`` what it keeps, and ``trained`` the bytes of the weights that it keeps it for.
        """
        depth = int(self.spec.load_config().get_text_config().num_hidden_layers)
        if depth <= DEPTHS[-1]:
            return self._step(depth)
        low, high = (self._step(layers) for layers in DEPTHS)
        beyond = (depth - DEPTHS[0]) // (DEPTHS[1] - DEPTHS[0])
        return {moment: _line(low[moment], high[moment], beyond) for moment in MOMENTS}

    def _step(self, depth: int) -> dict[str, Counter[str]]:
        trained = [parameter for parameter in meta_model(self.spec, depth).parameters() if parameter.requires_grad]
        shapes = [(parameter.shape, parameter.dtype) for parameter in trained]
        return {**self._passes(depth), "optimizer step": step_memory(self.optimizer, shapes, self.foreach)}

    def _passes(self, depth: int) -> dict[str, Counter[str]]:
        try:
            return self._passes_as_they_are(depth)
        except Exception as error:  # kernels that know nothing of fake tensors fail in all kinds of ways
            name = self.spec.path or self.spec.load_config().model_type
            log.warning(
                "%s cannot do a dry run (%s): its activations are estimated as those of a Llama of the same sizes.",
                name,
                first_line(error),
            )
            return replace(self, spec=like_llama(self.spec))._passes_as_they_are(depth)

    def _passes_as_they_are(self, depth: int) -> dict[str, Counter[str]]:
        from torch._subclasses.fake_tensor import FakeTensorMode

        model = meta_model(replace(self.spec, dtype=self.gathered or self.spec.dtype), depth)
        with FakeTensorMode(allow_non_fake_inputs=True):
            self._unpack(materialized(model))
            policy = _Unprobed(model).train()
            counter = MemoryCounter((*policy.parameters(), *policy.buffers()), vocabulary_rows(policy.causal_lm))
            _mark_moments(policy, counter)
            _settle_gradients(policy, counter, self.stays)
            with counter:
                self._run(policy, counter)
        return counter.peaks

    def _run(self, policy: PolicyModel, counter: MemoryCounter) -> None:
        with counter.at("forward"), torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = policy(_batch(self.lengths, self.parents)).values.sum()
        with counter.at("head backward"):
            torch.autograd.backward(loss)

    def _unpack(self, model: nn.Module) -> None:
        """Have weights of four bits in the dtype that they are brought to, of which no product makes a copy."""
        if self.autocast:
            for layer in packed_layers(self.spec, model):
                layer.weight = nn.Parameter(layer.weight.to(torch.bfloat16), requires_grad=False)


class _Unprobed(PolicyModel):
    """A policy of fake tensors, whose logits cannot be checked."""

    @override
    def probe(self) -> None:
        """Skip the check."""


def _line(low: Counter[str], high: Counter[str], steps: int) -> Counter[str]:
    return Counter({kind: low[kind] + steps * (high[kind] - low[kind]) for kind in low | high})


def _batch(lengths: Sequence[int], parents: Sequence[int]) -> PackedBatch:
    """A packed batch of these segments, every token but the first of a document a target."""
    segments, tokens = segment_table(lengths, parents), sum(lengths)
    places = torch.zeros(tokens - sum(parent < 0 for parent in parents), dtype=torch.int64)
    ids = torch.zeros(tokens, dtype=torch.int64)
    return PackedBatch(ids, ids.clone(), segments, places, places.clone(), places.clone())


def _mark_moments(policy: PolicyModel, counter: MemoryCounter) -> None:
    """Start the next phase when the gradient of the last layer's output exists, and of the one before it."""
    layers = decoder_layers(policy.causal_lm)
    for layer, moment in zip(layers[-2:][::-1], ("first layer backward", "end of backward"), strict=False):
        layer.register_forward_hook(_turning(counter, moment))


def _turning(counter: MemoryCounter, moment: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: counter.turn(moment))  # type: ignore[no-untyped-call]

    return hook


def _settle_gradients(policy: PolicyModel, counter: MemoryCounter, stays: str) -> None:
    inner = {id(parameter) for layer in decoder_layers(policy.causal_lm) for parameter in layer.parameters()}

    def settle(parameter: Tensor) -> None:
        if stays == "none" or (stays == "root" and id(parameter) in inner):
            parameter.grad = None
        elif parameter.grad is not None:
            counter.move(parameter.grad, "gradients")

    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(settle)  # type: ignore[no-untyped-call]
