"""Sampling from a server with an OpenAI-compatible completions API."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lion_lightning.endpoint.client import Endpoint
from lion_lightning.endpoint.replies import Reply
from lion_lightning.models.generation.prompts import with_tokenizer
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.sampling.base import EngineError, SamplingSettings, vocabulary_size
from lion_lightning.sampling.server_weight_sync import WeightSync
from lion_lightning.sampling.sync_check import SyncCheck
from lion_lightning.types import Answer, Prompt

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy

logger = logging.getLogger(__name__)

ENDED = frozenset({"stop", "eos", "eos_token", "stop_sequence"})
"""Finish reasons of complete answers, as different servers call them."""


class ServerSampler:
    """Samples from a server (vLLM, SGLang, ...) through ``/v1/completions``: one request per prompt, many at once.

    Prompts are sent as token ids, so the server's chat template is not used: those of the policy, or of ``tokenizer``
    for a server with another model. Before each round the first rank writes the policy's weights (or its adapters) to a
    folder and requests the server to load them; then a :class:`~lion_lightning.sampling.SyncCheck` compares the
    server's log-probs with the policy's.

    Args:
        url: Address of the server, e.g. ``http://127.0.0.1:8000``.
        weight_sync: How weights reach the server: :class:`~lion_lightning.sampling.VLLMWeightSync` or
            :class:`~lion_lightning.sampling.SGLangWeightSync` (all weights), or
            :class:`~lion_lightning.sampling.VLLMAdapterSync` (LoRA adapters only). None never updates the server's
            model, so that answers are off-policy after the first round.
        sampling: Sampling parameters; None for the defaults.
        model: The model's name on the server; None for the first one that it lists.
        tokenizer: Tokenizer and chat template of the server's model, where that is another than the policy's. Answers
            then come back as text alone.
        tolerance: Largest difference of log-probs in the sync check; None to skip the check, for servers that do not
            return log-probs.
        seeded: Send a seed with each request, for reproducible answers. vLLM 0.32 on a CPU crashes on seeded requests
            that it computes in chunks: set false there.
        api_key_env: Name of the environment variable that holds the server's API key; None for no key.
        timeout: Seconds per request.
        retries: Number of retries of a failed request.
        backoff: Seconds before the first retry; doubled for each further one.
        concurrency: Number of parallel requests.

    Raises:
        ValueError: A server with a tokenizer of its own is to get the policy's weights.
    """

    def __init__(
        self,
        url: str,
        weight_sync: WeightSync | None = None,
        sampling: SamplingSettings | None = None,
        model: str | None = None,
        tokenizer: TokenizerSpec | None = None,
        tolerance: float | None = 0.2,
        seeded: bool = True,
        api_key_env: str | None = None,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 1.0,
        concurrency: int = 32,
    ) -> None:
        if tokenizer is not None and weight_sync is not None:
            raise ValueError(
                "ServerSampler: `tokenizer` is for a server with another model, and `weight_sync` would give it the "
                "policy's weights; remove one"
            )
        self.endpoint = Endpoint(url, api_key_env, timeout, retries, backoff, concurrency)
        self.weight_sync, self.sampling, self.model = weight_sync, sampling or SamplingSettings(), model
        self.seeded, self.tokenizer = seeded, tokenizer
        self._sync_check = SyncCheck(tolerance) if tolerance is not None else None
        self._model_name: str | None = model
        self._vocabulary = 2**31
        self._opened = 0

    def identity(self) -> dict[str, Any]:
        """Settings that determine the answers."""
        tokenizer = None if self.tokenizer is None else asdict(self.tokenizer)
        own = {"model": self.model, "tokenizer": tokenizer}
        return {"sampler": type(self).__name__, **own, **asdict(self.sampling)}

    def check_distribution(self) -> None:
        """Refuse settings that change the policy's distribution, and a server that keeps its first weights."""
        self.sampling.check_unchanged()
        if self.tokenizer is not None:
            raise ValueError(
                "ServerSampler: `tokenizer` says that the server has another model, and what is trained are log-probs "
                "of the policy's own answers; remove it, and set weight_sync"
            )
        if self.weight_sync is None:
            raise ValueError(
                "ServerSampler: weight_sync is not set, so that the server would answer with its first weights, and "
                "the log-probs that are trained are those of the policy that answered; set it"
            )

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """Check that the API key is set, and render some prompts for another model."""
        self.endpoint.require_key()
        self._rendered(prompts)

    def open(self, policy: RolloutPolicy) -> None:
        """Sync the policy's weights to the server and check them.

        Raises:
            ConnectionError: The server does not respond.
            EngineError: The server does not serve the policy's weights.
            ValueError: The weights cannot be loaded.
        """
        self._model_name = self._model_name or self.endpoint.models()[0]
        self._vocabulary = vocabulary_size(policy)
        self._opened += 1
        if self.weight_sync is None:
            if self._opened == 2 and self.tokenizer is None:
                logger.warning(
                    "ServerSampler: `weight_sync` is not set, so the server still has its first weights: from this "
                    "round on its answers are off-policy"
                )
            return
        self._model_name = self.weight_sync.push(policy, self.endpoint) or self._model_name
        if self._sync_check is not None:
            self._sync_check.check(policy, self.next_logps)

    def close(self) -> None:
        """Nothing to free: the server keeps its memory."""

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        """Sample ``n`` answers per prompt.

        Raises:
            ConnectionError: The server does not respond after all retries.
            ValueError: The server refuses a request, or its response has another format.
        """
        self.sampling.check_num_answers(n)
        seeds = np.random.SeedSequence(seed).generate_state(len(prompts)).tolist()
        bodies = [self._body(prompt, n, one) for prompt, one in zip(self._rendered(prompts), seeds, strict=True)]
        replies = self._completions(bodies, "sample")
        return [self._answers(prompt, reply, n) for prompt, reply in zip(prompts, replies, strict=True)]

    def _answers(self, prompt: Prompt, reply: Reply, n: int) -> list[Answer]:
        choices = reply["choices"].items()
        if len(choices) != n:
            raise EngineError(
                f"{self.endpoint.url} returned {len(choices)} of {n} answers to {prompt.where}; "
                "use a server that supports `n`"
            )
        answers = []
        for choice in choices:
            text = choice["text"].text()
            # Any other reason (aborted, filtered, ...) means that the answer is incomplete.
            reason = "stop" if choice["finish_reason"].text() in ENDED else "length"
            ids = choice["token_ids"]
            # A stop string is removed from the text but not from the token ids: drop those.
            if ids.absent or isinstance(choice["stop_reason"].value, str) or self.tokenizer is not None:
                answers.append(Answer(text, reason))
            else:
                tokens = ids.token_ids(self._vocabulary, self.sampling.max_new_tokens)
                answers.append(Answer(text, reason, tokens or None))
        return answers

    def _rendered(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        return prompts if self._loaded_tokenizer is None else with_tokenizer(prompts, self._loaded_tokenizer)

    @cached_property
    def _loaded_tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None if self.tokenizer is None else self.tokenizer.load()

    def _completions(self, bodies: Sequence[Any], title: str) -> list[Reply]:
        replies = self.endpoint.post_all("/v1/completions", bodies, title)
        return [self.endpoint.reply("/v1/completions", one) for one in replies]

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Log-probs of the server's five most probable next tokens for each prompt, by token id.

        Raises:
            EngineError: The server does not return log-probs by token id.
        """
        common = {"model": self._model_name, "max_tokens": 1, "temperature": 0.0, "logprobs": 5}
        bodies = [{**common, "prompt": list(ids), "return_tokens_as_token_ids": True} for ids in prompts]
        logps: list[dict[int, float]] = []
        for reply in self._completions(bodies, "sync check"):
            logprobs = reply["choices"].items()[0]["logprobs"]
            listed = None if logprobs.absent else logprobs["top_logprobs"]
            tops = listed.items()[0] if listed and listed.value else None
            names = list(tops.value) if tops and isinstance(tops.value, dict) else []
            if tops is None or not names or not all(re.fullmatch(r"token_id:\d{1,10}", name) for name in names):
                raise EngineError(
                    f"{self.endpoint.url} returns no log-probs by token id, so its weights cannot be compared with the "
                    "policy's; set `tolerance: null` to skip the comparison"
                )
            logps.append({int(name.removeprefix("token_id:")): tops[name].number() for name in names})
        return logps

    def _body(self, prompt: Prompt, n: int, seed: int) -> dict[str, Any]:
        own = self.sampling
        body: dict[str, Any] = {
            "model": self._model_name,
            "prompt": list(prompt.input_ids),
            "n": n,
            "temperature": own.temperature,
            "top_p": own.top_p,
            "max_tokens": own.max_new_tokens,
            "return_token_ids": True,  # vLLM only; other servers ignore it, and the text is tokenized again
        }
        # Left out, a server takes what its model's generation_config.json recommends (vLLM, SGLang).
        body |= {"top_k": own.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
        body |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        if self.seeded:
            body["seed"] = seed % 2**31
        if own.stop:
            body["stop"] = list(own.stop)
        return body
