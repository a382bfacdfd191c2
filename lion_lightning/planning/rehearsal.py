"""A step of training on tensors without memory: the model's own code says how much it would have held, and when."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import AutoModelForCausalLM

from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.sharding import decoder_layers
from lion_lightning.models.spec import PolicySpec
from lion_lightning.planning.tally import Tally
from lion_lightning.types import PackedBatch, segment_table

log = logging.getLogger(__name__)

Factory = Callable[[Any], Optimizer]
"""From parameter groups to an optimizer."""

MOMENTS = ("forward", "head backward", "first layer backward", "end of backward", "optimizer step")
"""Stretches of a step. What is held at the peak of each grows evenly with the number of layers."""

DEPTHS = (2, 3)
"""Layers of the models that rehearse for a deeper one."""


@dataclass(frozen=True)
class Rehearsal:
    """A micro-batch through forward, backward and optimizer, on fake tensors of the CPU: no memory, hardly any time.

    What is counted is what PyTorch would have allocated beyond weights, gradients of earlier steps and the optimizer's
    state. Models of two and of three layers run, and the rest is a straight line: layers are taken to be alike.

    Attributes:
        spec: The policy.
        lengths: Tokens of each segment of the micro-batch; all of them are targets, but for the first of a document.
        parents: Parent of each segment.
        autocast: Whether products run in bf16 (``bf16-mixed``).
        optimizer: The optimizer.
        foreach: Whether it works on all weights at once, as PyTorch's do by themselves on GPUs.
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
            return self._run(depth)
        low, high = (self._run(layers) for layers in DEPTHS)
        beyond = (depth - DEPTHS[0]) // (DEPTHS[1] - DEPTHS[0])
        return {moment: _line(low[moment], high[moment], beyond) for moment in MOMENTS}

    def _run(self, depth: int) -> dict[str, Counter[str]]:
        try:
            return self._run_as_it_is(depth)
        except Exception as error:  # kernels that know nothing of fake tensors fail in all kinds of ways
            name = self.spec.path or self.spec.load_config().model_type
            log.warning(
                "%s cannot be rehearsed (%s), so its activations are reckoned as a Llama's of the same sizes.",
                name,
                (str(error).strip().splitlines() or [type(error).__name__])[0],
            )
            return replace(self, spec=_like_llama(self.spec))._run_as_it_is(depth)

    def _run_as_it_is(self, depth: int) -> dict[str, Counter[str]]:
        from torch._subclasses.fake_tensor import FakeTensorMode

        model = sketch(replace(self.spec, dtype=self.gathered or self.spec.dtype), depth)
        with FakeTensorMode(allow_non_fake_inputs=True):
            policy = _Unprobed(_materialised(model)).train()
            tally = Tally(policy)
            _mark_moments(policy, tally)
            _settle_gradients(policy, tally, self.stays)
            with tally:
                self._step(policy, tally)
        return tally.peaks

    def _step(self, policy: PolicyModel, tally: Tally) -> None:
        with tally.at("forward"), torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = policy(_batch(self.lengths, self.parents)).values.sum()
        with tally.at("head backward"):
            torch.autograd.backward(loss)
        del loss
        dtype = getattr(torch, self.spec.dtype) if self.gathered else None
        shapes = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        for parameter in shapes:
            parameter.grad = None
        self._update([nn.Parameter(torch.zeros_like(p, dtype=dtype or p.dtype)) for p in shapes], tally)

    def _update(self, trained: list[nn.Parameter], tally: Tally) -> None:
        """Step twice: the first makes the state, the second tells what comes and goes."""
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer = self._stepped(trained)
        states = [value for state in optimizer.state.values() for value in state.values()]
        kept = [value for value in states if isinstance(value, Tensor) and value.dim() > 0]
        before = tally.live.copy()
        with tally.at("optimizer step"):
            optimizer.step()
        passing = Counter(activations=tally.peaks["optimizer step"].total() - before.total())
        tally.peaks["optimizer step"] = passing + Counter(state=_bytes(kept), trained=_bytes(trained))

    def _stepped(self, trained: list[nn.Parameter]) -> Optimizer:
        """The optimizer after a step; AdamW where it is one that cannot do without values."""
        optimizer = _optimizer(self.optimizer, trained, self.foreach)
        try:
            optimizer.step()
        except Exception as error:  # kernels outside of PyTorch fail in all kinds of ways
            log.warning("%s cannot be rehearsed (%s): reckoned as AdamW.", type(optimizer).__name__, error)
            optimizer = _optimizer(AdamW, trained, self.foreach)
            optimizer.step()
        return optimizer


