"""Sampling under dynamic blocking: behind a token of the source, its successor there is impossible for one step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from typing_extensions import override

from examples.nonfree.dynamic_blocking.blocking import START, Active, Blocking, BlockingDictionary
from lion_lightning.sampling import SamplingSettings, TransformersSampler
from lion_lightning.types import Answer, Prompt


class BlockedSuccessors(LogitsProcessor):
    """Makes the successors of the last token in a dictionary impossible, for the next token alone.

    Args:
        active: A dictionary for each answer, or for each prompt of a beam search: rows are dealt to them evenly.
        start: Position in a row at which answers begin: only what stands behind it counts as said.
        ends: Tokens that end an answer, which are never blocked.
    """

    def __init__(self, active: Sequence[Active], start: int, ends: Collection[int] = ()) -> None:
        self.active = [{token: sorted(blocked - set(ends)) for token, blocked in one.items()} for one in active]
        self.start = start

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = len(input_ids)
        last = input_ids[:, -1].tolist() if input_ids.shape[1] > self.start else [START] * rows
        scores = scores.clone()
        for row, token in enumerate(last):
            active = self.active[row * len(self.active) // rows]
            scores[row, active.get(token, [])] = -torch.inf
        if bool(scores.isneginf().all(-1).any()):
            raise ValueError("blocking leaves no token that could come next; lower blocking.p, or add to blocking.keep")
        return scores


class BlockingSampler(TransformersSampler):
    """Samples answers that cannot repeat what the source says, by a dictionary of its own for each answer.

    Several greedy answers differ by their dictionaries. The paper searches with 4 beams in each, of which it keeps 2.

    Args:
        sampling: Sampling parameters; None for the defaults.
        batch_size: Number of answers generated at once.
        blocking: What is blocked; None for the paper's settings.
        column: Column of a prompt's row that has the source; None for the last question.
        lead: What answers begin with before their first word, a space in plain text, so that it has the same token.
    """

    def __init__(
        self,
        sampling: SamplingSettings | None = None,
        batch_size: int = 64,
        blocking: Blocking | None = None,
        column: str | None = None,
        lead: str = "",
    ) -> None:
        super().__init__(sampling, batch_size)
        self.blocking, self.column, self.lead = blocking or Blocking(), column, lead

    @override
    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **asdict(self.blocking), "column": self.column, "lead": self.lead}

    @override
    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        if n == 1 or self.sampling.temperature > 0:
            return super().sample(prompts, n, seed)
        if self.blocking.p in (0, 1):
            raise ValueError(
                f"sampling.temperature is 0 and blocking.p is {self.blocking.p}, so the {n} answers per prompt would "
                "be identical; raise the temperature, or set a p between 0 and 1"
            )
        copies: list[Prompt] = []
        for prompt in prompts:
            copies += [prompt] * n  # a greedy answer to each
        answers = super().sample(copies, 1, seed)
        return [[answer for (answer,) in answers[first : first + n]] for first in range(0, len(answers), n)]

    @override
    def processors(self, prompts: Sequence[Prompt], n: int, start: int) -> list[LogitsProcessor]:
        with torch.random.fork_rng(devices=[]):  # with p = 0, the answers are those of TransformersSampler
            seeds = torch.randint(2**62, (len(prompts), n)).tolist()
        active = []
        for prompt, own in zip(prompts, seeds, strict=True):
            dictionary = self._dictionary(prompt)
            active += [dictionary.draw(seed) for seed in own]
        return [BlockedSuccessors(active, start, self._opened.end_ids)]

    def _dictionary(self, prompt: Prompt) -> BlockingDictionary:
        if self.column is not None and not isinstance(prompt.row.get(self.column), str):
            raise ValueError(f"{prompt.where}: no text in column {self.column!r}; the row has {', '.join(prompt.row)}")
        source = prompt.question if self.column is None else prompt.row[self.column]
        try:
            return self.blocking.dictionary(self.lead + source, self._opened.tokenizer)
        except ValueError as error:
            raise ValueError(f"{prompt.where}: {error}") from None
