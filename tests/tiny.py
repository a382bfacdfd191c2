"""Tiny models and packed rows made on the spot, and the plain way to compute what the library computes cleverly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import read_template
from lion_lightning.ops.layout import RowLayout
from lion_lightning.types import PackedBatch, segment_table

VOCABULARY = 101
DOCUMENTS = ((7, 1, 5, 9), (-1, -1, -1, -1))
"""Lengths and parents of a row of four documents, one of a single token."""
TREE = ((7, 5, 9, 4), (-1, -1, 1, 1))
"""A document, then a prompt with two answers of unequal lengths."""

SOFTCAPPED: dict[str, Any] = {
    "model_type": "gemma2",
    "head_dim": 8,
    "sliding_window": 4,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
"""Config of a model that caps its scores and its logits."""
LEARNED_POSITIONS: dict[str, Any] = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
"""Config of a model without rotary positions."""


def config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """Config of a random model of two layers, hidden size 32, four query heads over two key heads."""
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # large, so that attention is far from uniform and errors show
    }
    return {"model_type": model_type, **common, **changes}


def shallow(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """The same with one layer, which takes half the time: for runs in which depth makes no difference."""
    return config(model_type, **{"num_hidden_layers": 1} | changes)


def policy(model_type: str = "llama", attention: str = "lion", **changes: Any) -> Any:
    """A random policy; equal arguments give equal weights."""
    torch.manual_seed(0)
    return PolicySpec(config=config(model_type, **changes), attention=attention).build()


def row(
    lengths: Sequence[int] = TREE[0],
    parents: Sequence[int] = (-1, -1, -1, -1),
    supervised: Sequence[int] | None = None,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    bidirectional: Sequence[bool] = (),
) -> PackedBatch:
    """A packed row of random tokens; without arguments four documents, which is what ``SFTModule`` trains on.

    Args:
        lengths: Tokens of each segment.
        parents: Index of each segment's parent.
        supervised: Flat positions that are targets; None for every token whose predecessor does not see it.
        seed: Of the tokens.
        vocabulary: Ids are below it.
        bidirectional: For each segment, whether its tokens see those behind them; the rest do not.
    """
    segments = segment_table(lengths, parents, bidirectional)
    ids = torch.randint(3, vocabulary, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    # (position of the target, position of its predictor, segment), from the definition rather than from the library
    wanted = [
        (position, segments[segment.parent].stop - 1 if position == segment.start else position - 1, number)
        for number, segment in enumerate(segments)
        for position in range(segment.start, segment.stop)
        if (segment.parent >= 0 if position == segment.start else not segment.bidirectional)
    ]
    wanted = [item for item in wanted if supervised is None or item[0] in supervised]
    targets, logit_positions, owners = torch.tensor(wanted, dtype=torch.int64).reshape(-1, 3).unbind(1)
    return PackedBatch(
        ids,
        RowLayout(segments).positions,
        segments,
        logit_positions,
        ids[targets],
        owners,
        values=(math.nan,) * sum(parent >= 0 for parent in parents),
    )


def pairs(*lengths: tuple[int, int, int], seed: int = 0) -> PackedBatch:
    """A packed row of random preference pairs, their answers supervised.

    Args:
        lengths: Tokens of prompt, chosen and rejected of each pair.
        seed: Of the tokens.
    """
    flat = [length for pair in lengths for length in pair]
    parents = [parent for number in range(len(lengths)) for parent in (-1, 3 * number, 3 * number)]
    answers = [span for span in segment_table(flat, parents) if span.parent >= 0]
    supervised = [place for span in answers for place in range(span.start, span.stop)]
    made = row(flat, parents, supervised, seed)
    return replace(made, pairs=tuple((2 * number, 2 * number + 1) for number in range(len(lengths))))


def trees(*made: tuple[int, tuple[int, ...], tuple[float, ...]], seed: int = 0) -> PackedBatch:
    """A packed row of random trees, their answers supervised.

    Args:
        made: Tokens of the prompt, tokens of each answer and its value, of each tree.
        seed: Of the tokens.
    """
    lengths: list[int] = []
    parents: list[int] = []
    for prompt, sizes, _ in made:
        parents += [-1] + [len(lengths)] * len(sizes)
        lengths += [prompt, *sizes]
    answers = [span for span in segment_table(lengths, parents) if span.parent >= 0]
    supervised = [place for span in answers for place in range(span.start, span.stop)]
    values = tuple(value for *_, numbers in made for value in numbers)
    return replace(row(lengths, parents, supervised, seed), values=values)


def alone(model: Any, batch: PackedBatch) -> Tensor:
    """Log-probs of a batch's targets by the plain model: every segment with its ancestors alone, whole logits, fp32."""
    return alone_all(model, batch).gather(1, batch.targets[:, None]).squeeze(1)


def alone_all(model: Any, batch: PackedBatch) -> Tensor:
    """``(targets, vocabulary)``: log-probs of every token in a target's place; see :func:`alone`."""
    rows = torch.zeros(len(batch.targets), 0, device=batch.targets.device)
    for number, (_, spans) in enumerate(RowLayout(batch.segments).accesses):
        places = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(batch.input_ids.device)
        logits = model(input_ids=batch.input_ids[places][None], use_cache=False).logits[0].float()
        mine = (batch.target_segments == number).nonzero().flatten()
        at = (places[None, :] == batch.logit_positions[mine, None]).int().argmax(1)
        rows = rows if rows.shape[1] else rows.new_zeros(len(rows), logits.shape[1])
        rows = rows.index_put((mine,), logits.log_softmax(-1)[at])
    return rows


