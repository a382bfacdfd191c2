"""Embeddings for new tokens: resize, initialize at the mean, and train only chosen rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import local_index, local_ranges, to_local

log = logging.getLogger(__name__)


def token_embeddings(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights of the input embedding and of the output head; one if they are tied."""
    modules: tuple[Any, ...] = (model.get_input_embeddings(), output_head(model))
    weights: list[nn.Parameter] = [module.weight for module in modules if module is not None]
    return list({id(weight): weight for weight in weights}.values())


def embedding_names(model: PreTrainedModel) -> list[str]:
    """Parameter names of :func:`token_embeddings`."""
    weights = {id(weight) for weight in token_embeddings(model)}
    return [name for name, parameter in model.named_parameters() if id(parameter) in weights]


def output_head(model: PreTrainedModel) -> Any:
    """The module that turns hidden states into logits."""
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


def still_tied(model: PreTrainedModel) -> bool:
    """True if embedding and head are still one weight: peft may train a copy of either."""
    tables: list[Any] = [model.get_input_embeddings(), output_head(model)]
    return not any(hasattr(table, "modules_to_save") for table in tables) or tables[0].weight is tables[1].weight


def keep_untied(model: PreTrainedModel) -> None:
    """Untie embedding and head of a loaded model, with a warning, if its files hold two that differ."""
    text = model.config.get_text_config()
    tied = bool(text.tie_word_embeddings) and bool(model._tied_weights_keys)
    if tied and len(token_embeddings(model)) > 1:
        log.warning(
            "%s: its config.json ties embedding and head, and its files hold two that differ; both are kept and "
            "trained untied.",
            model.config._name_or_path,
        )
        text.tie_word_embeddings = model.config.tie_word_embeddings = False


def train_padding_row(model: PreTrainedModel) -> None:
    """Train the padding token's embedding, in place: packed rows hold no padding, and the token may end turns."""
    embedding: Any = model.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = None


def vocabulary_rows(model: PreTrainedModel) -> int:
    """Rows of the embedding: the vocabulary and the model's padding of it."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


@torch.no_grad()
def add_token_rows(model: PreTrainedModel, vocabulary: int, new_ids: Iterable[int]) -> None:
    """Initialize the rows of new tokens to the mean of the old rows, in the embedding and the head.

    A random row can dominate the softmax from the first step; the mean cannot. Tied weights stay tied.

    Args:
        model: Changed in place.
        vocabulary: Number of tokens of the tokenizer. Matrices grow to it and never shrink: many models pad them.
        new_ids: Tokens that the base model was not trained on.
    """
    rows = vocabulary_rows(model)
    new = new_rows(rows, vocabulary, new_ids)
    if vocabulary > rows:
        with torch.random.fork_rng(devices=[]):  # the random new rows are overwritten
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
    for weight in token_embeddings(model) if new else ():
        set_to_mean(weight, new)


def new_rows(rows: int, vocabulary: int, new_ids: Iterable[int]) -> list[int]:
    """Rows of the embeddings that the base model was not trained on.

    Args:
        rows: Rows of the base model.
        vocabulary: Number of tokens of the tokenizer.
        new_ids: New tokens, which may lie in the base model's padding.
    """
    return sorted({*new_ids, *range(rows, vocabulary)})


@torch.no_grad()
def set_to_mean(weight: Tensor, rows: Sequence[int]) -> Tensor:
    """Set rows of a weight to the mean of its other rows; all ranks call this if it is sharded.

    Args:
        weight: ``(rows, width)``, changed in place.
        rows: Rows to set.

    Returns:
        The mean, ``(width,)``.
    """
    shard, held = to_local(weight), local_ranges(weight)[0]
    known = torch.ones(len(held), dtype=torch.bool, device=shard.device)  # this rank's rows that have a value
    known[[row - held.start for row in rows if row in held]] = False
    total = shard[known].float().sum(0)
    if isinstance(weight, DTensor):
        for number, placement in enumerate(weight.placements):
            if not placement.is_replicate():  # other ranks of this dimension hold other rows
                torch.distributed.all_reduce(total, group=weight.device_mesh.get_group(number))
    mean = (total / (weight.shape[0] - len(rows))).to(weight.dtype)  # the sum is over all ranks' rows, so is the count
    shard[~known] = mean
    return mean


def new_token_ids(spec: TokenizerSpec) -> list[int]:
    """Ids of the special tokens that a spec adds to its tokenizer, which the base model was not trained on."""
    if not spec.special_tokens:
        return []
    # The tokenizer as it is stored, without what the spec adds.
    known = replace(spec, chat_template=None, special_tokens=(), eos_token=None).load().get_vocab()
    vocabulary = spec.load().get_vocab()
    return sorted(vocabulary[token] for token in spec.special_tokens if token not in known)


class TrainableRows:
    """Trains only chosen rows of the token embeddings (the paper's embedding-gradient mask).

    It masks the reduced gradients before the optimizer's step, each rank the rows that it holds. The
    parameters must have no weight decay, which would shrink the other rows: ``AlignmentModule`` sees to that.

    Args:
        model: The model; its embedding and its head, tied or not, are masked alike.
        rows: Rows to train.

    Raises:
        ValueError: No row is given, or one is outside of the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, rows: Iterable[int]) -> None:
        self.model = model
        self.rows = sorted(set(rows))
        vocabulary = vocabulary_rows(model)
        self._mask = torch.zeros(vocabulary, 1)
        if not self.rows or not 0 <= self.rows[0] <= self.rows[-1] < vocabulary:
            named = f"{self.rows[0]} to {self.rows[-1]}" if self.rows else "none"
            raise ValueError(
                f"trainable_rows: rows {named} are not within the {vocabulary} rows of the embedding; "
                "name rows that exist, or give the tokenizer special_tokens for `new` to mean."
            )
        self._mask[self.rows] = 1

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of all other rows."""
        for parameter in token_embeddings(self.model):
            if parameter.grad is not None:
                self._mask = self._mask.to(parameter.device)
                to_local(parameter.grad).mul_(self._mask[local_index(parameter)[0]])
