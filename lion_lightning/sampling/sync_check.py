"""Check after a weight sync that an engine serves the policy's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lion_lightning.sampling.base import EngineError

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy

LONGEST_PROMPT = 300
"""Tokens of the longest prompt: over two blocks of vLLM's prefix cache (128 tokens on CPU), which may be stale too."""

NextLogps = Callable[[Sequence[Sequence[int]]], Sequence[Mapping[int, float]]]
"""From prompts (token ids) to an engine's log-probs of its most probable next tokens, by id, without temperature."""


class SyncCheck:
    """Compares log-probs of an engine and the policy on a few fixed prompts after each weight sync.

    1. The engine's log-probs of its top tokens must equal the policy's up to ``tolerance``.
    2. Stale weights would pass that when the policy has changed little. So the engine's log-probs must also have
       changed along with the policy's since the last sync, by at least half as much. Changes of the policy's log-probs
       below a tenth of the tolerance are not compared.

    Args:
        tolerance: Largest difference of a log-prob. 1e-3 is far above differences between kernels in fp32; bf16 needs
            about 0.2.
        longest: Maximum prompt length of the engine; None for the model's number of positions.
    """

    def __init__(self, tolerance: float = 1e-3, longest: int | None = None) -> None:
        self.tolerance, self.longest = tolerance, longest
        self._prompts: list[list[int]] = []
        self._before: tuple[Tensor, Sequence[Mapping[int, float]]] | None = None

    def check(self, policy: RolloutPolicy, engine: NextLogps) -> None:
        """Compare an engine with the policy.

        Raises:
            EngineError: The engine serves other weights.
        """
        self._prompts = self._prompts or fixed_prompts(policy, self.longest)
        now, said = policy.next_logps(self._prompts), engine(self._prompts)  # now: (prompts, vocabulary)
        worst = 0.0 if any(said) else math.inf
        for row, tops in zip(now, said, strict=True):
            for token, value in tops.items():
                if not 0 <= token < len(row):
                    raise EngineError(
                        f"the engine returned token id {token}, but the policy's vocabulary has {len(row)} tokens, so "
                        "the engine serves another model; start it from the policy's model"
                    )
                difference = abs(value - float(row[token]))
                worst = max(worst, difference if math.isfinite(difference) else math.inf)
        if not worst <= self.tolerance:
            raise EngineError(
                f"after the weight sync the engine's log-probs differ from the policy's by {worst:.3g}, over the "
                f"tolerance of {self.tolerance:g}; restart the engine, or raise `tolerance` if its dtype is less "
                "precise than the policy's"
            )
        if self._before is not None:
            self._require_change(now, said, *self._before)
        self._before = now, said

    def _require_change(
        self,
        now: Tensor,
        said: Sequence[Mapping[int, float]],
        before: Tensor,
        said_before: Sequence[Mapping[int, float]],
    ) -> None:
        changes: list[tuple[float, float]] = []  # of a log-prob, in the policy and in the engine
        for new, old, tops, tops_before in zip(now, before, said, said_before, strict=True):
            for token in tops.keys() & tops_before.keys():
                changes.append((float(new[token] - old[token]), tops[token] - tops_before[token]))
        largest = max((abs(own) for own, _ in changes), default=0.0)
        # The projection of the engine's change on the policy's: 1 if it follows, 0 if its weights are stale.
        followed = sum(own * engine for own, engine in changes)
        if largest > self.tolerance / 10 and followed < sum(own**2 for own, _ in changes) / 2:
            raise EngineError(
                "after the weight sync the engine still serves the previous weights (the policy's log-probs changed by "
                f"{largest:.3g}, the engine's did not); restart the engine"
            )


def fixed_prompts(policy: RolloutPolicy, longest: int | None = None) -> list[list[int]]:
    """Make fixed random prompts: two short ones, and one that fills several blocks of a prefix cache."""
    size = len(policy.tokenizer)
    positions = getattr(policy.model.config, "max_position_embeddings", None) or LONGEST_PROMPT + 1
    draw = torch.Generator().manual_seed(0)
    lengths = [min(length, positions - 1, longest or LONGEST_PROMPT) for length in (5, 17, LONGEST_PROMPT)]
    return [torch.randint(0, size, (length,), generator=draw).tolist() for length in lengths]
