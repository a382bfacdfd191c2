"""The data of objectives on single answers: from a mixture of sources to packed rows of labeled answers."""

from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.encoding.trees import LabeledEncoder
from lion_lightning.data.selection.answer_filters import AnswerFilters
from lion_lightning.data.sources.source import Source
from lion_lightning.data.trees import TreeDataModule
from lion_lightning.models.tokenizer import TokenizerSpec


class UnpairedDataModule(TreeDataModule):
    """Packed rows of single answers, each with a label: 1 where it is wanted, 0 where it is not.

    >>> data = UnpairedDataModule([Source("thumbs.jsonl")], TokenizerSpec("smollm2"), max_prompt_length=512)

    Reads ``prompt``, ``completion`` and ``label`` and their like; preference rows are taken apart, and their answers
    are labeled 1 and 0. Answers of one prompt in a source share a tree, which is cut where it is longer than a row.

    Args:
        sources: Sources to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        mismatched: Whether each tree also gets an answer of the next tree with another prompt, with an unknown value
            (NaN): KTO estimates the KL divergence from them (arXiv 2402.01306, section 4.1). They are the same in every
            epoch, and cost their tokens; objectives without such a term, as BCO and unlikelihood, need none.
        **kwargs: Further arguments of :class:`~lion_lightning.data.trees.TreeDataModule`.

    Attributes:
        train_mixture: Answers and reports for training, after :meth:`setup`.
        validation_mixture: The same for validation; None without validation.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: TokenizerSpec | PreTrainedTokenizerBase,
        *,
        mismatched: bool = True,
        **kwargs: Any,
    ) -> None:
        make_filters = partial(AnswerFilters, mismatched=mismatched)
        super().__init__(
            sources=sources,
            tokenizer=tokenizer,
            make_filters=make_filters,
            make_validation_filters=make_filters,
            **kwargs,
        )
        self.mismatched = mismatched

    @override
    def make_encoder(self) -> LabeledEncoder:
        return LabeledEncoder(self.tokenizer, self.train_reasoning)

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "mismatched": self.mismatched}
