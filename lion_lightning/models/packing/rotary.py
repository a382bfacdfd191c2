"""Rotary embeddings whose frequencies follow the length of what they are given (LongRoPE, dynamic NTK).

transformers takes that length from all sequences of a forward together, and dynamic NTK from earlier forwards too: a
long document would change the short ones next to it. Here each sequence has the frequencies that it has alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lion_lightning.ops.layout import RowLayout
from lion_lightning.types import PackedBatch, Segment, segment_table


class LengthRule(NamedTuple):
    """How frequencies follow a length.

    Attributes:
        original: Up to this length they are the model's original ones.
        grows: True if they are others for each greater length (dynamic NTK); else all those share one set.
    """

    original: int
    grows: bool

    def rounded(self, length: int) -> int:
        """A length with the same frequencies."""
        return max(length if self.grows else min(length, self.original + 1), self.original)


class LengthwiseRotary:
    """Gives the rotary embeddings of a model, where they follow lengths, a forward that looks at each sequence.

    Args:
        model: A causal LM.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layout: RowLayout | None = None
        self._packed = False
        self._rules: list[LengthRule] = []
        for module in model.modules():
            types: Any = getattr(module, "rope_type", None)
            kinds = types if isinstance(types, dict) else {None: types}  # by the type of layer, or one for all
            rules = {layer_type: _rule(module, layer_type, kind) for layer_type, kind in kinds.items()}
            found = {layer_type: rule for layer_type, rule in rules.items() if rule is not None}
            if found:
                self._rules += found.values()
                module.forward = partial(self._run, module, module.forward, found)

    @contextmanager
    def on(self, layout: RowLayout, packed: bool) -> Iterator[None]:
        """Say which row the model runs on.

        Args:
            layout: The row's layout.
            packed: Whether it runs as it is, or as a padded batch of its sequences.
        """
        self._layout, self._packed = layout, packed
        try:
            yield
        finally:
            self._layout = None

    def apart(self, batch: PackedBatch) -> PackedBatch:
        """A row with a copy of the prompts for each answer, where answers to one need other frequencies each.

        Args:
            batch: A packed row.

        Returns:
            Tokens, segments and logit positions of such a row, or the batch itself.
        """
        if not self._rules:  # of nearly all models: no layout is made for nothing
            return batch
        layout = RowLayout(batch.segments, batch.input_ids.device)
        lengths = set(layout.tree_lengths)
        differs = False  # whether a tree's sequences have different frequencies
        for rule in self._rules:
            differs |= any(rule.rounded(shortest) != rule.rounded(longest) for shortest, longest in lengths)
        if not differs:
            return batch
        starts = list(accumulate(map(len, layout.sequences), initial=0))
        first: dict[int, int] = {}  # where the first sequence with a segment begins
        for chain, start in zip(layout.leaf_chains, starts, strict=False):
            first = dict.fromkeys(chain, start) | first
        offsets = torch.tensor([first[number] for number in range(len(layout.chains))]).to(layout.device)
        tokens = torch.cat(layout.sequences).to(layout.device)
        return replace(
            batch,
            input_ids=batch.input_ids[tokens],
            position_ids=batch.position_ids[tokens],
            segments=_segments_apart(layout),
            logit_positions=offsets[batch.target_segments] + batch.position_ids[batch.logit_positions],
        )

    def _run(
        self,
        rope: Any,
        forward: Callable[..., Any],
        rules: dict[Any, LengthRule],
        x: Tensor,
        position_ids: Tensor,
        layer_type: Any = None,
    ) -> Any:
        if layer_type is not None:
            forward = partial(forward, layer_type=layer_type)
        if layer_type not in rules:
            return forward(x, position_ids)
        lengths = [] if self._layout is None else self._lengths(self._layout)
        groups: dict[int, list[int]] = {}  # lengths with the same frequencies
        for length in lengths:
            groups.setdefault(rules[layer_type].rounded(length), []).append(length)
        if len(groups) < 2:  # also in generation
            _forget(rope, layer_type)
            return forward(x, position_ids)
        each = torch.tensor(lengths, device=position_ids.device)
        each = each[None, :, None] if self._packed else each[:, None, None]
        outputs: tuple[Tensor, ...] = ()  # cosines and sines
        for group in groups.values():
            _forget(rope, layer_type)
            made = forward(x, position_ids.clamp(max=max(group) - 1))  # the largest position tells the length
            mine = (min(group) <= each) & (each <= max(group))
            outputs = tuple(torch.where(mine, new, old) for new, old in zip(made, outputs or made, strict=True))
        return outputs

    def _lengths(self, layout: RowLayout) -> list[int]:
        """Of each token's sequence where the row is packed, else of each sequence."""
        if not self._packed:
            return [len(sequence) for sequence in layout.sequences]
        lengths: list[int] = []
        for segment, (_, longest) in zip(layout.segments, layout.tree_lengths, strict=True):
            lengths += [longest] * segment.length
        return lengths


def _segments_apart(layout: RowLayout) -> tuple[Segment, ...]:
    """Segments of a row that has each sequence by itself; causal ones that follow each other are one."""
    lengths: list[int] = []
    parents: list[int] = []
    bidirectional: list[bool] = []
    for chain in layout.leaf_chains:
        for depth, segment in enumerate(layout.segments[number] for number in chain):
            if depth and not (segment.bidirectional or bidirectional[-1]):
                lengths[-1] += segment.length
                continue
            parents.append(len(lengths) - 1 if depth else -1)
            lengths.append(segment.length)
            bidirectional.append(segment.bidirectional)
    return segment_table(lengths, parents, bidirectional)


def _rule(rope: Any, layer_type: Any, kind: Any) -> LengthRule | None:
    """How the frequencies of a rotary embedding follow lengths, by the names of transformers; None if they do not."""
    if not hasattr(rope, "original_inv_freq" if layer_type is None else f"{layer_type}_original_inv_freq"):
        return None
    if kind == "longrope":
        parameters = rope.config.rope_parameters if layer_type is None else rope.config.rope_parameters[layer_type]
        return LengthRule(parameters["original_max_position_embeddings"], grows=False)
    if isinstance(kind, str) and "dynamic" in kind:
        return LengthRule(rope.original_max_seq_len, grows=True)
    return None


def _forget(rope: Any, layer_type: Any) -> None:
    """Undo what earlier lengths left behind."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    setattr(rope, f"{prefix}inv_freq", getattr(rope, f"{prefix}original_inv_freq"))
    vars(rope).pop(f"{prefix}long_inv_freq", None)  # transformers 5.19 fails where a type of layer has them already
    if hasattr(rope, f"{prefix}max_seq_len_cached"):
        setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)
