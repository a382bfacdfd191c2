"""How the policy's weights get into a vLLM engine of this process: all of them, or adapters alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lion_lightning.ops.logprobs import to_the_end
from lion_lightning.sampling.base import require_adapters

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes of the room that vLLM (0.32) has for adapters."""

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


class EngineWeights(Protocol):
    """Gives an engine, which starts with random weights, those of the policy.

    Attributes:
        sleep_level: Of vLLM's sleep: 1 keeps the engine's weights in the host's memory, 2 drops them.
        request: What each request to the engine takes along as ``lora_request``; None for nothing.
    """

    sleep_level: int
    request: Any

    def options(self, policy: RolloutPolicy) -> dict[str, Any]:
        """Arguments of ``vllm.LLM`` that this needs.

        Args:
            policy: What will be served.
        """

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        """Let the engine serve the policy as it is now; all ranks do this together, each with its engine.

        Args:
            llm: The engine, ``vllm.LLM``.
            policy: Whose weights it gets.
        """


class MergedWeights:
    """All weights before each round, adapters merged, a tensor at a time."""

    sleep_level = 2  # they are stale after the next step anyhow
    request = None

    def options(self, policy: RolloutPolicy) -> dict[str, Any]:
        """See :class:`EngineWeights`."""
        return {}

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        """See :class:`EngineWeights`."""
        _stream(llm, policy.weights())


class AdapterWeights:
    """For LoRA: the base once, and before each round the adapters alone, which the engine puts on by itself."""

    sleep_level = 1

    def __init__(self) -> None:
        self.request: Any = None
        self._pushed = 0
        self._folder: TemporaryDirectory[str] | None = None

    def options(self, policy: RolloutPolicy) -> dict[str, Any]:
        """See :class:`EngineWeights`.

        Raises:
            ValueError: The policy is not made of adapters alone, or they are too large.
        """
        rank = require_adapters(policy).rank
        room = next((size for size in LORA_RANKS if size >= rank), None)
        if room is None:
            raise ValueError(f"adapters of rank {rank} are too large for vLLM; give VLLMSampler weights: MergedWeights")
        return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        """See :class:`EngineWeights`."""
        from vllm.lora.request import LoRARequest

        adapters = require_adapters(policy)
        if not self._pushed:
            with policy.ranks.together():
                _stream(llm, adapters.base())
        folder = TemporaryDirectory(prefix="lion-adapters-")
        adapters.write(Path(folder.name))
        self._pushed += 1  # a name and a number of its own: the engine keeps what it has read under either
        self.request = LoRARequest(f"policy-{self._pushed}", self._pushed, folder.name)
        llm.llm_engine.add_lora(self.request)  # there is room for one, so those before are dropped
        llm.reset_prefix_cache()
        self._folder = folder  # until the next one is there, lest the engine reads it again


def _stream(llm: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    with to_the_end(weights):
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    llm.reset_prefix_cache()  # else what was cached of a prompt still comes from the weights before
