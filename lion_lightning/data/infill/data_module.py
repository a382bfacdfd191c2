"""The data of infilling: documents of which a share has holes, other ones in each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.encoding.supervision import Mask
from lion_lightning.data.infill.corruption import Corruption
from lion_lightning.data.infill.documents import Infilled
from lion_lightning.data.infill.spans import SpanInfill
from lion_lightning.data.packing.best_fit import Wrapped
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.sft_filters import SFTFilters
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.models.tokenizer import TokenizerSpec


class InfillDataModule(SFTDataModule):
    """Packed rows of documents for a model that continues text and fills holes (CodeGen2, arXiv 2305.02309).

    Each document is trained as it is or, with probability ``share``, with holes and what fills them; that is drawn anew
    in each epoch. Validation sees the infills of the first epoch each time. ``tokenizer.special_tokens`` adds the
    corruption's tokens to a model that lacks them.

    >>> data = InfillDataModule([Source("code.jsonl")], TokenizerSpec("Qwen/Qwen2.5-Coder-0.5B"), FillInMiddle(spm=0))

    Args:
        sources: Sources to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        corruption: How holes are made; None for :class:`SpanInfill`.
        share: Share of the documents that get holes; the others are trained left to right.
        mask: Must be ``none``: all tokens are trained.
        max_length: Tokens of a packed row, and the most that a document may have with what an infill adds.
        **kwargs: Further arguments of :class:`~lion_lightning.data.sft.SFTDataModule`.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: TokenizerSpec | PreTrainedTokenizerBase,
        corruption: Corruption | None = None,
        *,
        share: float = 0.5,
        mask: Mask = "none",
        max_length: int = 2048,
        **kwargs: Any,
    ) -> None:
        super().__init__(sources=sources, tokenizer=tokenizer, mask=mask, max_length=max_length, **kwargs)
        self.corruption, self.share = corruption or SpanInfill(), share
        self._check()
        if share:
            room = max_length - self.corruption.extra
            if room < 2:
                raise ValueError(
                    f"data.max_length is {max_length}, and an infill adds up to {self.corruption.extra} tokens to a "
                    f"document; give at least {self.corruption.extra + 2}"
                )
            self.filters = SFTFilters(room, self.overlong, self.min_supervised_share)
            self.validation_filters = SFTFilters(room, self.overlong)

    def _check(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"data.share is {self.share}; give a share of the documents from 0 to 1")
        if self.mask != "none":
            raise ValueError(
                f"data.mask is {self.mask!r}, and an infill trains all tokens of a document, wherever they move; set "
                "mask: none"
            )
        if isinstance(self.packing, Wrapped):
            raise ValueError("data.packing: Wrapped cuts documents, and one with holes cannot be cut; use BestFit")

    @override
    def settings(self) -> dict[str, Any]:
        return super().settings() | {"share": self.share, "corruption": self.corruption.settings()}

    @override
    def make_documents(self, selections: Sequence[Selection]) -> Infilled:
        return Infilled(selections, self.corruption, self.tokenizer, self.share, self.seed)
