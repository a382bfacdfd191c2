"""A model's shapes without its values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lion_lightning.models.spec import PolicySpec


def meta_model(spec: PolicySpec, depth: int | None = None) -> nn.Module:
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
    with torch.device("meta"):
        model = spec.auto_class.from_config(config, attn_implementation=attention, dtype=getattr(torch, spec.dtype))
        return spec.adapted(model, [])


def materialize(model: nn.Module) -> None:
    """Put tensors of this device where the meta device's are, in place, ties kept."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.zeros(buffer.shape, dtype=buffer.dtype)
        for name, old in module._parameters.items():
            if old is not None:
                fresh = nn.Parameter(torch.zeros(old.shape, dtype=old.dtype), requires_grad=old.requires_grad)
                module._parameters[name] = made.setdefault(id(old), fresh)


def packed_layers(spec: PolicySpec, model: nn.Module) -> list[nn.Linear]:
    """Layers of a spec's model whose weights are held in four bits: all frozen linear ones but the head."""
    packed: list[nn.Linear] = []
    for name, layer in model.named_modules() if spec.quantization else ():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad and not name.endswith("lm_head"):
            packed.append(layer)
    return packed


def like_llama(spec: PolicySpec) -> PolicySpec:
    """A Llama of a policy's sizes."""
    config: Any = spec.load_config().get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    # Feed-forward layers are as wide as those that one token goes through.
    experts = getattr(config, "num_experts_per_tok", None)
    width = getattr(config, "moe_intermediate_size", None) if experts else None
    width = width or getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    sizes = {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "intermediate_size": int(width) * int(experts or 1),
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return replace(spec, path=None, config=sizes, attention="lion")
