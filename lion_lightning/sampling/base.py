"""What generates answers, and what it may ask of the policy that it generates from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from lion_lightning.models.generation.adapters import PolicyAdapters
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


class Sampler(Protocol):
    """Generates answers. Any class with this method is one; nothing has to be imported for it.

    (Arguments have no types here, so that config files accept a class of any annotations, or of none.)
    """

    def sample(self, prompts: Any, n: Any, seed: Any, /) -> Any:
        """``n`` answers to each prompt.

        Args:
            prompts: What is asked, a sequence of :class:`~lion_lightning.types.Prompt`.
            n: Answers to each.
            seed: The same seed and prompts give the same answers, as far as the engine can.

        Returns:
            For each prompt, in order, ``n`` of :class:`~lion_lightning.types.Answer`, or of anything with its
            attributes, or bare texts.
        """


def require_adapters(policy: RolloutPolicy) -> PolicyAdapters:
    """The adapters of a policy.

    Args:
        policy: What will be served.

    Raises:
        ValueError: It has none, or more than plain adapters on linear layers.
    """
    if policy.adapters is None:
        raise ValueError(
            "adapters alone can be served only of a policy with plain LoRA on linear layers: no modules_to_save, no "
            "rows of new tokens; push all weights (VLLMSampler: MergedWeights, ServerSampler: VLLMRoutes)"
        )
    return policy.adapters


def vocabulary_size(policy: RolloutPolicy) -> int:
    """Tokens that the policy has rows for: an engine can name no others.

    Args:
        policy: What is served.
    """
    config = policy.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return max(len(policy.tokenizer), getattr(text, "vocab_size", 0))


@runtime_checkable
class Following(Protocol):
    """A sampler that follows the policy: opened before each round, closed after it."""

    def open(self, policy: RolloutPolicy) -> None:
        """Generate from this policy, as it is now, from here on."""

    def close(self) -> None:
        """Give back the memory that training needs; :meth:`open` comes again before the next round."""


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are drawn.

    Attributes:
        temperature: The paper's is 0.8; 0 is greedy, for one answer to a prompt. What lies between 0 and 1e-5 would
            overflow in fp32, and is refused.
        top_p: Draw from the smallest set of tokens with this probability; 1 for all.
        top_k: Draw from so many of the most probable tokens; 0 for all.
        max_new_tokens: Most tokens of an answer; one that is longer is cut off, with finish reason ``length``.
        stop: Texts that end an answer; they are left out of it.

    Raises:
        ValueError: If a setting is out of its range.
    """

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, good, range_ in (
            ("temperature", self.temperature == 0 or 1e-5 <= self.temperature < float("inf"), "of at least 1e-5, or 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
        ):
            if not good:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; give a number {range_}")

        if not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError("sampling.stop holds an empty text, which would end every answer at once; take it out")

    def require_draws(self, n: int) -> None:
        """Refuse to draw several answers where all would be the same.

        Args:
            n: Answers to each prompt.

        Raises:
            ValueError: If there are several, and decoding is greedy.
        """
        if n > 1 and self.temperature == 0:
            raise ValueError(f"sampling.temperature is 0, so {n} answers to a prompt would be the same; raise it")


class EngineError(OSError):
    """What generates has failed. Nothing that was finished is lost: the round goes on with the next start."""
