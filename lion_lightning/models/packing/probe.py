"""Probes of a model: packed rows against each sequence in a padded batch, and logits against the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lion_lightning.models.embeddings import vocabulary_rows
from lion_lightning.models.packing.mixers import named_decoder_layers
from lion_lightning.models.quantization import product_dtype
from lion_lightning.ops.layout import RowLayout
from lion_lightning.types import segment_table

LENGTHS, PARENTS = (5, 6, 4, 7, 3), (-1, -1, 1, 1, -1)
"""The probe's row: a document, a prompt with two answers of unequal lengths, and another document."""

PROMPT = 1
"""Segment of the prompt."""


def probe_row(model: PreTrainedModel, bidirectional: bool = False) -> tuple[Tensor, RowLayout]:
    """Tokens and layout of the row that a model is probed with.

    Args:
        model: A causal LM.
        bidirectional: Whether its prompt is.
    """
    device = next(model.parameters()).device
    vocabulary = vocabulary_rows(model)
    # From the middle of the vocabulary: pad and other special ids, which models may treat apart, stand at its ends.
    ids = (torch.arange(sum(LENGTHS), device=device) * 7 + vocabulary // 2) % vocabulary
    prompt = [bidirectional and number == PROMPT for number in range(len(LENGTHS))]
    return ids, RowLayout(segment_table(LENGTHS, PARENTS, prompt), device)


def close(actual: Tensor, expected: Tensor, config: Any) -> bool:
    """True if two ways to compute the same differ by no more than rounding.

    Args:
        actual: Computed one way.
        expected: Computed the other way, same shape.
        config: The model's config, for the dtype of its products.
    """
    exact = {expected.dtype, product_dtype(config) or expected.dtype} == {torch.float32}
    tolerance = 1e-4 if exact else 3e-2
    difference = (actual.float() - expected.float()).abs().max()
    return bool(difference <= tolerance * expected.float().abs().max())


@contextmanager
def layer_outputs(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Collect the hidden states that each decoder layer gives, by its name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output

    hooks = [layer.register_forward_hook(partial(keep, name)) for name, layer in named_decoder_layers(model).items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def differing_layer(
    model: PreTrainedModel, packed: Callable[[], Tensor], padded: Callable[[], Tensor], layout: RowLayout
) -> str | None:
    """The first decoder layer whose output for a packed row is not that of each sequence alone.

    Args:
        model: A causal LM.
        packed: Runs the packed row.
        padded: Runs its sequences in a padded batch.
        layout: The row's.

    Returns:
        Its name and class; "the model" where no layer can be told; None if the last hidden states agree.
    """
    if close(packed(), padded(), model.config):  # without all layers' outputs in memory
        return None
    with layer_outputs(model) as alone:
        padded()
    with layer_outputs(model) as flat:
        packed()
    for name, output in alone.items():
        restored = layout.padded.restore([output])
        if name in flat and not close(flat[name][0], restored, model.config):
            return f"{name} ({type(model.get_submodule(name)).__name__})"
    return "the model"


def causal_module(model: PreTrainedModel, run: Callable[[], Tensor], before: int, after: int) -> str | None:
    """The first child of a decoder layer in which a token sees the one before it, and is not seen by that one.

    Each child runs again with one of the two changed.

    Args:
        model: A causal LM, in evaluation mode.
        run: Runs a row, or a batch of sequences, in which both are to see each other.
        before: Flat position of a token.
        after: Flat position of the next.

    Returns:
        Its name and class; "the model" if no child lets any token see another; None if all is as it should be.
    """
    sees_later: dict[str, bool] = {}  # by the name of each child in which tokens see others

    def compare(name: str, child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        states = _states(output)
        inputs = [
            key for key, value in given.items() if isinstance(value, Tensor) and value.shape[:2] == states.shape[:2]
        ]

        def reaches(source: int, target: int) -> bool:
            changed = given | {inputs[0]: _changed(given[inputs[0]], source)}
            positional = [changed[place] for place in range(len(args))]
            again = _states(child.forward(*positional, **{key: changed[key] for key in kwargs}))
            return not torch.equal(again.flatten(0, 1)[target], states.flatten(0, 1)[target])

        if inputs and reaches(before, after):
            sees_later[f"{name} ({type(child).__name__})"] = reaches(after, before)

    hooks = []
    for place, layer in named_decoder_layers(model).items():
        for name, child in layer.named_children():
            hooks.append(child.register_forward_hook(partial(compare, f"{place}.{name}"), with_kwargs=True))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    blind = [name for name, sees in sees_later.items() if not sees]
    return next(iter(blind), None if sees_later else "the model")


def _states(output: Any) -> Tensor:
    """Hidden states ``(rows, tokens, ...)`` in a module's output."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _changed(states: Tensor, position: int) -> Tensor:
    """Hidden states that are others at a flat position."""
    states = states.clone()
    row = states.flatten(0, 1)[position]
    row.copy_(row.roll(1))
    return states
