"""Answers by a server that speaks OpenAI's protocol."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lion_lightning.endpoint import Endpoint
from lion_lightning.sampling.base import EngineError, SamplingSettings, ServedPolicy
from lion_lightning.sampling.probe import Probe
from lion_lightning.sampling.routes import WeightRoute
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)


class ServerSampler:
    """Samples from a server (vLLM, SGLang, ...) by ``/v1/completions``: ``n`` answers a request, many requests at once.

    Prompts are sent as token ids, so the server's own chat template plays no part. Before each round the policy's
    weights, or its adapters, are written to a folder and the server is told to load them, by the first rank alone; then
    a :class:`Probe` compares its log-probs with the policy's.

    Args:
        url: Address of the server: ``http://127.0.0.1:8000``.
        weights: How weights reach the server: :class:`~lion_lightning.sampling.VLLMRoutes` (all of them),
            :class:`~lion_lightning.sampling.AdapterRoutes` (LoRA's adapters alone), or
            :class:`~lion_lightning.sampling.SGLangRoutes`; None to leave the server's model as it is, which after the
            first epoch is not the policy any more.
        sampling: How answers are drawn; None for the defaults.
        model: The model's name on the server; None to ask for it.
        tolerance: Of the probe; None to push without a probe, for servers that give no log-probs.
        seeded: Whether each request has a seed, so that a server may give the same answers again. Set it to false for
            vLLM 0.32 on a CPU, which such requests bring down as soon as one is computed in parts.
        api_key_env: Name of the environment variable that holds the server's key; None for none.
        timeout: Seconds that a request may take.
        retries: Further tries after a failed request.
        backoff: Seconds before the first of them; each further one waits twice as long.
        concurrency: Requests at once.
    """

    def __init__(
        self,
        url: str,
        weights: WeightRoute | None = None,
        sampling: SamplingSettings | None = None,
        model: str | None = None,
        tolerance: float | None = 0.2,
        seeded: bool = True,
        api_key_env: str | None = None,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 1.0,
        concurrency: int = 32,
    ) -> None:
        self.endpoint = Endpoint(url, api_key_env, timeout, retries, backoff, concurrency)
        self.weights, self.sampling, self.model = weights, sampling or SamplingSettings(), model
        self.seeded = seeded
        self._probe = Probe(tolerance) if tolerance is not None else None
        self._named: str | None = model
        self._opened = 0

    def identity(self) -> dict[str, Any]:
        """What decides the answers."""
        return {"sampler": type(self).__name__, "model": self.model, **asdict(self.sampling)}

    def open(self, policy: ServedPolicy) -> None:
        """See :class:`~lion_lightning.sampling.base.Following`.

        Raises:
            ConnectionError: The server does not answer.
            EngineError: It does not serve the policy's weights.
            ValueError: It cannot be given weights.
        """
        self._named = self._named or str(self.endpoint.get("/v1/models")["data"][0]["id"])
        self._opened += 1
        if self.weights is None:
            if self._opened == 2:
                logger.warning(
                    "ServerSampler: `weights` is not set, so the server's model does not follow the policy, and from "
                    "this round on its answers are not on-policy"
                )
            return
        self._named = self.weights.push(policy, self.endpoint) or self._named
        if self._probe is not None:
            self._probe.check(policy, self.next_logps)

    def close(self) -> None:
        """See :class:`~lion_lightning.sampling.base.Following`; a server keeps its memory."""

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        """See :class:`~lion_lightning.sampling.base.Sampler`.

        Raises:
            ConnectionError: The server does not answer, after all tries.
            ValueError: It refuses a request.
        """
        self.sampling.require_draws(n)
        seeds = np.random.SeedSequence(seed).generate_state(len(prompts)).tolist()
        bodies = [self._body(prompt, n, one) for prompt, one in zip(prompts, seeds, strict=True)]
        replies = self.endpoint.post_all("/v1/completions", bodies, "sample")
        for prompt, reply in zip(prompts, replies, strict=True):
            if len(reply.get("choices", ())) != n:
                raise EngineError(
                    f"{self.endpoint.url} gave {len(reply.get('choices', ()))} answers of {n} to {prompt.where}; use a "
                    "server that knows `n`"
                )
        return [[_answer(choice) for choice in reply["choices"]] for reply in replies]

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Log-probs of the server's five most probable next tokens, for each prompt.

        Raises:
            EngineError: It does not give them by token id.
        """
        common = {"model": self._named, "max_tokens": 1, "temperature": 0.0, "logprobs": 5}
        bodies = [{**common, "prompt": list(ids), "return_tokens_as_token_ids": True} for ids in prompts]
        replies = self.endpoint.post_all("/v1/completions", bodies, "probe")
        return [self._tops(reply["choices"][0]) for reply in replies]

    def _tops(self, choice: Any) -> dict[int, float]:
        tops = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0]
        found = {re.fullmatch(r"token_id:(\d+)", name): value for name, value in tops.items()}
        if not found or None in found:
            raise EngineError(
                f"{self.endpoint.url} gives no log-probs by token id, so nothing proves that it serves the policy's "
                "weights; set `tolerance: null` to go without proof"
            )
        return {int(match[1]): float(value) for match, value in found.items() if match}

    def _body(self, prompt: Prompt, n: int, seed: int) -> dict[str, Any]:
        own = self.sampling
        body = {
            "model": self._named,
            "prompt": list(prompt.input_ids),
            "n": n,
            "temperature": own.temperature,
            "top_p": own.top_p,
            "max_tokens": own.max_new_tokens,
            "return_token_ids": True,  # vLLM does; others ignore it, and the text is tokenised
        }
        more: dict[str, Any] = {"seed": seed % 2**31 if self.seeded else None}
        more |= {"top_k": own.top_k or None, "stop": list(own.stop) or None}
        return body | {name: value for name, value in more.items() if value is not None}


def _answer(choice: Any) -> Answer:
    """A stop string is cut off the text but not off the tokens, so those are left out then."""
    reason = "length" if choice.get("finish_reason") == "length" else "stop"
    ids = choice.get("token_ids")
    return Answer(
        choice["text"], reason, tuple(ids) if ids and not isinstance(choice.get("stop_reason"), str) else None
    )
