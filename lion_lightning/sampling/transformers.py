"""Sampling with transformers' ``generate``: no server, no second copy of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from lion_lightning.ops.logprobs import pad_left
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.types import Answer, Prompt

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy

Criterion = Callable[[Tensor, Any], Tensor]
"""Stopping criterion of ``generate``: token ids and scores to True for each row that ends."""


class TransformersSampler:
    """Samples from the policy in training, on its device, with adapters enabled.

    Prompts of similar length share a batch, padded on the left. Each rank answers its own prompts without waiting for
    the others: sharded weights are gathered for the whole round, one full copy per rank. A subclass changes the
    distribution of the next token by :meth:`processors`.

    Args:
        sampling: Sampling parameters; None for the defaults.
        batch_size: Number of answers generated at once. All answers to a prompt are in one batch, if it holds them.
    """

    def __init__(self, sampling: SamplingSettings | None = None, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"TransformersSampler: batch_size is {batch_size}; give at least 1")
        self.sampling, self.batch_size = sampling or SamplingSettings(), batch_size
        self._policy: RolloutPolicy | None = None
        self._stack = ExitStack()

    def identity(self) -> dict[str, Any]:
        """Settings that determine the answers."""
        return {"sampler": type(self).__name__, **asdict(self.sampling)}

    def check_distribution(self) -> None:
        """Refuse settings, and logits processors of a subclass, that change the policy's distribution."""
        self.sampling.check_unchanged()
        if type(self).processors is not TransformersSampler.processors:
            raise ValueError(
                f"{type(self).__name__}: its logits processors change the distribution that answers are drawn from; "
                "use TransformersSampler where log-probs of the policy itself are needed"
            )

    def processors(self, prompts: Sequence[Prompt], n: int, start: int) -> list[LogitsProcessor]:
        """Logits processors for a batch of ``n`` answers to each of some prompts, applied before temperature and top-p.

        They are made anew for each batch. Their rows are the answers, those to a prompt one after the other.

        Args:
            prompts: The prompts of the batch, which are padded on the left.
            n: Number of answers to each.
            start: Position in a row at which answers begin.
        """
        return []

    def open(self, policy: RolloutPolicy) -> None:
        """Gather the policy's weights."""
        self._policy = policy
        self._stack.enter_context(policy.gathered())

    def close(self) -> None:
        """Free the gathered weights."""
        self._stack.close()
        self._policy = None

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        """Sample ``n`` answers per prompt.

        Raises:
            ValueError: Prompt and answer exceed the model's positions, or ``n`` is over 1 with temperature 0.
        """
        self.sampling.check_num_answers(n)
        limit = getattr(self._opened.model.config, "max_position_embeddings", None)
        self.sampling.check_positions(prompts, limit, "model")
        answers: list[list[Answer]] = [[] for _ in prompts]
        seeds = np.random.SeedSequence(seed).generate_state(len(prompts)).tolist()
        # Longest first, so that running out of memory shows at once.
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place].input_ids))
        size, at_once = max(1, self.batch_size // n), min(n, self.batch_size)
        with self._opened.generating():
            for start in range(0, len(order), size):
                torch.manual_seed(seeds[start // size])
                places = order[start : start + size]
                asked = [prompts[place] for place in places]
                for first in range(0, n, at_once):  # several batches for a prompt with more answers than one holds
                    made = self._generate(asked, min(at_once, n - first))
                    for place, own in zip(places, made, strict=True):
                        answers[place] += own
        return answers

    @property
    def _opened(self) -> RolloutPolicy:
        if self._policy is None:
            raise RuntimeError("call open(policy) before sample()")
        return self._policy

    def _generate(self, prompts: Sequence[Prompt], n: int) -> list[list[Answer]]:
        policy = self._opened
        ids = pad_left([prompt.input_ids for prompt in prompts], 0).to(policy.device)
        mask = pad_left([[1] * len(prompt.input_ids) for prompt in prompts], 0).to(policy.device)
        title, longest = f"tokens of {n * len(prompts)} answers", self.sampling.max_new_tokens
        with tqdm(total=longest, desc=title, delay=10, leave=False, disable=not policy.ranks.is_first) as bar:
            output = policy.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self._config(n),
                logits_processor=LogitsProcessorList(self.processors(prompts, n, ids.shape[1])),
                stopping_criteria=[*self._stops(ids.shape[1]), _counted_by(bar)],
                synced_gpus=False,
            )
        answers = list(map(self._answer, output[:, ids.shape[1] :].tolist()))  # n to each prompt, one after the other
        return [answers[start : start + n] for start in range(0, len(answers), n)]

    def _stops(self, start: int) -> list[Criterion]:
        """Make a stopping criterion for the stop strings, if there are any, for answers that begin at ``start``.

        The one of transformers fails on tokenizers without a token for each character.
        """
        if not self.sampling.stop:
            return []
        # Tokens to decode have at least a character each, but for UTF-8 bytes.
        longest = max(map(len, self.sampling.stop)) + 4

        def stopped(ids: Tensor, scores: Any) -> Tensor:
            found = []
            for text in self._opened.tokenizer.batch_decode(ids[:, max(start, ids.shape[1] - longest) :]):
                found.append(any(stop in text for stop in self.sampling.stop))
            return torch.tensor(found, device=ids.device)

        return [stopped]

    def _config(self, n: int) -> GenerationConfig:
        ends = list(self._opened.end_ids)
        pad = self._opened.tokenizer.pad_token_id
        own = self.sampling
        drawn = {"temperature": own.temperature, "top_p": own.top_p, "top_k": own.top_k} if own.temperature else {}
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=bool(drawn),
            **drawn,
            max_new_tokens=self.sampling.max_new_tokens,
            num_return_sequences=n,
            eos_token_id=ends or None,
            pad_token_id=pad if pad is not None else (ends[0] if ends else 0),
        )

    def _answer(self, row: list[int]) -> Answer:
        answer = self._opened.answer(row)
        stops = [answer.text.find(stop) for stop in self.sampling.stop if stop in answer.text]
        return Answer(answer.text[: min(stops)]) if stops else answer


def _counted_by(bar: tqdm[Any]) -> Criterion:
    """A stopping criterion that stops nothing, but moves a bar by a token: a batch of long answers takes minutes."""

    def counted(ids: Tensor, scores: Any) -> Tensor:
        bar.update()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return counted
