"""Proof that an engine serves the weights that it was just given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lion_lightning.sampling.base import EngineError

LONG = 300
"""Tokens of the longest probe prompt: over two blocks (of 128 on a CPU) of a prefix cache, which may be stale too."""

NextLogps = Callable[[Sequence[Sequence[int]]], Sequence[Mapping[int, float]]]
"""Log-probs that an engine gives its most probable next tokens, by id, for each prompt; before any temperature."""

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


class Probe:
    """Compares an engine with the policy after each push of weights, on a few fixed prompts.

    The engine's log-probs of its top tokens must be the policy's, up to ``tolerance``. Old weights could pass that
    where the policy has moved little, so the engine must also have moved along with it since the last push: of the
    policy's move, at least half must be seen in the engine. A move below a tenth of the tolerance is not judged.

    Args:
        tolerance: Largest difference of a log-prob: 1e-3 is far above what two kernels differ by in fp32; bf16 needs
            some 0.2.
        longest: Most tokens of a prompt that the engine takes; None for no limit but the model's positions.
    """

    def __init__(self, tolerance: float = 1e-3, longest: int | None = None) -> None:
        self.tolerance, self.longest = tolerance, longest
        self._prompts: list[list[int]] = []
        self._before: tuple[Tensor, Sequence[Mapping[int, float]]] | None = None

    def check(self, policy: RolloutPolicy, engine: NextLogps) -> None:
        """Compare.

        Args:
            policy: The policy, as its weights were pushed.
            engine: What is compared with it.

        Raises:
            EngineError: The engine serves other weights.
        """
        self._prompts = self._prompts or probe_prompts(policy, self.longest)
        now, said = policy.next_logps(self._prompts), engine(self._prompts)
        _require_tokens(said, now.shape[1])
        worst = _distance(said, now)
        if not worst <= self.tolerance:
            raise EngineError(
                f"after the push of weights the engine does not serve the policy: its log-probs are off by {worst:.3g} "
                f"where {self.tolerance:g} is allowed; restart the engine, or raise the probe's tolerance if its dtype "
                "is coarser than the policy's"
            )
        if self._before is not None:
            self._refuse_stale(now, said, *self._before)
        self._before = now, said

    def _refuse_stale(
        self,
        now: Tensor,
        said: Sequence[Mapping[int, float]],
        before: Tensor,
        said_before: Sequence[Mapping[int, float]],
    ) -> None:
        moves = [
            (float(new[token] - old[token]), value - tops_before[token])
            for new, old, tops, tops_before in zip(now, before, said, said_before, strict=True)
            for token, value in tops.items()
            if token in tops_before
        ]
        largest = max((abs(own) for own, _ in moves), default=0.0)
        followed = sum(own * engine for own, engine in moves)
        if largest > self.tolerance / 10 and followed < sum(own**2 for own, _ in moves) / 2:
            raise EngineError(
                "after the push of weights the engine still serves those before (the policy's log-probs have moved by "
                f"{largest:.3g}, and the engine's have not followed); restart the engine"
            )


def probe_prompts(policy: RolloutPolicy, longest: int | None = None) -> list[list[int]]:
    """Fixed token ids: two short prompts and one that fills blocks of a cache.

    Args:
        policy: Whose tokenizer's ids they are.
        longest: Most tokens of a prompt; None for no limit but the model's positions.
    """
    size = len(policy.tokenizer)
    positions = getattr(policy.model.config, "max_position_embeddings", None) or LONG + 1
    draw = torch.Generator().manual_seed(0)
    lengths = [min(length, positions - 1, longest or LONG) for length in (5, 17, LONG)]
    return [torch.randint(0, size, (length,), generator=draw).tolist() for length in lengths]


def _distance(said: Sequence[Mapping[int, float]], logps: Tensor) -> float:
    """Largest difference over the tokens that the engine names; infinite where it names none, or what is no number."""
    pairs = [(row[token], value) for row, tops in zip(logps, said, strict=True) for token, value in tops.items()]
    if not pairs or not all(math.isfinite(value) for _, value in pairs):  # of NaN no maximum is to be had
        return math.inf
    return max(abs(value - float(own)) for own, value in pairs)


def _require_tokens(said: Sequence[Mapping[int, float]], vocabulary: int) -> None:
    """Refuse an engine of another vocabulary.

    Raises:
        EngineError: It names a token that the policy has not.
    """
    foreign = [token for tops in said for token in tops if not 0 <= token < vocabulary]
    if foreign:
        raise EngineError(
            f"the engine names the token {foreign[0]}, and the policy has {vocabulary}: it serves another model; "
            "start it from the policy's"
        )
