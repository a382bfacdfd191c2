"""Weight sync into an in-process vLLM engine: merged weights, or LoRA adapters only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lion_lightning.ops.logprobs import to_the_end
from lion_lightning.sampling.base import require_adapters

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of ``max_lora_rank`` that vLLM 0.32 accepts."""


class EngineWeightSync(Protocol):
    """Loads the policy's weights into an engine that started with random ones.

    Attributes:
        sleep_level: vLLM's sleep level between rounds: 1 keeps the engine's weights in host memory, 2 drops them.
        request: ``lora_request`` of each generation request; None for none.
    """

    sleep_level: int
    request: Any

    def options(self, policy: RolloutPolicy) -> dict[str, Any]:
        """Further arguments of ``vllm.LLM``."""

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        """Load the policy's current weights into the engine; called on all ranks together, each with its own engine."""


class MergedWeightSync:
    """Loads all weights before each round, one tensor at a time, with adapters merged."""

    sleep_level = 2  # the weights are stale after the next training step
    request = None

    def options(self, policy: RolloutPolicy) -> dict[str, Any]:
        """No further arguments."""
        return {}

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        """Load all weights."""
        _stream(llm, policy.weights())


class AdapterWeightSync:
    """Loads the base model once and the LoRA adapters before each round; the engine applies them."""

    sleep_level = 1

    def __init__(self) -> None:
        self.request: Any = None
        self._pushed = 0
        self._folder: TemporaryDirectory[str] | None = None

    def options(self, policy: RolloutPolicy) -> dict[str, Any]:
        """Enable LoRA in the engine, with the smallest rank limit that the adapters fit.

        Raises:
            ValueError: The policy trains more than plain LoRA, or vLLM does not support the rank.
        """
        rank = require_adapters(policy).rank
        max_rank = next((size for size in LORA_RANKS if size >= rank), None)
        if max_rank is None:
            raise ValueError(
                f"vLLM supports adapters up to rank {LORA_RANKS[-1]}, not {rank}; set `weight_sync` of VLLMSampler to "
                "MergedWeightSync"
            )
        return {"enable_lora": True, "max_loras": 1, "max_lora_rank": max_rank}

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        """Load the adapters, and the base model in the first round."""
        from vllm.lora.request import LoRARequest

        adapters = require_adapters(policy)
        if not self._pushed:
            with policy.ranks.together():
                _stream(llm, adapters.base())
        folder = TemporaryDirectory(prefix="lion-adapters-")
        adapters.write(Path(folder.name))
        self._pushed += 1  # a new name and id each time: the engine caches adapters under both
        self.request = LoRARequest(f"policy-{self._pushed}", self._pushed, folder.name)
        llm.llm_engine.add_lora(self.request)  # max_loras is 1, so the previous adapters are evicted
        llm.reset_prefix_cache()
        self._folder = folder  # kept until the next round: the engine may read the files again


def _stream(llm: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    with to_the_end(weights):
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    llm.reset_prefix_cache()  # cached prefixes were computed with the previous weights
