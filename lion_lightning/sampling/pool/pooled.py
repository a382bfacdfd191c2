"""Sampling from several models, some of them for each prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from lion_lightning.readiness import opened, require_ready
from lion_lightning.sampling.answers import sample_one_each
from lion_lightning.sampling.base import Sampler
from lion_lightning.types import Answer, Prompt

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


class PooledSampler:
    """Asks, for each prompt, ``n`` samplers drawn from a pool without repeats for one answer each.

    This is how TÜLU 3 (arXiv 2411.15124, section 5.2.1) makes its preference data: four models at random of a pool of
    22 answer each prompt, and of two answers that are to be on-policy one is always the SFT model's (``own``). The draw
    depends on prompt and seed alone; answers stand in the order of the draw, so that no place belongs to a model.

    The models of all samplers are in memory while a round is sampled; name a server for one that is too large.
    Answers are not the policy's own: they train DPO and other losses on pairs or groups, and no policy gradient.

    Args:
        samplers: The pool, by names, which are stored with the answers: :class:`TransformersSampler` for the policy,
            :class:`FrozenSampler` for a stored model, :class:`ServerSampler` for one on a server, or your own.
        own: Name of a sampler that always takes part, at a random place: the policy's, as a rule, since it alone
            answers the monitor prompts. Without it set ``monitor_prompts: 0``.

    Raises:
        ValueError: There are fewer than two samplers, or ``own`` is none of them. From :meth:`sample`: there are fewer
            than answers to a prompt.
    """

    def __init__(self, samplers: dict[str, Sampler], own: str | None = None) -> None:
        if len(samplers) < 2:
            raise ValueError(f"PooledSampler: there are {len(samplers)} samplers; give two or more, each with its name")
        if own is not None and own not in samplers:
            raise ValueError(f"PooledSampler: own is {own!r}; the samplers are {', '.join(samplers)}")
        self.samplers, self.own = samplers, own
        self._policy: RolloutPolicy | None = None
        self._stack = ExitStack()

    def identity(self) -> dict[str, Any]:
        """Settings that determine the answers."""
        parts = {}
        for name, sampler in self.samplers.items():
            known: Any = sampler
            parts[name] = known.identity() if hasattr(sampler, "identity") else type(sampler).__qualname__
        return {"sampler": type(self).__name__, "samplers": parts, "own": self.own}

    def check_distribution(self) -> None:
        """Refuse to answer for the policy alone."""
        raise ValueError(
            f"PooledSampler: answers are those of {', '.join(self.samplers)}, and what is trained are log-probs of the "
            "policy's own answers; give its sampler alone, or train on pairs (OnlineDPOModule)"
        )

    def check_numbers(self, num_samples: int, monitor_prompts: int | None, monitor_samples: int) -> None:
        """Check the arguments of these names of ``OnPolicySampling``.

        Raises:
            ValueError: They do not fit the pool.
        """
        self._require(num_samples)
        if monitor_prompts != 0 and self.own is None:
            raise ValueError(
                "PooledSampler: monitor prompts compare the policy of one round with that of another, and no sampler "
                "is `own` to answer them; name the policy's, or set monitor_prompts: 0 of OnPolicySampling"
            )
        if monitor_prompts != 0 and monitor_samples > 1:
            raise ValueError(
                f"PooledSampler: monitor_samples is {monitor_samples}, and {self.own!r} alone answers monitor prompts, "
                "once each; set 1"
            )

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """Check the samplers."""
        require_ready(self.samplers.values(), prompts)

    def open(self, policy: RolloutPolicy) -> None:
        """Open the samplers, if they have to be."""
        with ExitStack() as stack:  # closes those before one that fails
            for sampler in self.samplers.values():
                stack.enter_context(opened(sampler, policy))
            self._stack = stack.pop_all()
        self._policy = policy

    def close(self) -> None:
        """Close them."""
        self._stack.close()
        self._policy = None

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        """Sample one answer of each of ``n`` samplers per prompt.

        Raises:
            ValueError: ``n`` is above the number of samplers, or a sampler gives something other than an answer.
        """
        self._require(n)
        drawn = [self._draw(prompt, n, seed) for prompt in prompts]
        answers: list[dict[str, Answer]] = [{} for _ in prompts]
        # A seed for each model, so that no two draw by the same random numbers.
        seeds = np.random.SeedSequence(seed).generate_state(len(self.samplers)).tolist()
        for (name, sampler), own_seed in zip(self.samplers.items(), seeds, strict=True):
            places = [place for place, names in enumerate(drawn) if name in names]
            asked = [prompts[place] for place in places]
            given = sample_one_each(sampler, asked, own_seed, self._policy) if asked else []
            for place, answer in zip(places, given, strict=True):
                answers[place][name] = answer._replace(model=name)
        return [[row[name] for name in names] for row, names in zip(answers, drawn, strict=True)]

    def _require(self, n: int) -> None:
        if n > len(self.samplers):
            raise ValueError(
                f"PooledSampler: {n} answers of different models to each prompt, but there are {len(self.samplers)} "
                "samplers; lower num_samples, or name more"
            )

    def _draw(self, prompt: Prompt, n: int, seed: int) -> list[str]:
        """Names of the samplers that answer a prompt, in order."""
        # By seed and prompt: the same models answer it, whichever prompts share its chunk.
        draw = random.Random(f"{seed} {prompt.text}")
        others = [name for name in self.samplers if name != self.own]
        names = draw.sample(others, n - (self.own is not None))
        if self.own is not None:
            names.insert(draw.randrange(n), self.own)
        return names
