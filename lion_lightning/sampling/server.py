"""Answers by a server that speaks OpenAI's protocol."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from lion_lightning.endpoint.client import Endpoint
from lion_lightning.endpoint.replies import Reply
from lion_lightning.sampling.base import EngineError, SamplingSettings, vocabulary_size
from lion_lightning.sampling.server_weight_sync import WeightRoute
from lion_lightning.sampling.sync_check import Probe
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)

ENDED = frozenset({"stop", "eos", "eos_token", "stop_sequence"})
"""What servers call the reason of an answer that the model ended itself."""

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


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
        self._vocabulary = 2**31
        self._opened = 0

    def identity(self) -> dict[str, Any]:
        """What decides the answers."""
        return {"sampler": type(self).__name__, "model": self.model, **asdict(self.sampling)}

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """See :class:`~lion_lightning.readiness.ChecksReady`: the server's key is there."""
        self.endpoint.require_key()

    def open(self, policy: RolloutPolicy) -> None:
        """See :class:`~lion_lightning.sampling.base.Following`.

        Raises:
            ConnectionError: The server does not answer.
            EngineError: It does not serve the policy's weights.
            ValueError: It cannot be given weights.
        """
        self._named = self._named or self.endpoint.models()[0]
        self._vocabulary = vocabulary_size(policy)
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
            ValueError: It refuses a request, or its reply cannot be used.
        """
        self.sampling.require_draws(n)
        seeds = np.random.SeedSequence(seed).generate_state(len(prompts)).tolist()
        bodies = [self._body(prompt, n, one) for prompt, one in zip(prompts, seeds, strict=True)]
        replies = self._completions(bodies, "sample")
        return [self._answers(prompt, reply, n) for prompt, reply in zip(prompts, replies, strict=True)]

    def _answers(self, prompt: Prompt, reply: Reply, n: int) -> list[Answer]:
        choices = reply["choices"].items()
        if len(choices) != n:
            raise EngineError(
                f"{self.endpoint.url} gave {len(choices)} answers of {n} to {prompt.where}; use a server that knows `n`"
            )
        return [self._answer(choice) for choice in choices]

    def _answer(self, choice: Reply) -> Answer:
        """A stop string is cut off the text but not off the tokens, so those are left out then."""
        text, reason, ids = choice["text"].text(), choice["finish_reason"].text(), choice["token_ids"]
        by_string = isinstance(choice["stop_reason"].value, str)
        known = not ids.absent and ids.token_ids(self._vocabulary, self.sampling.max_new_tokens)
        # Whatever else an answer may end for (aborted, filtered, ...), it is not whole.
        return Answer(text, "stop" if reason in ENDED else "length", (known or None) if not by_string else None)

    def _completions(self, bodies: Sequence[Any], title: str) -> list[Reply]:
        route = "/v1/completions"
        return [self.endpoint.said(route, one) for one in self.endpoint.post_all(route, bodies, title)]

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Log-probs of the server's five most probable next tokens, for each prompt.

        Raises:
            EngineError: It does not give them by token id.
        """
        common = {"model": self._named, "max_tokens": 1, "temperature": 0.0, "logprobs": 5}
        bodies = [{**common, "prompt": list(ids), "return_tokens_as_token_ids": True} for ids in prompts]
        return [self._tops(reply["choices"].items()[0]) for reply in self._completions(bodies, "probe")]

    def _tops(self, choice: Reply) -> dict[int, float]:
        logprobs = choice["logprobs"]
        listed = None if logprobs.absent else logprobs["top_logprobs"]
        tops = listed.items()[0] if listed and listed.value else None
        names = list(tops.value) if tops and isinstance(tops.value, dict) else []
        found = {name: re.fullmatch(r"token_id:(\d{1,10})", name) for name in names}
        if tops is None or not found or None in found.values():
            raise EngineError(
                f"{self.endpoint.url} gives no log-probs by token id, so nothing proves that it serves the policy's "
                "weights; set `tolerance: null` to go without proof"
            )
        return {int(match[1]): tops[name].number() for name, match in found.items() if match}

    def _body(self, prompt: Prompt, n: int, seed: int) -> dict[str, Any]:
        own = self.sampling
        body = {
            "model": self._named,
            "prompt": list(prompt.input_ids),
            "n": n,
            "temperature": own.temperature,
            "top_p": own.top_p,
            "max_tokens": own.max_new_tokens,
            "return_token_ids": True,  # vLLM does; others ignore it, and the text is tokenized
        }
        more: dict[str, Any] = {"seed": seed % 2**31 if self.seeded else None}
        more |= {"top_k": own.top_k or None, "stop": list(own.stop) or None}
        return body | {name: value for name, value in more.items() if value is not None}
