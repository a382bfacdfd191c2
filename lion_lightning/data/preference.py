"""The data of preference optimization: from a mixture of sources to packed rows of pairs."""

from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.encoding.trees import PairEncoder
from lion_lightning.data.formats.pairing import BestWorst, Pairing
from lion_lightning.data.selection.pair_filters import PairFilters
from lion_lightning.data.sources.source import Source
from lion_lightning.data.trees import TreeDataModule
from lion_lightning.models.tokenizer import TokenizerSpec


class PreferenceDataModule(TreeDataModule):
    """Packed rows of preference pairs, each prompt once for all of its answers, and each answer once for all its pairs.

    >>> data = PreferenceDataModule([Source("preferences.jsonl")], TokenizerSpec("smollm2"), max_prompt_length=512)

    The sources are tokenized once and found again by content, also by later runs. A pair that several sources hold is
    used once, in the first of them; a prompt that is validated on is never trained on, with any answers. What is left
    out, and in which order, see :class:`~lion_lightning.data.selection.pair_filters.PairFilters`; all of it is counted.
    The pairs of one prompt in a source share a tree, which is cut where it is longer than a row.

    Args:
        sources: Sources to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        pairing: How ranked answers become pairs; None for the best against the worst.
        min_margin: Training pairs with a smaller difference of scores are left out; pairs without scores stay.
        max_length_ratio: Training pairs whose longer answer has more than so many times the tokens of the shorter are
            left out; None keeps all.
        **kwargs: Further arguments of :class:`~lion_lightning.data.trees.TreeDataModule`.

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
        min_margin: float = 0.0,
        max_length_ratio: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            sources=sources,
            tokenizer=tokenizer,
            make_filters=partial(PairFilters, min_margin=min_margin, max_length_ratio=max_length_ratio),
            make_validation_filters=PairFilters,
            **kwargs,
        )
        self.pairing = pairing or BestWorst()
        self.min_margin, self.max_length_ratio = min_margin, max_length_ratio

    @override
    def make_encoder(self) -> PairEncoder:
        return PairEncoder(self.tokenizer, self.pairing, self.train_reasoning)

    @override
    def settings(self) -> dict[str, Any]:
        own = {"min_margin": self.min_margin, "max_length_ratio": self.max_length_ratio}
        return {"pairing": type(self.pairing).__name__, **super().settings(), **own}
