"""Proof that an engine serves the weights that it was just given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lion_lightning.sampling.base import EngineError, ServedPolicy

LONG = 96
"""Tokens of the longest probe prompt: longer than a block of any engine's prefix cache, which may be stale by itself."""

NextLogps = Callable[[Sequence[Sequence[int]]], Sequence[Mapping[int, float]]]
"""Log-probs that an engine gives its most probable next tokens, by id, for each prompt; before any temperature."""


class Probe:
    """Compares an engine with the policy after each push of weights, on a few fixed prompts.

    The engine's log-probs of its top tokens must be the policy's, up to ``tolerance``. Where the policy itself has moved
    by less than that since the last push, stale weights would pass, so the engine must also be nearer to the policy as
    it is than to what it was, as soon as the two can be told apart.

    Args:
        tolerance: Largest difference of a log-prob: 1e-3 is far above what two kernels differ by in fp32; bf16 needs
            some 0.2.
    """

    def __init__(self, tolerance: float = 1e-3) -> None:
        self.tolerance = tolerance
        self._prompts: list[list[int]] = []
        self._before: Tensor | None = None

    def check(self, policy: ServedPolicy, engine: NextLogps) -> None:
        """Compare.

        Args:
            policy: The policy, as its weights were pushed.
            engine: What is compared with it.

        Raises:
            EngineError: The engine serves other weights.
        """
        self._prompts = self._prompts or probe_prompts(policy)
        now = policy.next_logps(self._prompts)
        said = engine(self._prompts)
        worst = _distance(said, now)
        if not worst <= self.tolerance:
            raise EngineError(
                f"after the push of weights the engine does not serve the policy: its log-probs are off by {worst:.3g}, "
                f"and {self.tolerance:g} is allowed; stop and restart the engine, or raise the probe's tolerance if its "
                "dtype is coarser than the policy's"
            )
        if self._before is not None and _stale(said, now, self._before):
            raise EngineError(
                f"after the push of weights the engine still serves the ones before: its log-probs are {worst:.3g} from the "
                f"policy's and {_distance(said, self._before):.3g} from the former policy's; restart the engine"
            )
        self._before = now


def probe_prompts(policy: ServedPolicy) -> list[list[int]]:
    """Fixed token ids, as far as the vocabulary has them: two short prompts and one that fills blocks of a cache.

    Args:
        policy: Whose tokenizer's ids they are.
    """
    size = len(policy.tokenizer)
    positions = getattr(policy.model.config, "max_position_embeddings", None) or LONG + 1
    draw = torch.Generator().manual_seed(0)
    lengths = [min(length, positions - 1) for length in (5, 17, LONG)]
    return [torch.randint(0, size, (length,), generator=draw).tolist() for length in lengths]


def _distance(said: Sequence[Mapping[int, float]], logps: Tensor) -> float:
    """Largest difference over the tokens that the engine names; infinite where it names none."""
    return max(
        (
            abs(value - float(row[token]))
            for row, tops in zip(logps, said, strict=True)
            for token, value in tops.items()
        ),
        default=float("inf"),
    )


def _stale(said: Sequence[Mapping[int, float]], now: Tensor, before: Tensor) -> bool:
    """Whether the engine is nearer to the former policy, on the tokens where that can be told."""
    moved = max(
        float((new[list(tops)] - old[list(tops)]).abs().max()) for new, old, tops in zip(now, before, said, strict=True)
    )
    return _distance(said, before) < _distance(said, now) and moved > 1e-6