class _Unprobed(PolicyModel):
    """A policy whose numbers nobody can look at."""

    def probe(self) -> None:
        """Nothing."""


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _line(low: Counter[str], high: Counter[str], steps: int) -> Counter[str]:
    return Counter({kind: low[kind] + steps * (high[kind] - low[kind]) for kind in low | high})


def sketch(spec: PolicySpec, depth: int | None = None) -> nn.Module:
    """A policy on the meta device, set up for training, adapters and all: shapes without values.

    Args:
        spec: The policy; of variable-length attention kernels, which the meta device lacks, SDPA takes the place. It
            keeps for the backward pass what they keep: queries, keys, values, outputs, and a number for each query.
        depth: How many of its layers; None for all.
    """
    config: Any = spec.load_config()
    text = config.get_text_config()
    if depth is not None:
        layers, text.num_hidden_layers = text.num_hidden_layers, depth
        for name, value in vars(text).items():
            if isinstance(value, list) and len(value) == layers:  # a kind for each layer
                setattr(text, name, value[:depth])
    attention = "lion" if spec.attention.startswith("lion") else spec.attention
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, attn_implementation=attention, dtype=getattr(torch, spec.dtype))
        return spec.adapted(model, [])


def _materialised(model: nn.Module) -> nn.Module:
    """Tensors of this place instead of the meta device's, ties kept."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.zeros(buffer.shape, dtype=buffer.dtype)
        for name, old in module._parameters.items():
            if old is not None:
                fresh = nn.Parameter(torch.zeros(old.shape, dtype=old.dtype), requires_grad=old.requires_grad)
                module._parameters[name] = made.setdefault(id(old), fresh)
    return model


def _like_llama(spec: PolicySpec) -> PolicySpec:
    config: Any = spec.load_config().get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    sizes = {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "intermediate_size": _inner(config),
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return replace(spec, path=None, config=sizes, attention="lion")


def _inner(config: Any) -> int:
    """Width of the feed-forward layers that one token goes through."""
    experts = getattr(config, "num_experts_per_tok", None)
    width = getattr(config, "moe_intermediate_size", None) if experts else None
    width = width or getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return int(width) * int(experts or 1)


def _batch(lengths: Sequence[int], parents: Sequence[int]) -> PackedBatch:
    """A packed batch of these segments, every token but the first of a document a target."""
    segments, tokens = segment_table(lengths, parents), sum(lengths)
    places = torch.zeros(tokens - sum(parent < 0 for parent in parents), dtype=torch.int64)
    ids = torch.zeros(tokens, dtype=torch.int64)
    return PackedBatch(ids, ids.clone(), segments, places, places.clone(), places.clone())


def _mark_moments(policy: PolicyModel, tally: Tally) -> None:
    """Turn to the next moment when the gradient of the last layer's output is there, and of the one before it."""
    layers = decoder_layers(policy.causal_lm)
    for layer, moment in zip(layers[-2:][::-1], ("first layer backward", "end of backward"), strict=False):
        layer.register_forward_hook(_turning(tally, moment))


def _turning(tally: Tally, moment: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: tally.turn(moment))  # type: ignore[no-untyped-call]

    return hook


def _settle_gradients(policy: PolicyModel, tally: Tally, stays: str) -> None:
    inner = {id(parameter) for layer in decoder_layers(policy.causal_lm) for parameter in layer.parameters()}

    def settle(parameter: Tensor) -> None:
        if stays == "none" or (stays == "root" and id(parameter) in inner):
            parameter.grad = None
        elif parameter.grad is not None:
            tally.move(parameter.grad, "gradients")

    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(settle)  # type: ignore[no-untyped-call]


def _optimizer(make: Factory, trained: Iterable[nn.Parameter], foreach: bool) -> Optimizer:
    optimizer = make([{"params": list(trained)}])
    for group in optimizer.param_groups:
        if foreach and not group.get("fused") and group.get("foreach", False) is None:
            group["foreach"] = True
    return optimizer
