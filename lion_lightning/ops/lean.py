"""Layers that keep less for the backward pass: what is cheap to compute again is not kept.

Of a Llama layer's activations, its norms keep a normalized copy of what the residual stream has anyway, the linear
layers behind them the norms' outputs, and its feed-forward layer the activation function's output and the product with
the other branch. Here all of these are computed again in the backward pass, elementwise work only, so that a layer of
Llama's shape keeps half as much.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from typing_extensions import override

from lion_lightning.ops.remade import linear_forward, with_recipe


def keep_less(model: PreTrainedModel) -> None:
    """Change, in place, the forwards of linear layers, and of what has the code of Llama's norm or feed-forward layer.

    Most models of transformers have a verbatim copy of one or both. What has been changed already (by Liger, say) is
    left alone, and so are the linear and feed-forward layers of a model that checkpoints whole layers.

    Args:
        model: A causal LM, without adapters or inside of them.
    """
    forwards: dict[Any, Callable[..., Tensor]] = {_code(LlamaRMSNorm): _norm}
    if not model.is_gradient_checkpointing:
        forwards |= {_code(LlamaMLP): _feed_forward, _code(nn.Linear): linear_forward}
    for module in model.modules():
        forward = forwards.get(_code(type(module)))
        if forward is not None and "forward" not in vars(module):
            module.forward = MethodType(forward, module)


def keeps_less(model: PreTrainedModel) -> bool:
    """Whether a model's feed-forward layers, and so its norms and linear layers, have been changed.

    Args:
        model: A causal LM.
    """
    forwards = (vars(module).get("forward") for module in model.modules())
    return any(getattr(forward, "__func__", None) is _feed_forward for forward in forwards)


class RMSNorm(torch.autograd.Function):
    """``weight * hidden / rms(hidden)``, which keeps its input and a number for each token.

    Its values are Llama's to the bit: in fp32, rounded to the input's dtype before the weight is multiplied in.
    """

    @staticmethod
    @override
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Normalized states, like ``hidden``, ``(..., size)``, and ``1 / rms(hidden)``, which has no gradient."""
        inverse = hidden.float().square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, inverse)
        ctx.mark_non_differentiable(inverse)
        return _scaled(hidden, weight, inverse), inverse

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Gradients of hidden states and weight."""
        hidden, weight, inverse = ctx.saved_tensors
        gradient, states, scale = gradient.float(), hidden.float(), weight.float()
        product = gradient * states
        grad_weight = (product * inverse).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = product.mul_(scale).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(hidden.shape[-1])
        grad_hidden = (gradient * scale).mul_(inverse).addcmul_(states, along, value=-1)
        return grad_hidden.to(hidden.dtype), grad_weight, None


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    apply: Any = RMSNorm.apply
    result, inverse = apply(hidden_states, module.weight, module.variance_epsilon)
    return with_recipe(result, _scaled, hidden_states, module.weight, inverse)


def _scaled(hidden: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    normalized = (hidden.float() * inverse).to(hidden.dtype)
    return normalized.mul_(weight) if weight.dtype == hidden.dtype else weight * normalized


def _feed_forward(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    # The backward pass runs _down again as far as it takes to have what was not kept: so not the matrix product of a
    # plain layer, but that of an adapter's.
    if not torch.is_grad_enabled() or type(module.down_proj) is not nn.Linear:
        return _down(module, gate, up)
    result: Tensor = checkpoint(_down, module, gate, up, use_reentrant=False, preserve_rng_state=False)
    return result


def _down(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    result: Tensor = module.down_proj(module.act_fn(gate) * up)
    return result


def _code(kind: type[nn.Module]) -> tuple[Any, ...] | None:
    """What a class's forward does, whatever the class is called."""
    code = getattr(kind.forward, "__code__", None)
    return None if code is None else (code.co_code, code.co_consts, code.co_names, code.co_varnames)
