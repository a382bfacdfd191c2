"""Decisions of the routers of a mixture of experts for the tokens of packed rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Routing(NamedTuple):
    """One router's decisions for a row.

    Attributes:
        logits: ``(tokens, experts)`` scores; differentiable.
        chosen: ``(tokens, experts per token)`` numbers of the experts that each token went to.
    """

    logits: Tensor
    chosen: Tensor


class RouterRecorder:
    """Keeps the routings of a model's forward passes under gradient, one per router, until they are taken.

    Args:
        model: A causal LM.

    Raises:
        ValueError: It has no router that transformers knows.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        found = routers_of(model)
        if not found:
            raise ValueError(
                f"model.router_aux_loss_coef: {type(model).__name__} has no router of experts; set it to 0"
            )
        self._open = False
        self._first: Tensor | None = None
        self._tokens = 0
        self._routings: list[Routing] = []
        self._chosen = int(getattr(model.config.get_text_config(), "num_experts_per_tok", 1) or 1)
        for router, index in found:
            router.register_forward_hook(partial(self._keep, index))

    @contextmanager
    def row(self, tokens: int, first: Tensor | None) -> Iterator[None]:
        """Record within. A checkpointed layer's second forward is in the backward pass, outside.

        Args:
            tokens: Length of the row.
            first: Where the row runs padded, each token's first position in the batch; padding is left out.
        """
        self._open, self._tokens, self._first = torch.is_grad_enabled(), tokens, first
        try:
            yield
        finally:
            self._open = False

    def take(self) -> list[Routing]:
        """The routings since the last call."""
        taken, self._routings = self._routings, []
        return taken

    def _keep(self, index: int, router: nn.Module, args: Any, output: Any) -> None:
        if not self._open:
            return
        parts = output if isinstance(output, tuple) else (output,)
        logits = parts[index].flatten(0, -2)
        tables = [part for part in parts if isinstance(part, Tensor) and part.dim() >= 2]
        integers = [part.flatten(0, -2) for part in tables if not part.is_floating_point()]
        chosen = integers[0] if integers else logits.detach().topk(self._chosen, dim=-1).indices
        if self._first is not None:
            logits, chosen = logits[self._first], chosen[self._first]
        if len(logits) != self._tokens:
            raise ValueError(
                f"model.router_aux_loss_coef: a {type(router).__name__} routes {len(logits)} tokens of a row of "
                f"{self._tokens}, so the balance of its experts cannot be told; set it to 0"
            )
        self._routings.append(Routing(logits, chosen))


def routers_of(model: PreTrainedModel) -> list[tuple[nn.Module, int]]:
    """The routers of a model, each with the place of its logits in its output, as transformers records them."""
    found: dict[nn.Module, int] = {}
    for part in model.modules():
        # transformers' own table of what its hooks record (seen in 5.19)
        recorded: Any = getattr(type(part), "_can_record_outputs", None) if isinstance(part, PreTrainedModel) else None
        asked = (recorded or {}).get("router_logits", [])
        for recorder in asked if isinstance(asked, list) else [asked]:
            target: Any = getattr(recorder, "target_class", recorder)
            ending = f".{getattr(recorder, 'layer_name', None) or ''}".rstrip(".")
            for name, module in part.named_modules():
                if isinstance(module, target) and f".{name}".endswith(ending):
                    found.setdefault(module, getattr(recorder, "index", 1))
    return list(found.items())
