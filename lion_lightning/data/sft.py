"""The data of supervised fine-tuning: from a mixture of sources to packed batches."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.supervision import Mask
from lion_lightning.data.selection.sft_filters import Overlong, SFTFilters
from lion_lightning.data.sources.source import Source
from lion_lightning.models.tokenizer import TokenizerSpec


class SFTDataModule(PackedDataModule):
    """Packed rows of a mixture of conversations and texts.

    >>> data = SFTDataModule([Source("gsm8k/train.jsonl")], TokenizerSpec("smollm2"), validation_share=0.05)

    The sources are tokenized once and found again by content, also by later runs. An example that several sources hold
    is used once, in the first of them; one that is validated on is never trained on.

    Args:
        sources: Sources to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        mask: What is trained: ``assistant`` turns, only the ``completion`` after the prompt, only the ``last_turn`` of
            the assistant, or everything (``none``).
        train_reasoning: Whether the reasoning of an answer is trained, too; else it is context, with its marks.
        max_length: Tokens of a packed row, and the most that a document may have.
        overlong: A longer document: ``truncate`` keeps its start, ``split`` cuts it into parts, ``drop`` leaves it out.
        min_supervised_share: Training documents with a smaller share of supervised tokens are left out; 0 keeps all.
        **kwargs: Further arguments of :class:`~lion_lightning.data.base.PackedDataModule`.

    Attributes:
        train_mixture: Documents and reports for training, after :meth:`setup`.
        validation_mixture: The same for validation; None without validation.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: TokenizerSpec | PreTrainedTokenizerBase,
        *,
        mask: Mask = "assistant",
        train_reasoning: bool = True,
        max_length: int = 2048,
        overlong: Overlong = "truncate",
        min_supervised_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            sources=sources,
            tokenizer=tokenizer,
            filters=SFTFilters(max_length, overlong, min_supervised_share),
            validation_filters=SFTFilters(max_length, overlong),
            row_length=max_length,
            **kwargs,
        )
        self.mask, self.train_reasoning, self.max_length = mask, train_reasoning, max_length
        self.overlong, self.min_supervised_share = overlong, min_supervised_share

    @override
    def make_encoder(self) -> ChatEncoder:
        return ChatEncoder(self.tokenizer, self.mask, self.train_reasoning)

    @override
    def settings(self) -> dict[str, Any]:
        names = ("mask", "train_reasoning", "max_length", "overlong", "min_supervised_share")
        return {name: getattr(self, name) for name in names}
