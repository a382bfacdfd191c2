"""Preference pairs through families of models, packed and padded: ``python benchmarks/families.py``.

First a table: of each family, tokens per pair that go through embedding and feed-forward layers, and through the token
mixers that run sequence by sequence, packed and padded. Then pairs per second of a Qwen3.5 shape (three layers of
linear attention to one of full attention), forward and backward, the two ways in turns within one process.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lion_lightning.data.packing.collate import collate
from lion_lightning.losses import SigmoidLoss
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.ops.logprobs import pair_view
from lion_lightning.tools.models.tiny import tiny_config
from lion_lightning.types import PackedBatch, Sample, SampleSegment, TokenLogps

# fmt: off
FAMILIES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gemma4_text", "phi3", "olmo2", "olmo3", "granite",
    "smollm3", "cohere2", "starcoder2", "gpt2", "gpt_neox", "glm4", "ministral3", "qwen3_moe", "mixtral", "gpt_oss",
    "olmoe", "deepseek_v3", "glm4_moe", "qwen3_next", "qwen3_5_text", "lfm2", "falcon_h1", "mamba2",
)
# fmt: on
VOCABULARY = 16_000
QWEN3_5: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "max_position_embeddings": 4096,
}
"""Qwen3.5-0.8B's proportions (also of head to layers) at a quarter of its width and a third of its depth."""


def batch_of(lengths: Sequence[Sequence[int]], vocabulary: int, seed: int = 0) -> PackedBatch:
    """A micro-batch of preference pairs of random tokens, answers supervised.

    Args:
        lengths: Tokens of prompt, chosen and rejected of each pair.
        vocabulary: Ids are below it.
        seed: Of the tokens.
    """
    generator, samples = np.random.default_rng(seed), []
    for number, pair in enumerate(lengths):
        parts = [generator.integers(3, vocabulary, length).astype(np.int32) for length in pair]
        segments = [
            SampleSegment(ids, np.full(len(ids), place > 0), parent=-1 if place == 0 else 0)
            for place, ids in enumerate(parts)
        ]
        samples.append(Sample(tuple(segments), number, pairs=((0, 1),)))
    return collate(samples, sum(map(sum, lengths)))


def padded(policy: PolicyModel) -> PolicyModel:
    """The same model, every sequence alone in a padded batch."""
    native = "sdpa" if policy.causal_lm._supports_sdpa else "eager"
    policy.causal_lm.set_attn_implementation(native)
    policy.packed = False
    return policy


def tokens(policy: PolicyModel, batch: PackedBatch) -> tuple[int, int]:
    """Tokens that go through the embedding, and through the first token mixer that runs sequence by sequence."""
    seen: list[int] = []
    hook = policy.causal_lm.get_input_embeddings().register_forward_pre_hook(lambda _, ids: seen.append(ids[0].numel()))
    with torch.no_grad():
        policy(batch)
    hook.remove()
    mixed = sum(each.source.numel() for each in _layout(batch).padded_groups.batches)
    return seen[0], mixed if policy.packed and policy.mixers.names else 0


def _layout(batch: PackedBatch) -> Any:
    from lion_lightning.ops.layout import RowLayout

    return RowLayout(batch.segments)


def table(lengths: Sequence[Sequence[int]]) -> list[str]:
    """Lines of the table of families."""
    lines = ["| family | runs | tokens per pair | of them in sequences | padded |", "|---|---|---|---|---|"]
    for name in FAMILIES:
        torch.manual_seed(0)
        policy = PolicySpec(config=tiny_config(name)).build()
        batch = batch_of(lengths, 64)
        way = "packed" if policy.packed else "padded"
        flat, mixed = (count / len(lengths) for count in tokens(policy, batch))
        alone = tokens(padded(policy), batch)[0] / len(lengths)
        lines.append(
            f"| {name} | {way} | {flat:.0f} | {mixed:.0f} | {alone:.0f} |"
            if mixed
            else f"| {name} | {way} | {flat:.0f} | - | {alone:.0f} |"
        )
    return lines


def seconds(policy: PolicyModel, batch: PackedBatch) -> float:
    """Time of a forward and a backward pass of DPO without a reference."""
    started = time.perf_counter()
    view = pair_view(batch)
    reference = view.logps(TokenLogps(torch.zeros(len(batch.targets))))
    torch.autograd.backward(SigmoidLoss()(view.logps(policy(batch)), reference).mean())
    policy.zero_grad()
    return time.perf_counter() - started


def speed(lengths: Sequence[Sequence[int]], per_step: int, steps: int) -> dict[str, list[float]]:
    """Pairs per second of each step, packed and padded in turns."""
    torch.manual_seed(0)
    packed = PolicySpec(config=QWEN3_5).build()
    torch.manual_seed(0)
    alone = padded(PolicySpec(config=QWEN3_5).build())
    found: dict[str, list[float]] = {"packed": [], "padded": []}
    for step in range(steps + 1):
        start = step * per_step
        batch = batch_of(lengths[start : start + per_step], VOCABULARY, seed=step)
        for name, policy in (("packed", packed), ("padded", alone))[:: 1 if step % 2 else -1]:
            spent = seconds(policy, batch)
            if step:  # the first warms up
                found[name].append(per_step / spent)
    return found


def pair_sets() -> dict[str, list[list[int]]]:
    """Lengths of prompt, chosen and rejected, of real documents and pairs."""
    lengths = json.loads(Path(__file__).with_name("lengths.json").read_text())
    documents = lengths["documents"]
    return {
        "GSM8K pairs": lengths["pairs"],
        "Self-Instruct and GSM8K, another document's answer rejected": [
            [prompt, answer, other[1]] for (prompt, answer), other in zip(documents[::2], documents[1::2], strict=False)
        ],
        "the same in the third turn of a conversation": [
            [sum(first) + sum(second) + prompt, answer, other[1]]
            for first, second, (prompt, answer), other in zip(
                *(documents[place::4] for place in range(4)), strict=False
            )
        ],
    }


def main() -> None:
    """Print the table, then the speeds."""
    sets = pair_sets()
    print("\n".join(table(sets["GSM8K pairs"][:8])))
    for what, lengths in sets.items():
        found = speed(lengths, per_step=4, steps=6)
        packed, alone = (statistics.median(found[name]) for name in ("packed", "padded"))
        ratios = sorted(one / other for one, other in zip(found["packed"], found["padded"], strict=True))
        print(
            f"Qwen3.5 shape, {what}, 4 a step: packed {packed:.2f} pairs/s, padded {alone:.2f}, "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f} over {len(ratios)} steps)",
            flush=True,
        )


if __name__ == "__main__":
    main()
