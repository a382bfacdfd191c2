"""What generates answers, and what it may ask of the policy that it generates from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


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


class Ranks(Protocol):
    """This process among those of the training."""

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes what all share."""

    def together(self) -> AbstractContextManager[None]:
        """Wait for the others at the end, and fail where one of them does."""


class Adapters(Protocol):
    """LoRA adapters on linear layers, apart from the base that they are on."""

    @property
    def rank(self) -> int:
        """Rank of the largest."""

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """The weights without adapters, as :meth:`ServedPolicy.weights` gives those with them."""

    def digest(self) -> str:
        """Hash of the adapters."""

    def write(self, folder: Path | None) -> None:
        """Write a folder that peft and engines load adapters from; None to help others to write it."""


class ServedPolicy(Protocol):
    """The policy as samplers see it. All ranks must call its methods together where the weights are sharded."""

    tokenizer: Any

    @property
    def process(self) -> Ranks:
        """This process among the others."""

    @property
    def model(self) -> Any:
        """The causal LM of transformers, adapters on."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    @property
    def end_ids(self) -> Sequence[int]:
        """Tokens that end an answer."""

    @property
    def adapters(self) -> Adapters | None:
        """The adapters, where plain ones on linear layers are all that the policy has beside its base."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, by Hugging Face's names, adapters merged; a tied head comes under both of its names.

        Each is gathered, and merged, when its turn comes, so that the whole model is never there twice. Every rank must
        go through to the end: see :func:`~lion_lightning.ops.logprobs.to_the_end`.
        """

    def write(self, folder: Path | None) -> None:
        """Write a Hugging Face folder that engines load: :meth:`write_settings` and :meth:`weights`.

        Args:
            folder: Where to; None on ranks that only help the others to gather. All return when it is written.
        """

    def write_settings(self, folder: Path) -> None:
        """Write all of such a folder but the weights: config, generation config, tokenizer."""

    def generating(self) -> AbstractContextManager[None]:
        """Evaluation mode without gradients, weights whole on every rank, random state restored afterwards."""

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """``(prompts, vocabulary)`` fp32 log-probs of the token after each prompt."""


def require_adapters(policy: ServedPolicy) -> Adapters:
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


def vocabulary_size(policy: ServedPolicy) -> int:
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

    def open(self, policy: ServedPolicy) -> None:
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
