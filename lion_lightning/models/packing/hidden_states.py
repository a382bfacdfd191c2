"""Hidden states that a causal LM gives its output head, without the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lion_lightning.models.embeddings import output_head

HiddenStates = Callable[..., Tensor]
"""From a causal LM and inputs of its forward, by keyword, to ``(rows, tokens, hidden)``."""


def backbone_output(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Last hidden state of the backbone, which is what the head is given in nearly all models.

    Returns:
        ``(rows, tokens, hidden)``.
    """
    hidden: Tensor = model.base_model(**inputs).last_hidden_state
    return hidden


def head_input(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Input of the head, in any model: some have more layers in front of it (BERT's), or scale what goes in.

    All of the model runs, with a head that keeps its input in place of making logits.

    Args:
        model: A causal LM.
        inputs: Of its forward.

    Returns:
        ``(rows, tokens, hidden)``.
    """
    given: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        given.append(hidden)
        return hidden[..., :1]  # in place of logits; nobody reads them

    head = output_head(model)
    own = head.__dict__.get("forward")  # somebody else's replacement
    head.forward = keep
    try:
        model(**inputs)
    finally:
        del head.forward
        if own is not None:
            head.forward = own
    return given[0]
