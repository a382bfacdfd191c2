"""Activation recomputation: what the backward pass computes again instead of keeping it from the forward pass."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

Recompute = Literal["none", "elementwise", "full"]

SAVED_OPS = frozenset(
    {
        # matrix products: most of a layer's FLOPs
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::_grouped_mm",  # experts of a mixture
        # attention kernels, by backend of SDPA
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        # and the variable-length ones of torch and of flash-attn
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_varlen_forward",
    }
)
"""Operations whose outputs ``elementwise`` keeps; by name, since not every machine has all of them."""

LOW_RANK = 8
"""How many times wider than its input an output must be for its product to count as cheap."""


def set_recompute(model: PreTrainedModel, mode: Recompute) -> None:
    """Choose what each decoder layer recomputes in the backward pass. Values and gradients stay the same.

    ``elementwise`` keeps the outputs of matrix products and attention kernels and recomputes norms, activation
    functions, rotary positions, residual sums and casts. ``full`` keeps each layer's input only (gradient
    checkpointing). Both use the checkpointing of transformers and of torch; layers recompute in training mode only.

    Args:
        model: A causal LM, changed in place; with its adapters if it has any, since peft would make the embedding's
            output require a gradient again.
        mode: What to recompute.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "elementwise":
        # transformers adds the biases of experts in place to their products, which then cannot be kept
        biased = any(getattr(module, "has_bias", False) for module in model.modules())
        saved = SAVED_OPS - {"aten::_grouped_mm"} if biased else SAVED_OPS
        policy = partial(_elementwise_policy, saved=saved)
        options["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    # It makes the embedding's output require a gradient, which only reentrant checkpointing needs: under LoRA the first
    # layer would have a backward pass through frozen weights that nobody reads.
    model.disable_input_require_grads()  # type: ignore[no-untyped-call]


def _elementwise_policy(ctx: Any, op: Any, *args: Any, saved: frozenset[str], **kwargs: Any) -> CheckpointPolicy:
    if op.name() not in saved:
        return CheckpointPolicy.PREFER_RECOMPUTE
    if op.name() == "aten::mm":
        rank, out = args[1].shape
        # The second product of a LoRA adapter, (tokens, r) @ (r, out) with r far below out: its output is as large as
        # the base layer's, and costs next to nothing to compute again.
        if out >= LOW_RANK * rank:
            return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE
