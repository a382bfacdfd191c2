"""Protocols of samplers and of the policy that they sample from, and sampling settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lion_lightning.types import Prompt

if TYPE_CHECKING:
    from lion_lightning.models.generation.adapters import PolicyAdapters
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


class Sampler(Protocol):
    """Generates answers. Any class with this method is a sampler; it needs no import from this package.

    The arguments are annotated as ``Any`` so that config files accept classes with any annotations, or none.
    """

    def sample(self, prompts: Any, n: Any, seed: Any, /) -> Any:
        """Sample ``n`` answers per prompt.

        Args:
            prompts: A sequence of :class:`~lion_lightning.types.Prompt`.
            n: Number of answers per prompt.
            seed: The same seed and prompts should give the same answers, as far as the engine allows.

        Returns:
            For each prompt, in order, a list of ``n`` :class:`~lion_lightning.types.Answer`, of objects with the same
            attributes, or of strings.
        """


def require_adapters(policy: RolloutPolicy) -> PolicyAdapters:
    """Return the adapters of a policy."""
    if policy.adapters is None:
        raise ValueError(
            "only plain LoRA on linear layers (no modules_to_save, no new tokens) can be synced as adapters; sync all "
            "weights: `weight_sync` MergedWeightSync for VLLMSampler, VLLMWeightSync for ServerSampler"
        )
    return policy.adapters


def vocabulary_size(policy: RolloutPolicy) -> int:
    """Number of rows of the policy's embedding, padding included; an engine returns no larger token ids."""
    config = policy.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return max(len(policy.tokenizer), getattr(text, "vocab_size", 0))


@runtime_checkable
class SyncedSampler(Protocol):
    """A sampler that uses the policy's current weights: opened before each round, closed after it."""

    def open(self, policy: RolloutPolicy) -> None:
        """Load the policy's current weights."""

    def close(self) -> None:
        """Free memory for training; :meth:`open` is called again before the next round."""


@runtime_checkable
class ChecksDistribution(Protocol):
    """A sampler that knows what would make its answers others than the policy's own."""

    def check_distribution(self) -> None:
        """Raise a ValueError unless tokens are drawn from the policy's own distribution, and none are left out."""


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling parameters.

    Attributes:
        temperature: Sampling temperature, 0.8 in the paper; 0 is greedy, for one answer per prompt. Values between 0
            and 1e-5 would overflow in fp32 and are refused.
        top_p: Sample from the smallest set of tokens with this total probability; 1 for all tokens.
        top_k: Sample from the ``top_k`` most probable tokens; 0 for all tokens.
        max_new_tokens: Maximum length of an answer; longer ones are truncated, with finish reason ``length``.
        stop: Strings that end an answer and are removed from it.
    """

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, good, range_ in (
            ("temperature", self.temperature == 0 or 1e-5 <= self.temperature < float("inf"), "of at least 1e-5, or 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
        ):
            if not good:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; set a number {range_}")

        if not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError("sampling.stop has an empty string, which would end every answer at once; remove it")

    def check_unchanged(self) -> None:
        """Refuse settings under which tokens are drawn from another distribution than the policy's, or are lost.

        Raises:
            ValueError: A temperature other than 1, ``top_p``, ``top_k`` or stop strings are set.
        """
        given = []
        for name, plain in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 0), ("stop", ())):
            if getattr(self, name) != plain:
                given.append(f"sampling.{name} is {getattr(self, name)}")
        if given:
            raise ValueError(
                f"{', '.join(given)}, and what is trained are log-probs of the policy itself, of each token "
                "that was drawn; set sampling.temperature: 1.0, and leave top_p, top_k and stop out"
            )

    def check_num_answers(self, n: int) -> None:
        """Refuse several answers per prompt under greedy decoding, which would be identical."""
        if n > 1 and self.temperature == 0:
            raise ValueError(f"sampling.temperature is 0, so the {n} answers per prompt would be identical; raise it")

    def check_positions(self, prompts: Sequence[Prompt], limit: int | None, engine: str) -> None:
        """Refuse prompts that leave no room for an answer.

        Args:
            prompts: The prompts.
            limit: Most tokens of prompt and answer; None for any number.
            engine: What has that limit, for the message.
        """
        for prompt in prompts:
            needed = len(prompt.input_ids) + self.max_new_tokens
            if limit is not None and needed > limit:
                raise ValueError(
                    f"{prompt.where}: the prompt and {self.max_new_tokens} new tokens need {needed} positions, but the "
                    f"{engine} has {limit}; lower data.max_prompt_length or sampling.max_new_tokens"
                )


class EngineError(OSError):
    """The sampling engine failed. Finished answers of the round are kept; a rerun continues with the rest."""