def assert_as_alone(model: Any, batch: PackedBatch, attention: str | None = None) -> None:
    """Log-probs of a row, and their gradients, are those of each sequence alone, to 1e-5.

    Args:
        model: A policy.
        batch: The row.
        attention: What each sequence alone runs with; None for what the policy has.
    """
    values = model(batch).values
    found = gradients(model, values)
    if attention is not None:
        model.causal_lm.set_attn_implementation(attention)
    expected = alone(model.causal_lm, batch)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
    for name, gradient in gradients(model, expected).items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp_min(1), name


def gradients(model: torch.nn.Module, values: Tensor) -> dict[str, Tensor]:
    """Gradients of an uneven combination of log-probs, by parameter name."""
    model.zero_grad()
    weights = torch.linspace(-1, 2, len(values), device=values.device)
    torch.autograd.backward((weights * values).sum())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def tokenizer_folder(folder: Path) -> Path:
    """A saved tokenizer of ``VOCABULARY`` words (``w3`` has id 3), with ChatML and, as SmolLM2 has it, pad == eos."""
    words = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"w{number}" for number in range(3, VOCABULARY))]
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=read_template("chatml"),
    ).save_pretrained(folder)
    return folder


class Rows:
    """A loader over fixed batches; with ranks, rank ``r`` gets batches ``r``, ``r + world``, ..."""

    def __init__(self, batches: Sequence[PackedBatch], rank: int = 0, world: int = 1) -> None:
        self.batches = list(batches)[rank::world]

    def __iter__(self) -> Iterator[PackedBatch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def merge(rows: Sequence[PackedBatch]) -> PackedBatch:
    """Rows laid end to end: a larger micro-batch of the same documents."""
    starts = [0]
    for batch in rows:
        starts.append(starts[-1] + len(batch.input_ids))
    segments = [
        segment._replace(start=segment.start + start, parent=segment.parent + offset if segment.parent >= 0 else -1)
        for batch, start, offset in zip(rows, starts, _offsets(rows), strict=False)
        for segment in batch.segments
    ]
    owners = [batch.target_segments + offset for batch, offset in zip(rows, _offsets(rows), strict=True)]
    weighted = any(batch.target_weights is not None for batch in rows)
    answers, pairs = 0, []
    for batch in rows:
        pairs += [(answers + chosen, answers + rejected) for chosen, rejected in batch.pairs]
        answers += len(batch.values)
    return replace(
        rows[0],
        input_ids=torch.cat([batch.input_ids for batch in rows]),
        position_ids=torch.cat([batch.position_ids for batch in rows]),
        segments=tuple(segments),
        logit_positions=torch.cat([batch.logit_positions + start for batch, start in zip(rows, starts, strict=False)]),
        targets=torch.cat([batch.targets for batch in rows]),
        target_segments=torch.cat(owners),
        target_weights=torch.cat([weights_of(batch) for batch in rows]) if weighted else None,
        values=tuple(value for batch in rows for value in batch.values),
        pairs=tuple(pairs),
    )


def weights_of(batch: PackedBatch) -> Tensor:
    """Weight of each target, ones where the batch says nothing."""
    return torch.ones(len(batch.targets)) if batch.target_weights is None else batch.target_weights


def _offsets(rows: Sequence[PackedBatch]) -> list[int]:
    counts = [len(batch.segments) for batch in rows]
    return [sum(counts[:place]) for place in range(len(rows))]


def trainer(**options: Any) -> Trainer:
    """A Trainer on the CPU that writes and prints nothing."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**(quiet | options))


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the number of elements of the largest tensor that any operation makes, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        self.numel = max([self.numel, *(item.numel() for item in made if isinstance(item, Tensor))])
        return result


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the most bytes that tensors made inside, and still there, have held at once.

    It follows storages, not tensors: autograd keeps the former without the latter, and a tensor that something refers
    to cannot be swapped for another, as happens to sharded parameters. Which storages are still there is looked up
    only where all that were known together are more than there ever were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._held = 0
        self._before: set[int] = set()

    def count(self, *before: torch.nn.Module) -> LiveTensors:
        """Leave out what these modules hold, and views of it."""
        tensors = [tensor for module in before for tensor in (*module.parameters(), *module.buffers())]
        self._before = {_storage(tensor)._cdata for tensor in tensors}
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        for item in made:
            if isinstance(item, Tensor) and not item.is_meta:
                self._note(_storage(item))
        if self._held > self.most:
            self._look()
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        """A storage that is new, or whose size may have changed."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._before:
            ref, known = self._made.get(key) or (StorageWeakRef(storage), 0)  # type: ignore[no-untyped-call]
            self._made[key] = ref, size
            self._held += size - known

    def _look(self) -> None:
        """Forget what is gone."""
        there = {key: ref for key, (ref, _) in self._made.items() if not ref.expired()}  # type: ignore[no-untyped-call]
        self._made = {key: (ref, _bytes(key)) for key, ref in there.items()}
        self._held = sum(size for _, size in self._made.values())
        self.most = max(self.most, self._held)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    held: Tensor = getattr(tensor, "_local_tensor", tensor)
    return held.untyped_storage()


def _bytes(weak: int) -> int:
    storage: Any = torch.UntypedStorage._new_with_weak_ptr(weak)
    return int(storage.nbytes())
