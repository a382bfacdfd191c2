"""PairRM: a model that compares two answers at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Model, DebertaV2PreTrainedModel
from typing_extensions import override

from lion_lightning.judges.model import ModelJudge, pad_right, special_tokens
from lion_lightning.judges.pairwise import Comparison, mean_margins
from lion_lightning.judges.text import conversation, escape_special_tokens
from lion_lightning.models.model_configs import stored_config
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.types import Prompt

MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
"""First tokens of the prompt and of both answers; their hidden states are compared."""


class PairRanker(DebertaV2PreTrainedModel):
    """The architecture of PairRM's released weights (LLM-Blender, arXiv 2306.02561): DeBERTa-v3 with a small head.

    The head maps the hidden states at the marks of the source and of a candidate to one score per task.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.pretrained_model = DebertaV2Model(config)  # type: ignore[no-untyped-call]
        drop = getattr(config, "drop_out", 0.0)
        head = (nn.Dropout(drop), nn.Linear(2 * width, width), nn.Tanh(), nn.Dropout(drop))
        self.head_layer = nn.Sequential(*head, nn.Linear(width, getattr(config, "n_tasks", 1)))
        self.post_init()  # type: ignore[no-untyped-call]

    @override
    def forward(self, input_ids: Tensor, attention_mask: Tensor, marks: Sequence[int]) -> Tensor:
        """Compute the preference for the first candidate over the second.

        Args:
            input_ids: ``(texts, tokens)``.
            attention_mask: Of the same shape.
            marks: Ids of :data:`MARKS`, each of which occurs once per text.

        Returns:
            ``(texts,)`` logits that the first candidate is preferred, the mean over tasks.
        """
        hidden = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        source, first, second = (hidden[rows, (input_ids == mark).int().argmax(1)] for mark in marks)
        scores = [self.head_layer(torch.cat([source, candidate], -1)) for candidate in (first, second)]
        difference: Tensor = scores[0] - scores[1]
        return difference.mean(-1)


class PairRMJudge(ModelJudge):
    """PairRM (``llm-blender/PairRM-hf``), the judge of the paper's online stage.

    All different answers to a prompt are compared in both orders. The margin of one answer over another is half the
    difference of the two logits, an answer's score the mean of its margins over the prompt's other answers
    (LLM-Blender's max-logits aggregation). Equal answers tie. ``n`` answers need ``n (n - 1)`` forwards. Scores are
    comparable between answers to the same prompt only.

    Args:
        model: Hugging Face folder or hub id, in the layout of ``llm-blender/PairRM-hf``; safetensors only.
        source_length: Maximum tokens of a prompt; the end of longer ones is truncated, as in LLM-Blender.
        candidate_length: Maximum tokens of an answer.
        **kwargs: Further arguments of :class:`~lion_lightning.judges.model.ModelJudge`.
    """

    def __init__(
        self,
        model: str = "llm-blender/PairRM-hf",
        source_length: int = 1224,
        candidate_length: int = 412,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if min(source_length, candidate_length) < 4:
            raise ValueError("PairRMJudge: source_length and candidate_length must be at least 4")
        self.source_length, self.candidate_length = source_length, candidate_length
        self.tokenizer: Any = None

    @override
    def identity(self) -> dict[str, Any]:
        lengths = {"source_length": self.source_length, "candidate_length": self.candidate_length}
        return {**super().identity(), **lengths}

    @override
    def load(self) -> nn.Module:
        self.tokenizer = TokenizerSpec(self.path, revision=self.revision).load()
        unknown = [mark for mark in MARKS if mark not in self.tokenizer.get_vocab()]
        if unknown:
            raise ValueError(
                f"{self.path}: its tokenizer lacks {', '.join(unknown)}; name a PairRM in the layout of PairRM-hf"
            )
        config = stored_config(self.path, self.revision, trust_remote_code=False)
        # Named here, so that no config names another, which may be code of the hub.
        return self.weights_of(PairRanker, partial(PairRanker, config), config, attn_implementation="eager")

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score the answers to each prompt."""
        sources = [self._encode(MARKS[0], conversation(prompt), self.source_length) for prompt in prompts]

        def compare(comparisons: list[Comparison]) -> list[float]:
            rows = []
            for row, first, second in comparisons:
                one = self._encode(MARKS[1], first, self.candidate_length)
                other = self._encode(MARKS[2], second, self.candidate_length)
                rows.append([*sources[row], *one, *other])
            return self._logits(rows)

        return mean_margins(answers, compare, lambda first, second: (first - second) / 2)

    def _logits(self, rows: Sequence[Sequence[int]]) -> list[float]:
        marks = self.tokenizer.convert_tokens_to_ids(list(MARKS))
        pad = self.tokenizer.pad_token_id or 0

        def forward(places: list[int]) -> Tensor:
            ids, mask = pad_right([rows[place] for place in places], pad, self.model.device)
            logits: Tensor = self.model(ids, mask, marks)
            return logits

        return self.run([len(row) for row in rows], forward)

    def _encode(self, mark: str, text: str, max_length: int) -> list[int]:
        """Tokens of source or candidate, with the special tokens that LLM-Blender adds to each."""
        text = escape_special_tokens(text, [*MARKS, *special_tokens(self.tokenizer)])
        ids: list[int] = self.tokenizer.encode(mark + text, truncation=True, max_length=max_length)
        return ids
