"""The vocabulary that every layer speaks: samples as trees of spans, flat batches, log-probs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Segment(NamedTuple):
    """A span of a flat row's tokens and what it may attend to.

    A token sees the tokens before it in its own segment and every token of the segment's ancestors. A document is one
    segment without a parent; a preference pair is three: a prompt, and two answers whose parent is the prompt, so that
    the prompt is computed once for both.

    Attributes:
        start: Index of the first token in the flat row.
        length: Number of tokens, at least 1.
        parent: Index of the parent segment in the same row, always a smaller one; -1 for none.
    """

    start: int
    length: int
    parent: int = -1

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
    """

    input_ids: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.bool_]
    parent: int = -1
    weights: npt.NDArray[np.float32] | None = None
    reasoning: npt.NDArray[np.bool_] | None = None

    def part(self, start: int, stop: int) -> SampleSegment:
        """Tokens ``start`` to ``stop`` alone."""
        return SampleSegment(
            self.input_ids[start:stop],
            self.supervised[start:stop],
            self.parent,
            None if self.weights is None else self.weights[start:stop],
            None if self.reasoning is None else self.reasoning[start:stop],
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One tokenized example: an SFT document (one segment) or a preference pair (three).

    Attributes:
        segments: Its segments, parents before children.
        index: Stable number of the example in its data set, the key of every per-sample cache.
        source: Name of the source that it came from.
    """

    segments: tuple[SampleSegment, ...]
    index: int
    source: str = ""

    @property
    def length(self) -> int:
        """Number of tokens of all segments."""
        return sum(len(piece.input_ids) for piece in self.segments)


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

    def without_targets(self) -> PackedBatch:
        """Copy that supervises nothing: what a rank runs to keep step with the others when it has no rows left."""
        none = self.targets[:0]
        return replace(self, logit_positions=none, targets=none, target_segments=none, target_weights=None)

    def _map(self, function: Any) -> PackedBatch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})


class TokenLogps(NamedTuple):
    """Values of one forward for each target of a batch.

    Attributes:
        values: ``(targets,)`` fp32 log-probability of each target; differentiable.
        top1_correct: ``(targets,)`` bool, whether the target was the most probable token.
        log_collision_prob: ``(targets,)`` fp32 log of the sum of the squared probabilities of the full vocabulary: the
            log-prob that a token drawn there has on average, which WPO compares a target with.
    """

    values: Tensor
    top1_correct: Tensor
    log_collision_prob: Tensor


class AnswerLogps(NamedTuple):
    """Log-probs of one side of each pair: all that any loss reads and any cache stores, so that one serves every loss.

    Attributes:
        sums: ``(pairs,)`` fp32 sum of the log-probs of the answer's targets.
        counts: ``(pairs,)`` fp32 number of its targets.
        shared: ``(pairs,)`` fp32 sum over its first targets only, as many as the shorter answer of the pair has.
        log_collision_prob: ``(pairs,)`` fp32 sum of ``TokenLogps.log_collision_prob``.
    """

    sums: Tensor
    counts: Tensor
    shared: Tensor
    log_collision_prob: Tensor

    @property
    def means(self) -> Tensor:
        """``(pairs,)`` log-prob a token."""
        return self.sums / self.counts.clamp_min(1.0)


class PairLogps(NamedTuple):
    """Log-probs of preference pairs, under a policy or a reference.

    Attributes:
        chosen: Of the preferred answers.
        rejected: Of the others.
    """

    chosen: AnswerLogps
    rejected: AnswerLogps

    def zeros(self) -> PairLogps:
        """The same pairs with every log-prob zero: what a loss without a reference is given for one."""
        return PairLogps(*(AnswerLogps(*map(torch.zeros_like, side))._replace(counts=side.counts) for side in self))


@dataclass(frozen=True)
class LossOutput:
    """Result of ``AlignmentModule.compute_loss`` for a micro-batch.

    Totals, not means: the module divides by the items of the global step (all micro-batches of an accumulation window
    on all ranks), so that a gradient never depends on how the rows were split.

    Attributes:
        total: Scalar sum of the loss over the items; differentiable.
        num_items: Scalar number of items (supervised tokens for SFT, or the sum of their weights; pairs for DPO).
        metrics: Sums over the same items, by log key; each is logged as its mean over the items of the global step.
    """

    total: Tensor
    num_items: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def segment_table(lengths: Sequence[int], parents: Sequence[int]) -> tuple[Segment, ...]:
    """Lay segments end to end.

    Args:
        lengths: Tokens of each segment.
        parents: Index of each segment's parent, -1 for none.
    """
    starts = accumulate(lengths, initial=0)
    return tuple(Segment(start, n, p) for start, n, p in zip(starts, lengths, parents, strict=False))


@dataclass(frozen=True)
class Prompt:
    """A prompt for a policy, with all that a judge may want to know about it.

    Attributes:
        text: What the model is given: turns under the chat template, up to where the answer begins, or plain text.
        input_ids: Tokens of the text.
        messages: The turns, each with ``role`` and ``content``; empty where the prompt is plain text.
        row: The raw row that it was read from: the right answer for a verifier, say.
        original: The row's own answer (of a preference pair the chosen one), if it has one.
        where: Place of the row, ``path:line``; errors name it.
    """

    text: str
    input_ids: tuple[int, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    original: str | None = None
    where: str = ""

    @property
    def question(self) -> str:
        """The last question: the last turn's content, or the plain text."""
        return str(self.messages[-1]["content"]) if self.messages else self.text


class Answer(NamedTuple):
    """One sampled answer.

    Attributes:
        text: What was said, without the token that ends the turn.
        finish_reason: ``stop`` if the model ended it, ``length`` if it was cut off, ``original`` if the row brought it.
        token_ids: The tokens that were sampled, the one that ends the turn included; None where that is not known or
            does not fit the text (a stop string), and the text is tokenized instead.
    """

    text: str
    finish_reason: str = "stop"
    token_ids: tuple[int, ...] | None = None
