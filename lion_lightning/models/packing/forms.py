"""Ways to give a packed row to a model, from the best to the most general."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lion_lightning.ops.layout import RowLayout


class RowForm(NamedTuple):
    """Inputs for a packed row.

    Attributes:
        dense_mask: A ``(tokens, tokens)`` mask, which the model's own attention code adds to its scores, in place of
            the layout, which :mod:`lion_lightning.ops.attention` reads. Its memory is quadratic in the row's length.
        own_positions: No positions: the model counts them itself, in modules that run sequence by sequence.
    """

    dense_mask: bool = False
    own_positions: bool = False

    def inputs(self, input_ids: Tensor, position_ids: Tensor, layout: RowLayout, dtype: torch.dtype) -> dict[str, Any]:
        """Keywords of the model's forward.

        Args:
            input_ids: ``(tokens,)`` tokens of the row.
            position_ids: ``(tokens,)`` positions in their sequences.
            layout: The row's layout.
            dtype: Dtype of the model.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids[None], "use_cache": False}
        if not self.own_positions:
            inputs["position_ids"] = position_ids[None]
        # transformers passes a 4D mask through untouched, so the model builds none.
        if self.dense_mask:
            inputs["attention_mask"] = additive_mask(layout.visible, dtype)[None, None]
        else:
            inputs["attention_mask"] = input_ids.new_empty(1, 1, 0, 0, dtype=torch.bool)
            inputs["layout"] = layout
        return inputs


FORMS = (RowForm(), RowForm(own_positions=True), RowForm(dense_mask=True), RowForm(dense_mask=True, own_positions=True))
"""In the order in which they are tried."""


def possible_forms(model: PreTrainedModel, row_attention: bool) -> list[RowForm]:
    """The forms that may be exact for a model.

    A short probe does not show everything: attention code of a model's own may keep a window that counts the row's
    tokens instead of a sequence's; or it may compress keys, or select some of very many.

    Args:
        model: A causal LM.
        row_attention: Whether its attention is that of :mod:`lion_lightning.ops.attention`.
    """
    if selects_keys(model):
        return []
    return [form for form in FORMS if (not has_window(model) if form.dense_mask else row_attention)]


def selects_keys(model: PreTrainedModel) -> bool:
    """True if the attention of a model compresses keys, or selects some (DeepSeek V3.2 and V4)."""
    config = model.config.get_text_config().to_dict()
    return any(value and ("compress" in name or name == "index_topk") for name, value in config.items())


def has_window(model: PreTrainedModel) -> bool:
    """True if the config of a model has a sliding window, which a mask in the place of its own would leave out."""
    config = model.config.get_text_config().to_dict()
    return any("window" in name and isinstance(value, int) and value for name, value in config.items())


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask that a model's own attention code adds to its scores.

    Args:
        visible: bool, True where a query may attend to a key.
        dtype: Dtype of the model.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
