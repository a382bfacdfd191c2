"""Answers by vLLM in the training process, which is given the policy's weights before each round."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lion_lightning.errors import first_line
from lion_lightning.readiness import require_package
from lion_lightning.sampling.base import EngineError, SamplingSettings
from lion_lightning.sampling.sync_check import Probe
from lion_lightning.sampling.weight_sync import AdapterWeights, EngineWeights, MergedWeights
from lion_lightning.types import Answer, Prompt

KEPT = "what is finished of the round is kept: start again, and it goes on"
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Set where they are not, before vLLM is imported: GiB of cache, and no thread pinned: training wants the cores too."""

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


class VLLMSampler:
    """Samples with vLLM's engine in this process, one engine a rank.

    The engine starts in the first round, empty. Before every round the weights are pushed into it, one after the other,
    without a detour over a disk, and its prefix cache is emptied; then a :class:`Probe` compares its log-probs with the
    policy's. On a GPU the engine sleeps between rounds and gives its memory back to training.

    Args:
        sampling: How answers are drawn; None for the defaults.
        dtype: What the engine computes in; None for the policy's dtype.
        max_model_len: Most tokens of a prompt with its answer; None for the model's positions.
        gpu_memory_utilization: Share of a GPU's memory that the engine may take while it is awake.
        tolerance: Of the probe; None for 1e-3 in fp32 and 0.2 otherwise.
        weights: What is pushed: :class:`~lion_lightning.sampling.MergedWeights` (all weights), or
            :class:`~lion_lightning.sampling.AdapterWeights` (the base once, then LoRA's adapters alone); None for the
            latter where the policy is LoRA with nothing but adapters on linear layers, else for the former.
        engine: Further arguments of ``vllm.LLM``.
    """

    def __init__(
        self,
        sampling: SamplingSettings | None = None,
        dtype: str | None = None,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.4,
        tolerance: float | None = None,
        weights: EngineWeights | None = None,
        engine: dict[str, Any] | None = None,
    ) -> None:
        self.sampling, self.dtype, self.max_model_len = sampling or SamplingSettings(), dtype, max_model_len
        self.gpu_memory_utilization, self.engine = gpu_memory_utilization, engine or {}
        self.tolerance, self.weights = tolerance, weights
        self._probe: Probe | None = None
        self._llm: Any = None
        self._folder: Any = None

    def identity(self) -> dict[str, Any]:
        """What decides the answers."""
        return {"sampler": type(self).__name__, "dtype": self.dtype, **asdict(self.sampling)}

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """See :class:`~lion_lightning.readiness.ChecksReady`: vLLM is installed."""
        require_package("vllm", "VLLMSampler", "vLLM", "vllm")

    def open(self, policy: RolloutPolicy) -> None:
        """See :class:`~lion_lightning.sampling.base.Following`.

        Raises:
            EngineError: The engine does not start, or does not serve the policy's weights.
            ModuleNotFoundError: vLLM is not installed.
        """
        with policy.ranks.together():
            if self._llm is None:
                self._start(policy)
            else:
                self._wake()
        assert self._probe is not None
        assert self.weights is not None
        with policy.ranks.together(), _engine_errors("takes no weights"):
            self.weights.push(self._llm, policy)
        self._probe.check(policy, self.next_logps)

    def close(self) -> None:
        """See :class:`~lion_lightning.sampling.base.Following`."""
        if self._llm is not None and self.weights is not None and torch.cuda.is_available():
            self._llm.sleep(level=self.weights.sleep_level)

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        """See :class:`~lion_lightning.sampling.base.Sampler`.

        Raises:
            EngineError: The engine fails.
            ValueError: A prompt leaves no room for an answer.
        """
        self.sampling.require_draws(n)
        self._require_room(prompts)
        # The engine draws from this process's generators. Seeds of single requests are slow, and fail on a CPU as soon
        # as the cache is full and a request has to be computed again.
        with _engine_errors("died"), _own_random_state():
            torch.manual_seed(seed)
            tokens = _tokens(prompt.input_ids for prompt in prompts)
            outputs = self._generate(tokens, self._settings(n))
        return [[_answer(completion) for completion in output.outputs] for output in outputs]

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Log-probs of the engine's five most probable next tokens, for each prompt."""
        from vllm import SamplingParams

        one = SamplingParams(max_tokens=1, temperature=0.0, logprobs=5)
        with _engine_errors("died"):
            outputs = self._generate(_tokens(prompts), one)
        return [{token: entry.logprob for token, entry in out.outputs[0].logprobs[0].items()} for out in outputs]

    def _generate(self, tokens: list[dict[str, list[int]]], settings: Any) -> Any:
        assert self.weights is not None
        return self._llm.generate(tokens, settings, use_tqdm=False, lora_request=self.weights.request)

    def _start(self, policy: RolloutPolicy) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if not torch.cuda.is_available():
            os.environ.update({name: value for name, value in ON_CPU.items() if name not in os.environ})
        require_package("vllm", "VLLMSampler", "vLLM", "vllm")
        from vllm import LLM

        self._folder = tempfile.TemporaryDirectory(prefix="lion-vllm-")
        policy.write_settings(Path(self._folder.name))
        self.weights = self.weights or (MergedWeights() if policy.adapters is None else AdapterWeights())
        dtype = self.dtype or str(policy.model.dtype).removeprefix("torch.")
        options: dict[str, Any] = {
            "model": self._folder.name,
            "dtype": dtype,
            "max_model_len": self.max_model_len,
            "load_format": "dummy",  # weights are pushed
            **self.weights.options(policy),
            **(self._on_gpu() if torch.cuda.is_available() else {"enforce_eager": True}),
            **self.engine,
        }
        with _engine_errors("does not start"), _alone(), _own_random_state():
            self._llm = LLM(**options)
        self._probe = Probe(self.tolerance or (1e-3 if dtype == "float32" else 0.2), self._longest - 1)

    @property
    def _longest(self) -> int:
        return int(self._llm.llm_engine.model_config.max_model_len)

    def _on_gpu(self) -> dict[str, Any]:
        return {"gpu_memory_utilization": self.gpu_memory_utilization, "enable_sleep_mode": True}

    def _wake(self) -> None:
        if torch.cuda.is_available():
            self._llm.wake_up()

    def _settings(self, n: int) -> Any:
        from vllm import SamplingParams

        own = self.sampling
        return SamplingParams(
            temperature=own.temperature,
            top_p=own.top_p,
            top_k=own.top_k,
            max_tokens=own.max_new_tokens,
            stop=list(own.stop) or None,
            n=n,
        )

    def _require_room(self, prompts: Sequence[Prompt]) -> None:
        limit = self._longest
        for prompt in prompts:
            needed = len(prompt.input_ids) + self.sampling.max_new_tokens
            if needed > limit:
                raise ValueError(
                    f"{prompt.where}: the prompt and {self.sampling.max_new_tokens} new tokens need {needed} "
                    f"positions, and the engine has {limit}; lower data.max_prompt_length or sampling.max_new_tokens"
                )


def _tokens(prompts: Any) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": list(ids)} for ids in prompts]


def _answer(completion: Any) -> Answer:
    """A stop string is cut off the text but not off the tokens, so those are left out then."""
    by_string = isinstance(completion.stop_reason, str)
    reason = "length" if completion.finish_reason == "length" else "stop"
    return Answer(completion.text, reason, None if by_string else tuple(completion.token_ids))


@contextmanager
def _engine_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (ModuleNotFoundError, EngineError):
        raise
    except Exception as error:
        raise EngineError(f"the vLLM engine {what} ({first_line(error, with_type=True)}); {KEPT}") from error


@contextmanager
def _own_random_state() -> Iterator[None]:
    """Leave the random state as it was: training goes on with it."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        yield


@contextmanager
def _alone() -> Iterator[None]:
    """Hide the ranks of the training from the engine: each rank's engine is a world of one."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
