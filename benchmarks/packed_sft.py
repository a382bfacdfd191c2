"""SFT documents packed, and alone in padded batches: ``python benchmarks/packed_sft.py``.

Forward and backward passes of the same documents, of real lengths, three ways in turns within one process: packed;
padded in the order of the data; and padded in the order of their lengths, which no shuffled epoch has and which leaves
the least padding. Losses are compared, too.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import padded
from transformers import AutoTokenizer

from lion_lightning.data.packing.collate import collate
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.tools.demo import write_demo
from lion_lightning.types import PackedBatch, Sample, SampleSegment

BATCHES, WINDOWS = 4, 8
"""Micro-batches of a measurement, and measurements."""

SIX_LAYERS: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 256,
    "intermediate_size": 682,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
"""Of SmolLM2's vocabulary and proportions."""

Document = tuple[int, int]
"""Tokens of prompt and answer."""


def batch_of(documents: Sequence[Document], vocabulary: int) -> PackedBatch:
    """A micro-batch of documents, answers supervised; the same lengths always have the same tokens."""
    samples = []
    for number, (prompt, answer) in enumerate(documents):
        ids = np.random.default_rng((prompt, answer)).integers(3, vocabulary, prompt + answer).astype(np.int32)
        samples.append(Sample((SampleSegment(ids, np.arange(len(ids)) >= prompt),), number))
    return collate(samples, sum(map(sum, documents)))


def measured(policy: PolicyModel, batches: Sequence[PackedBatch]) -> tuple[float, float]:
    """Seconds of a forward and a backward pass of each micro-batch, and the sum of their losses."""
    started, loss = time.perf_counter(), 0.0
    for batch in batches:
        logps = policy(batch).values
        (-logps.sum()).backward()
        loss -= float(logps.detach().double().sum())
    policy.zero_grad()
    return time.perf_counter() - started, loss


def tokens(documents: Sequence[Document], padding: bool) -> int:
    """Tokens of a micro-batch."""
    lengths = [sum(document) for document in documents]
    return len(lengths) * max(lengths) if padding else sum(lengths)


def demo() -> tuple[dict[str, Any], list[Document]]:
    """The demo's model, and its documents' lengths."""
    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder))
        config = json.loads((Path(folder) / "model" / "config.json").read_text("utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "model")
        documents = []
        for line in (Path(folder) / "train.jsonl").read_text("utf-8").splitlines():
            messages = json.loads(line)["messages"]
            prompt, whole = (len(tokenizer.apply_chat_template(part)["input_ids"]) for part in (messages[:1], messages))
            documents.append((prompt, whole - prompt))
    return config, documents


def compare(config: dict[str, Any], documents: Sequence[Document], size: int) -> None:
    """Measure one model on documents, as many a micro-batch as given, and print what comes out."""
    policies = []
    for _ in range(2):
        torch.manual_seed(0)
        policies.append(PolicySpec(config=config).build())
    packed, alone = policies[0], padded(policies[1])
    seconds: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    apart = 0.0
    for window in range(WINDOWS + 1):
        drawn = documents[window * size * BATCHES :][: size * BATCHES]
        ways = {
            "packed": (packed, drawn),
            "padded": (alone, drawn),
            "padded by length": (alone, sorted(drawn, key=sum)),
        }
        losses = {}
        for name in list(ways)[:: 1 if window % 2 else -1]:
            policy, order = ways[name]
            parts = [order[start : start + size] for start in range(0, len(order), size)]
            spent, losses[name] = measured(policy, [batch_of(part, config["vocab_size"]) for part in parts])
            if window:  # the first warms up
                seconds.setdefault(name, []).append(spent)
                counts[name] = counts.get(name, 0) + sum(tokens(part, name != "packed") for part in parts)
        apart = max(apart, *(abs(loss / losses["packed"] - 1) for loss in losses.values()))
    for name in ("padded", "padded by length"):
        ratios = sorted(other / one for one, other in zip(seconds["packed"], seconds[name], strict=True))
        print(
            f"{name}: {counts[name] / counts['packed']:.2f} times the tokens of packed, "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) times the seconds"
        )
    per_token = statistics.median(seconds["packed"]) * WINDOWS / counts["packed"]
    print(f"packed: {1 / per_token:,.0f} tokens/s; largest relative difference of the losses {apart:.0e}", flush=True)


def main() -> None:
    """Compare both models."""
    lengths = json.loads(Path(__file__).with_name("lengths.json").read_text("utf-8"))
    print("six layers of width 256, documents of GSM8K and Self-Instruct, 8 a micro-batch:")
    compare(SIX_LAYERS, [(prompt, answer) for prompt, answer in lengths["documents"]], 8)
    print("the demo's model and documents, 16 a micro-batch:")
    compare(*demo(), 16)


if __name__ == "__main__":
    main()
