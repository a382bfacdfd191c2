"""Operations of ours and of TRL's trainers on the same items, counted from their lengths.

A weight costs 2 FLOPs a token forward, 2 for the gradient of its input and 2 for its own. Ours runs a prompt once for
all of its answers, the head for targets alone, and keeps its logits. TRL pads a micro-batch to its longest sequence,
runs the head on a CPU for every position, and computes its logits again in the backward pass: 8 instead of 6. Its
GRPO pads to the longest prompt and the longest answer of a round. Passes without a backward one, of the reference and
of the policy that sampled, are a third of what training takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from batches import VOCABULARY, Item, flat, grouped, steps_of

FORWARD = 1 / 3
"""Share of a forward pass in the operations of training."""
RECOMPUTED = 8 / 6


def bound(ours: dict[str, Any], trl: dict[str, Any]) -> dict[str, float]:
    """FLOPs of the jobs' turns after the first, and the ratio of speeds if both did them equally fast.

    Args:
        ours: Job of ours.
        trl: Job of TRL's trainer.
    """
    costs = Costs(ours["shape"], has_head=ours["stage"] != "reward")
    own = sum(map(costs.of_tree, flat(_counted(ours)))) / (ours["steps"] / ours["accumulate"] - 1)
    theirs = sum(map(costs.of_padded, _counted(trl))) / (trl["steps"] / trl["accumulate"] - 1)
    if ours["stage"] == "grpo":
        passes = (ours["beta"] > 0) + (ours["updates"] > 1)
        own *= 1 + FORWARD * passes
        rounds = [list(flat(turn)) for turn in grouped(_counted(trl), trl["accumulate"])]
        theirs = sum(costs.of_round(answers, passes) for answers in rounds) / len(rounds)
    return {
        "GFLOP a token of the layers": costs.per_token / 1e9,
        "GFLOP a position of the head": costs.per_target / 1e9,
        "GFLOP a step, ours": own / 1e9,
        "GFLOP a step, TRL": theirs / 1e9,
        "ratio of operations, TRL over ours": theirs / own,
    }


class Costs:
    """FLOPs of training a model.

    Args:
        shape: Of the model's config.
        has_head: Whether logits over the vocabulary are computed.
    """

    def __init__(self, shape: dict[str, int], has_head: bool) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig

        from lion_lightning.planning.flops import training_flops

        models: Any = AutoModelForCausalLM
        with torch.device("meta"):
            flops = training_flops(models.from_config(LlamaConfig(vocab_size=VOCABULARY, **shape)))
        self.per_token, self.per_pair = flops.per_token, sum(flops.per_pair.values())
        self.per_target = flops.per_target if has_head else 0.0

    def of_tree(self, item: Item) -> float:
        """A prompt with its answers; the mismatched one takes a pass of its own, which is forward only.

        Args:
            item: The tree.
        """
        found = self._tree(len(item.prompt), [len(answer) for answer in item.answers])
        if item.mismatched:
            found += FORWARD * self._tree(len(item.prompt), [len(item.mismatched)])
        return found

    def of_padded(self, items: Sequence[Item]) -> float:
        """A padded micro-batch of TRL's.

        Args:
            items: Its prompts, each with one or two answers.
        """
        found = self._padded([len(item.prompt) + len(answer) for item in items for answer in item.answers], RECOMPUTED)
        if items[0].mismatched:
            found += FORWARD * self._padded([len(item.prompt) + len(item.mismatched) for item in items], 1.0)
        return found

    def of_round(self, answers: Sequence[Item], passes: int) -> float:
        """A round of GRPO in TRL, whatever its micro-batches.

        Args:
            answers: Each with its prompt.
            passes: Over the round that have no backward pass.
        """
        longest = max(len(item.prompt) for item in answers) + max(item.targets for item in answers)
        lengths = [longest] * len(answers)
        return self._padded(lengths, RECOMPUTED) + passes * FORWARD * self._padded(lengths, 1.0)

    def _tree(self, prompt: int, answers: Sequence[int]) -> float:
        seen = _causal(prompt) + sum(answer * prompt + _causal(answer) for answer in answers)
        targets = sum(answers)
        return (prompt + targets) * self.per_token + targets * self.per_target + seen * self.per_pair

    def _padded(self, lengths: Sequence[int], head: float) -> float:
        longest = max(lengths)
        one = longest * self.per_token + (longest - 1) * head * self.per_target + _causal(longest) * self.per_pair
        return len(lengths) * one


def _counted(job: dict[str, Any]) -> list[list[Item]]:
    """Micro-batches of all turns but the first, which warms up."""
    return steps_of(job)[job["accumulate"] :]


def _causal(tokens: int) -> int:
    """Pairs of a token and one that it sees."""
    return tokens * (tokens + 1) // 2
