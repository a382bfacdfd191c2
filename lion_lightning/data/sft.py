"""The data of supervised fine-tuning: from a mixture of sources to packed batches."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerBase

from lion_lightning.data.chat import ChatEncoder, Mask
from lion_lightning.data.documents import Selection
from lion_lightning.data.loader import PackedLoader
from lion_lightning.data.mixture import Mixture, Overlong, deduplicate, hold_out, mix, without
from lion_lightning.data.packing import BestFit, Packing
from lion_lightning.data.sources import Source
from lion_lightning.data.tokenized import TokenTable, tokenise
from lion_lightning.models.tokenizer import TokenizerSpec

logger = logging.getLogger(__name__)


class SFTDataModule(LightningDataModule):
    """Packed rows of a mixture of conversations and texts.

    >>> data = SFTDataModule([Source("gsm8k/train.jsonl")], TokenizerSpec("smollm2"), validation_share=0.05)

    The sources are tokenised once and found again by content, also by later runs. An example that several sources hold
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
        cache_dir: Folder of the tokenised stores; None for ``$LION_CACHE``, else the user's cache folder.

    Attributes:
        train: Documents and reports of what is trained, after :meth:`setup`.
        held: The same of what validates; None where there is nothing.

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
        super().__init__()
        _refuse_nonsense(sources, validation, validation_share, max_length, batch_size)
        self.sources, self.validation, self.validation_share = sources, validation, validation_share
        self.mask, self.max_length, self.packing = mask, max_length, packing or BestFit()
        self.overlong, self.min_supervised_share = overlong, min_supervised_share
        self.batch_size, self.seed, self.num_workers, self.cache_dir = batch_size, seed, num_workers, cache_dir
        self._tokenizer = tokenizer
        self.train: Mixture | None = None
        self.held: Mixture | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded on first use."""
        return self._tokenizer.load() if isinstance(self._tokenizer, TokenizerSpec) else self._tokenizer

    @cached_property
    def _encoder(self) -> ChatEncoder:
        return ChatEncoder(self.tokenizer, self.mask)

    def prepare_data(self) -> None:
        """Tokenise every source that no earlier run has tokenised; Lightning calls this in one process of a machine.

        Raises:
            ValueError: A source or a row is wrong, or rows are longer than the model's positions.
        """
        self._refuse_rows_beyond_the_model()
        for source in [*self.sources, *(self.validation or ())]:
            self._tokenised(source)

    def setup(self, stage: str | None = None) -> None:
        """Open the stores and choose the documents, alike on every rank.

        Raises:
            ValueError: A source trains nothing, or nothing is left of the mixture.
        """
        if self.train is not None:
            return
        self._refuse_rows_beyond_the_model()
        train = self._unique(self.sources)
        held = self._unique(self.validation) if self.validation else []
        if held:
            train = without(train, held, "in a validation source")
        elif self.validation_share:
            train, held = self._held_out(train)
        self.train = mix(train, self.max_length, self.overlong, self.min_supervised_share)
        self.held = mix(held, self.max_length, self.overlong) if held else None
        self._log()

    def train_dataloader(self) -> PackedLoader:
        """Shuffled packed rows of this rank."""
        assert self.train is not None, "call setup() first"
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> PackedLoader | list[Any]:
        """Packed rows to validate on, in a fixed order; an empty list where there are none."""
        return self.loader(self.held, shuffle=False) if self.held else []

    def test_dataloader(self) -> PackedLoader | list[Any]:
        """The same rows as for validation."""
        return self.val_dataloader()

    def loader(self, mixture: Mixture, shuffle: bool) -> PackedLoader:
        """Packed rows of a mixture, for this rank where a trainer is attached."""
        place = getattr(self.trainer, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        return PackedLoader(
            mixture.documents,
            mixture.documents.lengths,
            capacity=self.max_length,
            packing=self.packing,
            batch_size=self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=place["rank"],
            world_size=place["num_replicas"],
            num_workers=self.num_workers,
        )

    def description(self) -> dict[str, Any]:
        """The mixture and, after :meth:`setup`, what became of it: plain data for a model card."""
        settings = ("mask", "max_length", "overlong", "min_supervised_share", "validation_share", "seed")
        sides = {"train": self.train, "validation": self.held}
        return {
            **{name: getattr(self, name) for name in settings},
            "packing": type(self.packing).__name__,
            "sources": [_plain(source) for source in self.sources],
            "validation_sources": [_plain(source) for source in self.validation or ()],
            **{
                side: [report.to_dict() for report in mixture.reports] if mixture else []
                for side, mixture in sides.items()
            },
        }

    def _tokenised(self, source: Source) -> TokenTable:
        return tokenise(source, self._encoder, self.cache_dir)

    def _unique(self, sources: Sequence[Source]) -> list[Selection]:
        return deduplicate(sources, [self._tokenised(source) for source in sources])

    def _held_out(self, selections: Sequence[Selection]) -> tuple[list[Selection], list[Selection]]:
        train, held = hold_out(selections, self.validation_share)
        if not any(len(selection.spans.rows) for selection in held):
            count = sum(len(selection.spans.rows) for selection in selections)
            raise ValueError(f"data.validation_share {self.validation_share} of {count} examples is none; raise it")
        return train, held

    def _refuse_rows_beyond_the_model(self) -> None:
        module = getattr(self.trainer, "lightning_module", None)
        positions = getattr(module, "max_positions", None)
        if isinstance(positions, int) and self.max_length > positions:
            raise ValueError(
                f"data.max_length is {self.max_length}, but the model has positions for {positions} tokens; "
                f"set data.max_length to {positions} or less"
            )

    def _log(self) -> None:
        for side, mixture in (("train", self.train), ("validation", self.held)):
            for report in mixture.reports if mixture else ():
                logger.info("%s: %s", side, report)


def _refuse_nonsense(
    sources: Sequence[Source],
    validation: Sequence[Source] | None,
    validation_share: float,
    max_length: int,
    batch_size: int,
) -> None:
    if not sources:
        raise ValueError("data.sources is empty; name at least one source")
    for side in (sources, validation or ()):
        label, count = Counter(source.label for source in side).most_common(1)[0] if side else ("", 0)
        if count > 1:
            raise ValueError(f"{count} sources are called {label!r}; give each a `name` of its own")
    if not 0 <= validation_share < 1:
        raise ValueError(f"data.validation_share is {validation_share}; give a share of at least 0 and below 1")
    if validation and validation_share:
        raise ValueError("data.validation and data.validation_share are both set; leave one of them out")
    if max_length < 2:
        raise ValueError(f"data.max_length is {max_length}; a row needs 2 tokens to predict one")
    if batch_size < 1:
        raise ValueError(f"data.batch_size is {batch_size}; give the rows of a micro-batch, at least 1")


def _plain(source: Source) -> dict[str, Any]:
    transform = source.transform and f"{source.transform.__module__}.{source.transform.__qualname__}"
    return {name: value for name, value in (asdict(source) | {"transform": transform}).items() if value}
