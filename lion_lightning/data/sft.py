"""The data of supervised fine-tuning: from a mixture of sources to packed batches."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.encoding.chat import ChatEncoder, Mask
from lion_lightning.data.packing.best_fit import Packing
from lion_lightning.data.selection.filters import DocumentFilters, Overlong
from lion_lightning.data.sources.source import Source
from lion_lightning.models.tokenizer import TokenizerSpec


class SFTDataModule(PackedDataModule):
    """Packed rows of a mixture of conversations and texts.

    >>> data = SFTDataModule([Source("gsm8k/train.jsonl")], TokenizerSpec("smollm2"), validation_share=0.05)

    The sources are tokenized once and found again by content, also by later runs. An example that several sources hold
    is used once, in the first of them; one that is validated on is never trained on.

    Args:
        sources: What to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        validation: What to validate on; None for nothing, or a share of the sources.
        validation_share: Share of the sources' unique examples to hold out where ``validation`` is None; below 1.
        mask: What is trained: ``assistant`` turns, only the ``completion`` after the prompt, or everything (``none``).
        max_length: Tokens of a packed row, and the most that a document may have.
        packing: How documents share rows; None for best-fit decreasing.
        overlong: A longer document: ``truncate`` keeps its start, ``split`` cuts it into parts, ``drop`` leaves it out.
        min_supervised_share: Training documents with a smaller share of supervised tokens are left out; 0 keeps all.
        batch_size: Rows of a micro-batch on each rank.
        seed: Seed of the order of the rows.
        num_workers: Processes that read rows ahead; 0 reads in the training process.
        cache_dir: Folder of the tokenized stores; None for ``$LION_CACHE``, else the user's cache folder.

    Attributes:
        train_mixture: Documents and reports of what is trained, after :meth:`setup`.
        validation_mixture: The same of what validates; None where there is nothing.

    Raises:
        ValueError: An argument makes no sense.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: TokenizerSpec | PreTrainedTokenizerBase,
        validation: list[Source] | None = None,
        validation_share: float = 0.0,
        mask: Mask = "assistant",
        max_length: int = 2048,
        packing: Packing | None = None,
        overlong: Overlong = "truncate",
        min_supervised_share: float = 0.0,
        batch_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Check the arguments; nothing is read before :meth:`prepare_data`."""
        super().__init__(
            sources,
            tokenizer,
            validation=validation,
            validation_share=validation_share,
            filters=DocumentFilters(max_length, overlong, min_supervised_share),
            validation_filters=DocumentFilters(max_length, overlong),
            row_length=max_length,
            packing=packing,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            cache_dir=cache_dir,
        )
        self.mask, self.max_length = mask, max_length
        self.overlong, self.min_supervised_share = overlong, min_supervised_share

    @override
    def make_encoder(self) -> ChatEncoder:
        """Conversations and texts, under the mask."""
        return ChatEncoder(self.tokenizer, self.mask)

    @override
    def settings(self) -> dict[str, Any]:
        """What was asked for, as plain data."""
        names = ("mask", "max_length", "overlong", "min_supervised_share")
        return {name: getattr(self, name) for name in names}
