"""Ranks by PairRM: every two answers are read side by side, in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Model, DebertaV2PreTrainedModel
from typing_extensions import override

from lion_lightning.judges.model import Dtype, ModelJudge, pad_right, special_tokens
from lion_lightning.judges.pairwise import distinct, standings
from lion_lightning.judges.text import broken, conversation
from lion_lightning.models.model_configs import stored_config
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.types import Prompt

MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
"""Tokens that the source and both candidates begin with, and whose hidden states are compared."""


class PairRanker(DebertaV2PreTrainedModel):
    """The architecture of PairRM's released weights (LLM-Blender, arXiv 2306.02561): DeBERTa-v3 with a small head.

    The head sees the hidden state of the source's mark beside that of a candidate's, and gives a score a task.
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
        """By how much the first candidate of each text is better than the second.

        Args:
            input_ids: ``(texts, tokens)``.
            attention_mask: Of the same shape.
            marks: Ids of :data:`MARKS`, each of which stands in a text once.

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
    """PairRM (``llm-blender/PairRM-hf``), with which the paper ranks its online answers.

    Every two different answers are compared, in both orders, and the half difference of the two logits is by how much
    one is better. An answer's score is the mean of that over the prompt's other answers (LLM-Blender's max-logits
    aggregation); equal answers tie exactly. Scores compare answers to one prompt, not prompts or rounds. ``n`` answers
    cost ``n (n - 1)`` passes.

    Args:
        model: Hugging Face folder, or a name on the hub, in the layout of ``llm-blender/PairRM-hf``; safetensors only.
        revision: Branch, tag or commit on the hub.
        dtype: What it computes in.
        batch_tokens: Most tokens of a batch, padding included.
        source_length: Most tokens of a prompt; longer ones lose their end, as in LLM-Blender.
        candidate_length: Most tokens of an answer.
    """

    def __init__(
        self,
        model: str = "llm-blender/PairRM-hf",
        revision: str = "main",
        dtype: Dtype = "auto",
        batch_tokens: int = 16384,
        source_length: int = 1224,
        candidate_length: int = 412,
    ) -> None:
        super().__init__(model, revision, dtype, batch_tokens)
        if min(source_length, candidate_length) < 4:
            raise ValueError("PairRMJudge: source_length and candidate_length must be at least 4")
        self.source_length, self.candidate_length = source_length, candidate_length
        self.tokenizer: Any = None

    @override
    def identity(self) -> dict[str, Any]:
        """What decides the scores."""
        lengths = {"source_length": self.source_length, "candidate_length": self.candidate_length}
        return {**super().identity(), **lengths}

    @override
    def load(self) -> nn.Module:
        """Load the tokenizer and the ranker.

        Raises:
            ValueError: The folder holds another kind of model.
        """
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
        """See :class:`~lion_lightning.judges.base.Judge`."""
        sides = [distinct(given) for given in answers]
        compared = [(row, *pair) for row, (texts, _) in enumerate(sides) for pair in permutations(range(len(texts)), 2)]
        sources = [self._piece(MARKS[0], conversation(prompt), self.source_length) for prompt in prompts]
        logits = self._logits([self._ids(sources[row], sides[row][0], a, b) for row, a, b in compared])
        found = dict(zip(compared, logits, strict=True))
        scores = []
        for row, (texts, places) in enumerate(sides):
            size = range(len(texts))
            margins = [[0.0 if a == b else (found[row, a, b] - found[row, b, a]) / 2 for b in size] for a in size]
            scores.append([total / max(len(places) - 1, 1) for total in standings(margins, places)])
        return scores

    def _logits(self, rows: Sequence[Sequence[int]]) -> list[float]:
        marks = self.tokenizer.convert_tokens_to_ids(list(MARKS))
        pad = self.tokenizer.pad_token_id or 0

        def forward(places: list[int]) -> Tensor:
            ids, mask = pad_right([rows[place] for place in places], pad, self.model.device)
            logits: Tensor = self.model(ids, mask, marks)
            return logits

        return self.run([len(row) for row in rows], forward)

    def _ids(self, source: list[int], texts: Sequence[str], first: int, second: int) -> list[int]:
        sides = zip(MARKS[1:], (first, second), strict=True)
        return source + [i for mark, place in sides for i in self._piece(mark, texts[place], self.candidate_length)]

    def _piece(self, mark: str, text: str, most: int) -> list[int]:
        """A part as LLM-Blender encodes it, with its own special tokens; one in the text itself is none."""
        text = broken(text, [*MARKS, *special_tokens(self.tokenizer)])
        ids: list[int] = self.tokenizer.encode(mark + text, truncation=True, max_length=most)
        return ids
