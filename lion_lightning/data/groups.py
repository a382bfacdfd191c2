"""The data of group objectives: from a mixture of sources to packed rows of prompts with scored answers."""

from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.encoding.trees import GroupEncoder
from lion_lightning.data.selection.answer_filters import GroupFilters
from lion_lightning.data.sources.source import Source
from lion_lightning.data.trees import TreeDataModule
from lion_lightning.models.tokenizer import TokenizerSpec


class GroupDataModule(TreeDataModule):
    """Packed rows of groups: a prompt with two answers or more, each with a score, compared with each other.

    >>> data = GroupDataModule([Source("ranked.jsonl")], TokenizerSpec("smollm2"), row_length=8192)

    Reads rows with ``answers`` and ``scores``, and preference rows, whose answers have the scores 1 and 0 where the row
    has none. A row is a group: rows of one prompt are not joined, and a group is never cut.

    Args:
        sources: Sources to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        keep_equal: Whether groups whose scores are all equal are trained on; they say nothing of which is better.
        **kwargs: Further arguments of :class:`~lion_lightning.data.trees.TreeDataModule`.

    Attributes:
        train_mixture: Groups and reports for training, after :meth:`setup`.
        validation_mixture: The same for validation; None without validation.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: TokenizerSpec | PreTrainedTokenizerBase,
        *,
        keep_equal: bool = False,
        **kwargs: Any,
    ) -> None:
        make_filters = partial(GroupFilters, keep_equal=keep_equal)
        super().__init__(
            sources=sources,
            tokenizer=tokenizer,
            make_filters=make_filters,
            make_validation_filters=make_filters,
            **kwargs,
        )
        self.keep_equal = keep_equal

    @override
    def make_encoder(self) -> GroupEncoder:
        return GroupEncoder(self.tokenizer, self.train_reasoning)

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "keep_equal": self.keep_equal}
