"""Samples as trees of segments, and flat batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Segment(NamedTuple):
    """A span of a flat row's tokens and what it may attend to.

    A token sees the tokens before it in its own segment and every token of the segment's ancestors. A document is one
    segment without a parent; a prompt with n answers is 1 + n, the answers' parent being the prompt, so that it is
    computed once for all of them.

    Attributes:
        start: Index of the first token in the flat row.
        length: Number of tokens, at least 1.
        parent: Index of the parent segment in the same row, always a smaller one; -1 for none.
        bidirectional: True if its tokens see those behind them in the segment too: the prefix of a prefix language
            model, say.
    """

    start: int
    length: int
    parent: int = -1
    bidirectional: bool = False

    @property
    def stop(self) -> int:
        """Index one past the last token."""
        return self.start + self.length


class SampleSegment(NamedTuple):
    """The tokens of one segment of a sample, before it is placed in a row.

    Attributes:
        input_ids: Token ids, shape ``(tokens,)``.
        supervised: Whether each token is a training target, shape ``(tokens,)``.
        parent: Index of the parent among the sample's segments; -1 for none.
        weights: Weight of each target in the loss, shape ``(tokens,)``, above 0 and read at targets alone; None where
            all count 1.
        reasoning: Whether each token belongs to the reasoning of an answer, shape ``(tokens,)``; None where none does.
            It says what a token is, not whether it is trained.
        bidirectional: True if its tokens see those behind them in the segment too. None but the first may then be a
            target, since the token before it would see it.
    """

    input_ids: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.bool_]
    parent: int = -1
    weights: npt.NDArray[np.float32] | None = None
    reasoning: npt.NDArray[np.bool_] | None = None
    bidirectional: bool = False

    def part(self, start: int, stop: int) -> SampleSegment:
        """Tokens ``start`` to ``stop`` alone."""
        return SampleSegment(
            self.input_ids[start:stop],
            self.supervised[start:stop],
            self.parent,
            None if self.weights is None else self.weights[start:stop],
            None if self.reasoning is None else self.reasoning[start:stop],
            self.bidirectional,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One tokenized example, a tree: a document is one segment, a prompt with n answers is 1 + n, the prompt first.

    Attributes:
        segments: Its segments, parents before children.
        index: Stable number of the example in its data set, the key of every per-sample cache.
        source: Name of the source that it came from.
        values: A number for each answer: its score, label (1 or 0), reward or advantage; NaN where it has none. Empty
            for a document, and for a tree without any.
        pairs: Positions of a preferred and another answer among the answers, a tuple per pair.
    """

    segments: tuple[SampleSegment, ...]
    index: int
    source: str = ""
    values: tuple[float, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def length(self) -> int:
        """Number of tokens of all segments."""
        return sum(len(piece.input_ids) for piece in self.segments)

    @property
    def num_answers(self) -> int:
        """Number of segments that follow a prompt."""
        return sum(piece.parent >= 0 for piece in self.segments)


@dataclass  # not frozen: Lightning's precision plugins (bf16-true, FSDP) make a copy and set its fields
class PackedBatch:
    """Samples laid end to end in one flat row, with no padding.

    Supervision is explicit: target ``i`` is the token ``targets[i]``, predicted from the hidden state at flat position
    ``logit_positions[i]``. So the first token of a document is not a target, and the first token of each answer is
    predicted from the last token of its prompt, without special cases.

    Attributes:
        input_ids: ``(tokens,)`` int64.
        position_ids: ``(tokens,)`` int64; they restart at 0 in each root segment and go on from a parent's end.
        segments: The row's segments, parents before children.
        logit_positions: ``(targets,)`` int64 flat positions whose hidden states predict the targets.
        targets: ``(targets,)`` int64 token ids.
        target_segments: ``(targets,)`` int64 index of the segment that each target belongs to.
        segment_samples: For each segment, the position of its sample in ``sample_indices``.
        sample_indices: Stable index of each sample.
        sources: Source name of each sample.
        capacity: Tokens that the packed rows could have held; ``tokens / capacity`` is the packing efficiency.
        target_weights: ``(targets,)`` fp32, what each target counts in the loss; None where all count 1.
        values: A number for each answer (see :class:`Sample`), in the order of their segments; empty where there are
            no answers, and in a batch that supervises nothing. Plain numbers: ``bf16-true`` rounds all tensors.
        pairs: Positions of a preferred and another answer among the batch's answers, a tuple per pair.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: tuple[Segment, ...]
    logit_positions: Tensor
    targets: Tensor
    target_segments: Tensor
    segment_samples: tuple[int, ...] = ()
    sample_indices: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    capacity: int = 0
    target_weights: Tensor | None = None
    values: tuple[float, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Start without a copy; not a field, since FSDP2 hands all fields to ``replace``, which is to forget it."""
        self._cpu_copy: PackedBatch | None = None

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> PackedBatch:
        """Copy with every tensor on ``device`` (Lightning calls this to move a batch).

        Args:
            device: Where to.
            non_blocking: Whether to go on before the copies are done; None: from the CPU to another device.
        """
        device, from_cpu = torch.device(device), self.input_ids.device.type == "cpu"
        if non_blocking is None:
            non_blocking = from_cpu and device.type != "cpu"
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        moved._cpu_copy = self if from_cpu else None
        return moved

    def on_cpu(self) -> PackedBatch:
        """The same batch on the CPU: the one that this was copied from, so that nothing waits for the device."""
        return self if self.input_ids.device.type == "cpu" else self._cpu_copy or self.to("cpu")

    def pin_memory(self) -> PackedBatch:
        """Copy with every tensor in page-locked memory (``DataLoader(pin_memory=True)`` calls this)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def __iter__(self) -> Iterator[Tensor]:
        """One tensor, as long as there are pairs, else answers, else targets.

        What ``self.log`` of any LightningModule weighs a batch by in the mean of an epoch, where it is given no
        ``batch_size``: Lightning takes the first size that it finds in a batch, and warns of several.
        """
        yield self.targets.new_empty(len(self.pairs) or len(self.values) or len(self.targets))

    @property
    def answers(self) -> list[int]:
        """Segment of each answer; none in a batch that supervises nothing."""
        return [number for number, segment in enumerate(self.segments) if segment.parent >= 0] if self.values else []

    def target_bounds(self) -> npt.NDArray[np.int64]:
        """``(segments + 1,)``: targets are sorted by segment, those of i are ``bounds[i]`` to ``bounds[i + 1]``."""
        return np.searchsorted(self.on_cpu().target_segments.numpy(), np.arange(len(self.segments) + 1))

    def without_targets(self) -> PackedBatch:
        """Copy that supervises nothing: what a rank runs to keep step with the others when it has no rows left."""
        none = self.targets[:0]
        empty: dict[str, Any] = {"logit_positions": none, "targets": none, "target_segments": none}
        return replace(self, **empty, target_weights=None, values=(), pairs=())

    def _map(self, function: Any) -> PackedBatch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})


def segment_table(
    lengths: Sequence[int], parents: Sequence[int], bidirectional: Iterable[bool] = ()
) -> tuple[Segment, ...]:
    """Lay segments end to end.

    Args:
        lengths: Tokens of each segment.
        parents: Index of each segment's parent, -1 for none.
        bidirectional: For each segment, whether its tokens see those behind them; the rest do not.
    """
    rows = zip(accumulate(lengths, initial=0), lengths, parents, chain(bidirectional, repeat(False)), strict=False)
    return tuple(Segment(*row) for row in rows)


def keep_answers(batch: PackedBatch, positions: Iterable[int]) -> PackedBatch:
    """Some of a batch's answers and their prompts, as a smaller batch on the same device.

    Targets are those of the answers alone, in the order of the batch; pairs stay where both answers do. ``capacity``
    is what the smaller batch holds.

    Args:
        batch: Trees.
        positions: Which of the batch's answers, in any order. Without any, the first root is left, without targets: a
            forward of it keeps step with other ranks.
    """
    chosen, numbers = sorted(set(positions)), batch.answers
    answers = [numbers[position] for position in chosen]
    kept: set[int] = set()
    for number in answers or [0]:
        while number >= 0:  # up to the root
            kept.add(number)
            number = batch.segments[number].parent
    smaller = _keep_segments(_keep_targets(batch.on_cpu(), answers), sorted(kept))
    place = {position: new for new, position in enumerate(chosen)}
    pairs = tuple((place[one], place[other]) for one, other in batch.pairs if one in place and other in place)
    values = tuple(batch.values[position] for position in chosen)
    return replace(smaller, values=values, pairs=pairs).to(batch.input_ids.device)


def _keep_targets(batch: PackedBatch, segments: Sequence[int]) -> PackedBatch:
    """Copy whose targets are those of some segments."""
    index = torch.isin(batch.target_segments, torch.tensor(segments, dtype=torch.int64)).nonzero().flatten()
    return replace(
        batch,
        logit_positions=batch.logit_positions[index],
        targets=batch.targets[index],
        target_segments=batch.target_segments[index],
        target_weights=None if batch.target_weights is None else batch.target_weights[index],
    )


def _keep_segments(batch: PackedBatch, kept: Sequence[int]) -> PackedBatch:
    """Copy with some segments, which own all of its targets and have their ancestors among them."""
    spans = [batch.segments[number] for number in kept]
    tokens = torch.cat([torch.arange(span.start, span.stop) for span in spans])
    moved = torch.zeros_like(batch.input_ids)  # new place of each token
    moved[tokens] = torch.arange(len(tokens))
    renumbered = torch.full((len(batch.segments) + 1,), -1)  # new number of each segment; the last is of no parent
    renumbered[list(kept)] = torch.arange(len(kept))
    parents = renumbered[[span.parent for span in spans]].tolist()
    owners = [batch.segment_samples[number] for number in kept] if batch.segment_samples else []
    samples = {number: new for new, number in enumerate(sorted(set(owners)))}
    return replace(
        batch,
        input_ids=batch.input_ids[tokens],
        position_ids=batch.position_ids[tokens],
        segments=segment_table([span.length for span in spans], parents, [span.bidirectional for span in spans]),
        logit_positions=moved[batch.logit_positions],
        target_segments=renumbered[batch.target_segments],
        segment_samples=tuple(samples[owner] for owner in owners),
        sample_indices=tuple(batch.sample_indices[number] for number in samples),
        sources=tuple(batch.sources[number] for number in samples),
        capacity=len(tokens),
    )
