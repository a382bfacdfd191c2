"""How much memory of a device a run is going to need, reckoned before its first step."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from copy import copy
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lion_lightning.ops.lean import keeps_less
from lion_lightning.ops.logprobs import LOGITS_KEPT, tile_size

HALF = {"bf16-mixed", "16-mixed", "bf16-true", "16-true", "bf16", "16"}
"""Precisions in which activations have two bytes."""


class MemoryEstimate(NamedTuple):
    """Bytes that one device holds at the end of a forward pass in training.

    Attributes:
        weights: Parameters and buffers of all but the reference.
        copies: Copies of the weights in 16 bits that autocast makes and keeps until the backward pass has ended.
        gradients: One value for each trainable parameter, in its dtype.
        optimizer: State of the optimizers.
        reference: Parameters and buffers of the models that the policy is compared with.
        activations: What the backward pass needs of the forward's results, and one chunk of logits.
    """

    weights: int
    copies: int
    gradients: int
    optimizer: int
    reference: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self)


def estimate_memory(trainer: Trainer, module: LightningModule, tokens: int) -> MemoryEstimate:
    """Reckon what a device will hold. Call it when the optimizers exist, with the model in its place.

    Args:
        trainer: The trainer.
        module: The module in training; a child called ``reference`` or ``start`` counts as reference.
        tokens: Tokens of a micro-batch.
    """
    precision = str(trainer.precision)
    reference = {id(tensor): tensor for part in references(module) for tensor in _tensors(part)}
    own = [tensor for tensor in _tensors(module) if id(tensor) not in reference]
    trainable = [tensor for tensor in own if tensor.requires_grad]
    mixed = precision.endswith("-mixed") and any(tensor.element_size() == 4 for tensor in own)
    return MemoryEstimate(
        weights=local_bytes(own),
        copies=local_bytes(tensor for tensor in own if tensor.dim() > 1) // 2 if mixed else 0,
        gradients=local_bytes(trainable),
        optimizer=sum(optimizer_bytes(optimizer) for optimizer in trainer.optimizers),
        reference=local_bytes(reference.values()),
        activations=activation_bytes(causal_lm(module), tokens, precision),
    )


def references(module: nn.Module) -> list[nn.Module]:
    """What a module compares its policy with: its children ``reference`` and ``start``."""
    return [part for name, part in module.named_children() if name in ("reference", "start")]


def causal_lm(module: nn.Module) -> PreTrainedModel | None:
    """The transformers model of a module's policy, or None if it has none."""
    theirs = {id(model) for part in references(module) for model in part.modules()}
    models = (m for m in module.modules() if isinstance(m, PreTrainedModel) and id(m) not in theirs)
    return next(models, None)


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that this device holds of tensors, which may be sharded."""
    return sum(tensor.numel() * tensor.element_size() for tensor in map(_local, tensors))


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's state after its first step: what there is, or else what a step on a small tensor makes.

    Scalars (the number of steps) are left out. A state that is not proportional to its parameter (Adafactor's rows and
    columns) comes out somewhat too large.

    Args:
        optimizer: The optimizer, stepped or not; it is not changed.
    """
    there = [value for state in optimizer.state.values() for value in _states(state)]
    if there:
        return local_bytes(there)
    return sum(_state_ratio(optimizer, group) * local_bytes(group["params"]) for group in optimizer.param_groups)


def activation_bytes(model: PreTrainedModel | None, tokens: int, precision: str) -> int:
    """Bytes that the backward pass needs of the forward, for a decoder of Llama's layers.

    As transformers write them, a token keeps of each layer: for each of two norms its input and the normalized value
    (in fp32) and the norm's output; queries, keys, values and the attention's output; gate, its activation, the other
    factor and their product. Where layers keep less (:mod:`~lion_lightning.ops.lean`): the norms' inputs, the former
    four of attention, gate and the other factor; under autocast the norms' outputs too, in half precision.
    With gradient checkpointing: the layer's input, and all of one layer. Flash-like attention is assumed, so nothing
    grows with the square of the length; of logits there are one tile, with its gradient, and those that are kept.

    Args:
        model: The model; None gives 0.
        tokens: Tokens of a micro-batch.
        precision: The trainer's.
    """
    if model is None:
        return 0
    config: Any = model.config.get_text_config()
    size = 2 if precision in HALF else 4
    width = config.hidden_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    less = keeps_less(model)
    outputs = 0 if less and not precision.endswith("-mixed") else size
    norms = 2 * width * (4 + (0 if less else 4) + outputs)
    attention = 2 * head * (config.num_attention_heads + keys) * size
    layer = tokens * (norms + attention + (2 if less else 4) * _inner(config) * size)
    checkpointed = tokens * width * size * config.num_hidden_layers + layer
    layers = checkpointed if model.is_gradient_checkpointing else layer * config.num_hidden_layers
    logits = tokens * config.vocab_size
    return int(layers + 4 * (2 * min(tile_size(model.device), logits) + min(LOGITS_KEPT, logits)))


def device_memory(trainer: Trainer) -> int:
    """Bytes of memory that one device has; processes that share a machine's memory share it evenly."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(1, trainer.num_devices)


def _inner(config: Any) -> int:
    """Width of the feed-forward layers that one token goes through."""
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return int(width) * int(getattr(config, "num_experts_per_tok", None) or 1)


def _state_ratio(optimizer: Optimizer, group: dict[str, Any]) -> int:
    """Bytes of state for each byte of a parameter; taken from a step of a copy on a small one."""
    like = group["params"][0]
    small = nn.Parameter(torch.zeros(64, 64, dtype=like.dtype, device=like.device))
    small.grad = torch.zeros_like(small)
    probe = copy(optimizer)
    probe.state = defaultdict(dict)
    probe.param_groups = [{**group, "params": [small]}]
    with torch.random.fork_rng([like.device] if like.is_cuda else []):
        probe.step()
    return round(local_bytes(_states(probe.state[small])) / local_bytes([small]))


def _states(state: dict[str, Any]) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor) and value.dim() > 0]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return local
