"""Dry run of a training step on fake tensors: how much memory the model's own code would hold, and when."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lion_lightning.errors import first_line
from lion_lightning.models.embeddings import vocabulary_rows
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.fsdp import decoder_layers
from lion_lightning.planning.memory_counter import MemoryCounter
from lion_lightning.planning.meta_model import like_llama, materialize, meta_model, packed_layers
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
        low, high = self._step(DEPTHS[0]), self._step(DEPTHS[1])
        beyond = (depth - DEPTHS[0]) // (DEPTHS[1] - DEPTHS[0])
        held: dict[str, Counter[str]] = {moment: Counter() for moment in MOMENTS}
        for moment in MOMENTS:
            for kind in low[moment] | high[moment]:
                of_a_layer = high[moment][kind] - low[moment][kind]
                held[moment][kind] = low[moment][kind] + beyond * of_a_layer
        return held

    def _step(self, depth: int) -> dict[str, Counter[str]]:
        try:
            passes = self._passes(depth)
        except Exception as error:  # kernels that know nothing of fake tensors fail in all kinds of ways
            name = self.spec.path or self.spec.load_config().model_type
            log.warning(
                "%s cannot do a dry run (%s): its activations are estimated as those of a Llama of the same sizes.",
                name,
                first_line(error),
            )
            passes = replace(self, spec=like_llama(self.spec))._passes(depth)
        trained = [parameter for parameter in meta_model(self.spec, depth).parameters() if parameter.requires_grad]
        shapes = [(parameter.shape, parameter.dtype) for parameter in trained]
        return {**passes, "optimizer step": step_memory(self.optimizer, shapes, self.foreach)}

    def _passes(self, depth: int) -> dict[str, Counter[str]]:
        from torch._subclasses.fake_tensor import FakeTensorMode

        model = meta_model(replace(self.spec, dtype=self.gathered or self.spec.dtype), depth)
        with FakeTensorMode(allow_non_fake_inputs=True):
            materialize(model)
            # Weights of four bits are unpacked into the dtype of the product, so autocast makes no further copy.
            for layer in packed_layers(self.spec, model) if self.autocast else ():
                layer.weight = nn.Parameter(layer.weight.to(torch.bfloat16), requires_grad=False)
            policy = self.spec.wrap(model, probe=False).train()  # fake tensors have no logits to check
            counter = MemoryCounter((*policy.parameters(), *policy.buffers()), vocabulary_rows(policy.causal_lm))
            # The next phase begins when the gradient of the last layer's output exists, and of the one before it.
            last = decoder_layers(policy.causal_lm)[-2:][::-1]
            for decoder, moment in zip(last, ("first layer backward", "end of backward"), strict=False):
                decoder.register_forward_hook(partial(_turn_at_gradient, counter, moment))
            _settle_gradients(policy, counter, self.stays)
            with counter:
                with counter.at("forward"), torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                    output: Any = policy(packed_batch(self.lengths, self.parents))
                    loss = (output if isinstance(output, Tensor) else output.values).sum()
                with counter.at("head backward"):
                    torch.autograd.backward(loss)
        return counter.peaks


def packed_batch(lengths: Sequence[int], parents: Sequence[int]) -> PackedBatch:
    """A packed batch of these segments, every token but the first of a document a target."""
    segments, tokens = segment_table(lengths, parents), sum(lengths)
    places = torch.zeros(tokens - sum(parent < 0 for parent in parents), dtype=torch.int64)
    ids = torch.zeros(tokens, dtype=torch.int64)
    values = (0.0,) * sum(parent >= 0 for parent in parents)
    return PackedBatch(ids, ids.clone(), segments, places, places.clone(), places.clone(), values=values)


def _turn_at_gradient(counter: MemoryCounter, moment: str, layer: nn.Module, inputs: Any, output: Any) -> None:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: counter.turn(moment))  # type: ignore[no-untyped-call]


def _settle_gradients(policy: PolicyModel, counter: MemoryCounter, stays: str) -> None:
    inner: set[int] = set()
    for layer in decoder_layers(policy.causal_lm):
        inner.update(map(id, layer.parameters()))

    def settle(parameter: Tensor) -> None:
        if stays == "none" or (stays == "root" and id(parameter) in inner):
            parameter.grad = None
        elif parameter.grad is not None:
            counter.move(parameter.grad, "gradients")

    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(settle)  # type: ignore[no-untyped-call]
