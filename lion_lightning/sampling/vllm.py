"""Sampling with vLLM in the training process."""

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
from lion_lightning.sampling.engine_weight_sync import AdapterWeightSync, EngineWeightSync, MergedWeightSync
from lion_lightning.sampling.sync_check import SyncCheck
from lion_lightning.types import Answer, Prompt

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy

KEPT = "finished answers of the round are kept; rerun to continue"
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Defaults set before vLLM is imported: GiB of KV cache, and no pinned threads, as training uses the cores too."""


class VLLMSampler:
    """Samples with one vLLM engine per rank, in the training process.

    The engine starts in the first round, without weights. Before every round the policy's weights are copied into it
    one tensor at a time, without touching the disk, and its prefix cache is reset; then a
    :class:`~lion_lightning.sampling.SyncCheck` compares its log-probs with the policy's. On a GPU the engine sleeps
    between rounds and frees its memory for training.

    Args:
        sampling: Sampling parameters; None for the defaults.
        dtype: The engine's dtype; None for the policy's.
        max_model_len: Maximum tokens of prompt and answer; None for the model's number of positions.
        gpu_memory_utilization: Fraction of the GPU memory that the engine may use while it is awake.
        tolerance: Largest difference of log-probs in the sync check; None for 1e-3 in fp32 and 0.2 otherwise.
        weight_sync: What is copied: :class:`~lion_lightning.sampling.MergedWeightSync` (all weights) or
            :class:`~lion_lightning.sampling.AdapterWeightSync` (the base model once, then LoRA adapters). None for the
            latter if the policy trains plain LoRA on linear layers only, else for the former.
        engine: Further arguments of ``vllm.LLM``.
    """

    def __init__(
        self,
        sampling: SamplingSettings | None = None,
        dtype: str | None = None,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.4,
        tolerance: float | None = None,
        weight_sync: EngineWeightSync | None = None,
        engine: dict[str, Any] | None = None,
    ) -> None:
        self.sampling, self.dtype, self.max_model_len = sampling or SamplingSettings(), dtype, max_model_len
        self.gpu_memory_utilization, self.engine = gpu_memory_utilization, engine or {}
        self.tolerance, self.weight_sync = tolerance, weight_sync
        self._sync_check: SyncCheck | None = None
        self._llm: Any = None
        self._folder: Any = None

    def identity(self) -> dict[str, Any]:
        """Settings that determine the answers."""
        return {"sampler": type(self).__name__, "dtype": self.dtype, **asdict(self.sampling)}

    def check_distribution(self) -> None:
        """Refuse settings, and logits processors of the engine, that change the policy's distribution."""
        self.sampling.check_unchanged()
        if self.engine.get("logits_processors"):
            raise ValueError(
                "VLLMSampler: engine has logits_processors, which change what is drawn, and the log-probs that are "
                "trained are those of the policy's own distribution; leave them out"
            )

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """Check that vLLM is installed."""
        require_package("vllm", "VLLMSampler", "vLLM", "vllm")

    def open(self, policy: RolloutPolicy) -> None:
        """Start or wake the engine, sync the policy's weights and check them.

        Raises:
            EngineError: The engine does not start, or does not serve the policy's weights.
            ModuleNotFoundError: vLLM is not installed.
        """
        with policy.ranks.together():
            if self._llm is None:
                self._start(policy)
            elif torch.cuda.is_available():
                self._llm.wake_up()
        assert self._sync_check is not None
        assert self.weight_sync is not None
        with policy.ranks.together(), _engine_errors("cannot load the weights"):
            self.weight_sync.push(self._llm, policy)
        self._sync_check.check(policy, self.next_logps)

    def close(self) -> None:
        """Put the engine to sleep on a GPU."""
        if self._llm is not None and self.weight_sync is not None and torch.cuda.is_available():
            self._llm.sleep(level=self.weight_sync.sleep_level)

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        """Sample ``n`` answers per prompt.

        Raises:
            EngineError: The engine fails.
            ValueError: Prompt and answer exceed the engine's ``max_model_len``.
        """
        self.sampling.check_num_answers(n)
        self.sampling.check_positions(prompts, self._longest, "engine")
        # The engine samples with this process's generators. Per-request seeds are slow, and fail on a CPU once the
        # cache is full and a request has to be recomputed.
        with _engine_errors("failed"), _restored_random_state():
            torch.manual_seed(seed)
            tokens = _tokens(prompt.input_ids for prompt in prompts)
            outputs = self._generate(tokens, self._settings(n))
        answers: list[list[Answer]] = []
        for output in outputs:
            answers.append(list(map(_answer, output.outputs)))
        return answers

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Log-probs of the engine's five most probable next tokens for each prompt, by token id."""
        from vllm import SamplingParams

        one = SamplingParams(max_tokens=1, temperature=0.0, logprobs=5)
        with _engine_errors("failed"):
            outputs = self._generate(_tokens(prompts), one)
        logps: list[dict[int, float]] = []
        for output in outputs:
            top = output.outputs[0].logprobs[0]  # of the first new token of the only answer
            logps.append({token: entry.logprob for token, entry in top.items()})
        return logps

    def _generate(self, tokens: list[dict[str, list[int]]], settings: Any) -> Any:
        assert self.weight_sync is not None
        return self._llm.generate(tokens, settings, use_tqdm=False, lora_request=self.weight_sync.request)

    def _start(self, policy: RolloutPolicy) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if not torch.cuda.is_available():
            for name, value in ON_CPU.items():
                os.environ.setdefault(name, value)
        require_package("vllm", "VLLMSampler", "vLLM", "vllm")
        from vllm import LLM

        self._folder = tempfile.TemporaryDirectory(prefix="lion-vllm-")
        policy.write_settings(Path(self._folder.name))
        self.weight_sync = self.weight_sync or (MergedWeightSync() if policy.adapters is None else AdapterWeightSync())
        dtype = self.dtype or str(policy.model.dtype).removeprefix("torch.")
        on_gpu = {"gpu_memory_utilization": self.gpu_memory_utilization, "enable_sleep_mode": True}
        options: dict[str, Any] = {
            "model": self._folder.name,
            "dtype": dtype,
            "max_model_len": self.max_model_len,
            "load_format": "dummy",  # weights come from the policy
            **self.weight_sync.options(policy),
            **(on_gpu if torch.cuda.is_available() else {"enforce_eager": True}),
            **self.engine,
        }
        with _engine_errors("does not start"), _no_distributed_environment(), _restored_random_state():
            self._llm = LLM(**options)
        self._sync_check = SyncCheck(self.tolerance or (1e-3 if dtype == "float32" else 0.2), self._longest - 1)

    @property
    def _longest(self) -> int:
        return int(self._llm.llm_engine.model_config.max_model_len)

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


def _tokens(prompts: Any) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": list(ids)} for ids in prompts]


def _answer(completion: Any) -> Answer:
    by_string = isinstance(completion.stop_reason, str)  # removed from the text, but not from the token ids
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
def _restored_random_state() -> Iterator[None]:
    """Restore the random state of training at the end."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        yield


@contextmanager
def _no_distributed_environment() -> Iterator[None]:
    """Hide torchrun's environment variables: each rank's engine has a world size of 1."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
