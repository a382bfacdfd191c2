"""FLOPs that training on a packed batch needs, counted from the model's shape and the batch's segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from lion_lightning.models.embeddings import output_head, vocabulary_rows
from lion_lightning.types import PackedBatch, Segment


class TrainingFlops(NamedTuple):
    """FLOPs of a forward and its backward, by what they grow with.

    These are the FLOPs that the model asks for, as in the model FLOPs utilization of PaLM (arXiv 2204.02311, appendix
    B); those that a run adds to save memory (gradient checkpointing, the head's recomputation) do not count. Attention
    is counted exactly: a token's scores with the tokens that it sees, and no others.

    Attributes:
        per_token: Of all matrices but the head. The embedding is a look-up and costs nothing.
        per_target: Of the output head, which runs for supervised tokens only.
        per_pair: Of attention, for each pair of a token and one that it sees, by the window of the layers (None: no
            window).
    """

    per_token: float
    per_target: float
    per_pair: dict[int | None, float]

    def of(self, batch: PackedBatch) -> float:
        """FLOPs of a batch."""
        return self.on(batch.segments, len(batch.input_ids), len(batch.targets))

    def on(self, segments: Sequence[Segment], tokens: int, targets: int) -> float:
        """FLOPs of a batch with these segments, and so many tokens and targets."""
        attention = sum(cost * visible_pairs(segments, window) for window, cost in self.per_pair.items())
        return tokens * self.per_token + targets * self.per_target + attention


def training_flops(model: PreTrainedModel) -> TrainingFlops:
    """FLOPs of training a causal LM, adapters included.

    A weight costs 2 FLOPs a token forward, 2 for the gradient of its input, and 2 for its own gradient unless it is
    frozen. (A frozen first layer needs no gradient of its input either; that small saving is not counted.) State-space
    layers and convolutions count with their matrices only; of experts, those that a token visits count.

    Args:
        model: The model; with FSDP1, before or after its weights are flattened.
    """
    return _flops(model, trained=6.0, frozen=4.0, attention=12.0)


def forward_flops(model: PreTrainedModel) -> TrainingFlops:
    """FLOPs of a forward pass alone: 2 for each weight and token."""
    return _flops(model, trained=2.0, frozen=2.0, attention=4.0)


def visible_pairs(segments: Sequence[Segment], window: int | None = None) -> int:
    """Pairs of a token and one that it sees (itself included), over all segments.

    Args:
        segments: Segments of a row, parents before children.
        window: How many tokens a token sees at most; None for no limit.
    """
    ends: list[int] = []
    pairs = 0
    for segment in segments:
        context = ends[segment.parent] if segment.parent >= 0 else 0
        ends.append(context + segment.length)
        pairs += _causal_pairs(ends[-1], window) - _causal_pairs(context, window)
        if segment.bidirectional:  # tokens behind, as many as before them in the segment
            pairs += _causal_pairs(segment.length, window) - segment.length
    return pairs


def _causal_pairs(tokens: int, window: int | None) -> int:
    """Sum of ``min(position, window)`` over positions 1 to ``tokens``."""
    narrow = tokens if window is None else min(tokens, window)
    return narrow * (narrow + 1) // 2 + (tokens - narrow) * narrow


def _flops(model: PreTrainedModel, trained: float, frozen: float, attention: float) -> TrainingFlops:
    """FLOPs at so many for each weight that is trained or not, and for each pair and dimension of a head."""
    config = model.config.get_text_config()
    head = output_head(model)  # none in a reward model, whose own is one row for each answer
    head_trains = head is not None and any(parameter.requires_grad for parameter in head.parameters())
    rows = 0 if head is None else vocabulary_rows(model)
    # Attention is two products forward, 4 FLOPs for each dimension of each head, and backward twice that.
    heads = getattr(config, "num_attention_heads", None) or 0
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    layers = Counter(windows[kind] for kind in kinds if kind in windows)  # others (linear, state-space) have no pairs
    return TrainingFlops(
        per_token=sum(size * (trained if trains else frozen) for size, trains in _matrices(model)),
        per_target=rows * config.hidden_size * (trained if head_trains else frozen),
        per_pair={window: attention * count * heads * size for window, count in layers.items()},
    )


def _matrices(model: PreTrainedModel) -> Iterator[tuple[float, bool]]:
    """Size of each matrix that a token is multiplied with, embedding and head left out, and whether it trains."""
    text: Any = model.config.get_text_config()
    skipped: set[int] = set()
    for table in (model.get_input_embeddings(), output_head(model)):
        skipped.update(map(id, table.modules() if table is not None else ()))
    for name, module in model.named_modules():
        # peft keeps the frozen original of a fully trained layer; it does not run
        if id(module) in skipped or isinstance(module, nn.Embedding | nn.Conv1d) or "original_module" in name:
            continue
        if isinstance(module, nn.Linear):  # by its sizes: FSDP1 leaves a flat shard of the weight
            yield module.in_features * module.out_features, module.weight.requires_grad
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 3:  # a stack of experts, of which a token meets few
                yield parameter[0].numel() * text.num_experts_per_tok, parameter.requires_grad
            elif parameter.dim() == 2:  # GPT-2's Conv1D
                yield parameter.numel(), parameter.requires_grad
