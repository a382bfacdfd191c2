"""Base of the data modules of prompts with answers."""

from abc import ABC
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.packing.best_fit import Wrapped
from lion_lightning.data.selection.mixture import require_fitting
from lion_lightning.data.selection.tree_filters import Keep, TreeFilters
from lion_lightning.data.sources.source import Source
from lion_lightning.models.tokenizer import TokenizerSpec


class TreeDataModule(PackedDataModule, ABC):
    """Packed rows of trees: a prompt once, and each of its answers once; a subclass says which, and what they say.

    Args:
        sources: Sources to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        make_filters: Filters of the training examples, from the limits of their lengths.
        make_validation_filters: Filters of the validation examples.
        train_reasoning: Whether the reasoning of the answers is trained, too. Else it is context.
        max_length: Most tokens of a prompt with one of its answers; longer answers lose their end.
        max_prompt_length: Most tokens of a prompt; truncated before the answers are. None for no other limit, and
            answers are left out whose prompt leaves no room for them.
        keep: Which end of a prompt that is too long stays: ``start`` or ``end``.
        row_length: Tokens of a packed row; None for twice ``max_length``, which any pair fits.
        **kwargs: Further arguments of :class:`~lion_lightning.data.base.PackedDataModule`.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: TokenizerSpec | PreTrainedTokenizerBase,
        *,
        make_filters: Callable[..., TreeFilters],
        make_validation_filters: Callable[..., TreeFilters],
        train_reasoning: bool = True,
        max_length: int = 2048,
        max_prompt_length: int | None = None,
        keep: Keep = "end",
        row_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            sources=sources,
            tokenizer=tokenizer,
            filters=make_filters(max_length, max_prompt_length, keep),
            validation_filters=make_validation_filters(max_length, max_prompt_length, keep),
            row_length=2 * max_length if row_length is None else row_length,
            **kwargs,
        )
        # Checked here and not in setup, so that a wrong setting costs no tokenization.
        if isinstance(self.packing, Wrapped):
            raise ValueError(
                "data.packing: Wrapped splits what does not fit a row, and a prompt with its answers cannot be split; "
                "use BestFit"
            )
        if self.row_length < 3:
            raise ValueError(f"data.row_length is {row_length}; a prompt and two answers need 3 tokens at least")
        self.train_reasoning = train_reasoning
        self.max_length, self.max_prompt_length, self.keep = max_length, max_prompt_length, keep

    @override
    def settings(self) -> dict[str, Any]:
        names = ("train_reasoning", "max_length", "max_prompt_length", "keep", "row_length")
        return {name: getattr(self, name) for name in names}

    @override
    def setup(self, stage: str | None = None) -> None:
        """Open the stores and choose the trees, alike on every rank.

        Raises:
            ValueError: A source trains nothing, nothing is left of the mixture, a tree is longer than a row, or nothing
                can be learned from what is left (of labeled answers: all labels are equal).
        """
        super().setup(stage)
        for mixture in (self.train_mixture, self.validation_mixture):
            if mixture is not None:
                require_fitting(mixture.documents, self.row_length)
        if self.train_mixture is not None and (problems := self.filters.problems(self.train_mixture.reports)):
            raise ValueError(problems[0])
