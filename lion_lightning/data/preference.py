"""The data of preference optimization: from a mixture of sources to packed rows of pairs."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.encoding.trees import PairEncoder
from lion_lightning.data.formats.pairing import BestWorst, Pairing
from lion_lightning.data.packing.best_fit import Wrapped
from lion_lightning.data.selection.mixture import require_fitting
from lion_lightning.data.selection.pair_filters import Keep, PairFilters
from lion_lightning.data.sources.source import Source
from lion_lightning.models.tokenizer import TokenizerSpec


class PreferenceDataModule(PackedDataModule):
    """Packed rows of preference pairs, each prompt once for both of its answers.

    >>> data = PreferenceDataModule([Source("preferences.jsonl")], TokenizerSpec("smollm2"), max_prompt_length=512)

    The sources are tokenized once and found again by content, also by later runs. A pair that several sources hold is
    used once, in the first of them; a prompt that is validated on is never trained on, with any answers. What is left
    out, and in which order, see :class:`~lion_lightning.data.selection.pair_filters.PairFilters`; all of it is counted.

    Args:
        sources: Sources to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        pairing: How ranked answers become pairs; None for the best against the worst.
        train_reasoning: Whether the reasoning of the answers is compared, too. Else it is context.
        max_length: Most tokens of a prompt with one of its answers; longer answers lose their end.
        max_prompt_length: Most tokens of a prompt; truncated before the answers are. None for no other limit, and
            pairs whose prompt leaves no room for an answer are left out.
        keep: Which end of a prompt that is too long stays: ``start`` or ``end``.
        min_margin: Training pairs with a smaller difference of scores are left out; pairs without scores stay.
        max_length_ratio: Training pairs whose longer answer has more than so many times the tokens of the shorter are
            left out; None keeps all.
        row_length: Tokens of a packed row; None for twice ``max_length``, which any pair fits.
        **kwargs: Further arguments of :class:`~lion_lightning.data.base.PackedDataModule`.

    Attributes:
        train_mixture: Pairs and reports for training, after :meth:`setup`.
        validation_mixture: The same for validation; None without validation.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: TokenizerSpec | PreTrainedTokenizerBase,
        *,
        pairing: Pairing | None = None,
        train_reasoning: bool = True,
        max_length: int = 2048,
        max_prompt_length: int | None = None,
        keep: Keep = "end",
        min_margin: float = 0.0,
        max_length_ratio: float | None = None,
        row_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            sources=sources,
            tokenizer=tokenizer,
            filters=PairFilters(max_length, max_prompt_length, keep, min_margin, max_length_ratio),
            validation_filters=PairFilters(max_length, max_prompt_length, keep),
            row_length=2 * max_length if row_length is None else row_length,
            **kwargs,
        )
        if isinstance(self.packing, Wrapped):
            raise ValueError(
                "data.packing: Wrapped splits what does not fit a row, and a pair cannot be split; use BestFit"
            )
        if self.row_length < 3:
            raise ValueError(f"data.row_length is {row_length}; a prompt and two answers need 3 tokens at least")
        self.pairing, self.train_reasoning = pairing or BestWorst(), train_reasoning
        self.max_length, self.max_prompt_length, self.keep = max_length, max_prompt_length, keep
        self.min_margin, self.max_length_ratio = min_margin, max_length_ratio

    @override
    def make_encoder(self) -> PairEncoder:
        """Pairs of answers, under the pairing."""
        return PairEncoder(self.tokenizer, self.pairing, self.train_reasoning)

    @override
    def settings(self) -> dict[str, Any]:
        """Settings of the data module, as plain data."""
        names = (
            "train_reasoning",
            "max_length",
            "max_prompt_length",
            "keep",
            "min_margin",
            "max_length_ratio",
            "row_length",
        )
        return {"pairing": type(self.pairing).__name__, **{name: getattr(self, name) for name in names}}

    @override
    def setup(self, stage: str | None = None) -> None:
        """Open the stores and choose the pairs, alike on every rank.

        Raises:
            ValueError: A source trains nothing, nothing is left of the mixture, or a pair is longer than a row.
        """
        super().setup(stage)
        for mixture in (self.train_mixture, self.validation_mixture):
            if mixture is not None:
                require_fitting(mixture.documents, self.row_length)
