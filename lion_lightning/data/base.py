"""Base of the data modules of packed rows: sources in, packed batches out."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.cache import cache_folder
from lion_lightning.data.checks import check_at_least, check_max_positions, check_sources
from lion_lightning.data.document_filters.applied import AppliedFilters
from lion_lightning.data.document_filters.base import DocumentFilter
from lion_lightning.data.packing.best_fit import BestFit, Packing
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.data.reports.description import describe_data, describe_messages, reports_of
from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.documents import Documents, Selection
from lion_lightning.data.selection.mixture import Filters, Mixture, deduplicate, hold_out, mix, remove_shared
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.example_batch import Encoder
from lion_lightning.data.store.tokenize import tokenize
from lion_lightning.data.store.tokenized import TokenTable
from lion_lightning.data.streaming.loader import StreamLoader
from lion_lightning.data.streaming.settings import StreamSettings, streamed_settings
from lion_lightning.data.streaming.streamed import StreamedSources
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.distributed.rendezvous import ALONE, rendezvous
from lion_lightning.distributed.replicas import Replica
from lion_lightning.distributed.same_settings import check_same_on_all_ranks, flat
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.one_lightning import LionDataModule

logger = logging.getLogger(__name__)

KNOWN = ("data.filters", "data.validation_filters", "data.row_length", "data.batch_size", "data.seed")
"""Settings that the loader has itself, or that follow from others."""


class PackedDataModule(LionDataModule, ABC):
    """Packed rows of a mixture of sources; a subclass says how rows are encoded and which of them are left out.

    The sources are tokenized once and found again by content, also by later runs. An example that several sources hold
    is used once, in the first of them; one that is validated on is never trained on.

    Args:
        sources: Sources to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        filters: Filters of the training examples.
        validation_filters: Filters of the validation examples.
        row_length: Tokens of a packed row.
        validation: Sources to validate on; None for none, or a share of the training sources.
        validation_share: Share of the sources' unique examples (of preference pairs: prompts) to hold out where
            ``validation`` is None; below 1.
        packing: How samples share rows; None for best-fit decreasing.
        batch_size: Rows of a micro-batch on each rank.
        seed: Seed of the order of the rows.
        num_workers: Processes that read rows ahead; 0 reads in the training process.
        cache_dir: Folder of the tokenized stores; None for ``$LION_CACHE``, else the user's cache folder.
        stream: How sources with ``streaming: true`` are mixed, shuffled and packed while training.
        document_filters: Rules that leave out examples of the training sources by what they say, in this order.

    Attributes:
        max_length: Most tokens of one sequence, which the model needs positions for.
        train_mixture: Documents and reports for training, after :meth:`setup`.
        validation_mixture: The same for validation; None without validation.
        workers: The processes that share the work of preparing.
        digests: Hash of the examples of each source that was read, by the source's ``id``.
    """

    max_length: int
    loader_class: ClassVar[type[PackedLoader]] = PackedLoader

    def __init__(
        self,
        sources: list[Source],
        tokenizer: TokenizerSpec | PreTrainedTokenizerBase,
        *,
        filters: Filters,
        validation_filters: Filters,
        row_length: int,
        validation: list[Source] | None = None,
        validation_share: float = 0.0,
        packing: Packing | None = None,
        batch_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | Path | None = None,
        stream: StreamSettings | None = None,
        document_filters: list[DocumentFilter] | None = None,
    ) -> None:
        """Check the arguments; nothing is read before :meth:`prepare_data`."""
        super().__init__()
        self.require_sources(sources)
        check_sources(sources, validation, validation_share)
        check_at_least(batch_size=(batch_size, 1), seed=(seed, 0), num_workers=(num_workers, 0))
        self.sources, self.validation, self.validation_share = sources, validation, validation_share
        self.filters, self.validation_filters = filters, validation_filters
        self.row_length, self.packing = row_length, packing or BestFit()
        self.batch_size, self.seed, self.num_workers, self.cache_dir = batch_size, seed, num_workers, cache_dir
        self._tokenizer = tokenizer
        self.document_filters = AppliedFilters.of(document_filters or [], sources, cache_dir)
        self.stream = streamed_settings(stream, sources, validation, validation_share)
        self.streamed: StreamedSources | None = None
        self._stream_loader: StreamLoader | None = None
        self.train_mixture: Mixture | None = None
        self.validation_mixture: Mixture | None = None
        self.workers = ALONE
        self.digests: dict[int, str] = {}
        self._warned: set[str] = set()

    @abstractmethod
    def make_encoder(self) -> Encoder:
        """The encoder of all rows."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The subclass's settings, as plain data: a part of :meth:`description`."""

    def make_documents(self, selections: Sequence[Selection]) -> Documents:
        """The documents of an epoch, from the final selection of each source."""
        return Documents(selections)

    def require_sources(self, sources: Sequence[Source]) -> None:
        """Refuse to train without sources, with a ``ValueError``. A subclass may not need any."""
        if not sources:
            raise ValueError("data.sources is empty; name at least one source")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded on first use."""
        return self._tokenizer.load() if isinstance(self._tokenizer, TokenizerSpec) else self._tokenizer

    @cached_property
    def _encoder(self) -> Encoder:
        return self.make_encoder()

    @override
    def prepare_data(self) -> None:
        """Tokenize every source that no earlier run has tokenized; Lightning calls this in one process of a machine.

        Several processes share that work in :meth:`setup` instead, where all of them raise the same errors.

        Raises:
            ValueError: A source or a row is wrong, or rows are longer than the model's positions.
        """
        sources = [*([] if self.stream else self.sources), *(self.validation or ())]
        if self._ranks.size > 1:
            for source in sources:
                with suppress(Exception):  # setup opens it again, and every rank raises the error
                    source.fetch()
            return
        self.document_filters.read()
        check_max_positions(self.max_length, getattr(self.trainer, "lightning_module", None))
        for source in sources:
            self._tokenized(source)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Make the stores with the other ranks, open them and choose the documents, the same on every rank.

        Raises:
            ValueError: A source or a row is wrong, a source trains nothing, or nothing is left of the mixture.
            RuntimeError: Another rank failed.
        """
        if self.train_mixture is not None or self.streamed is not None:
            return
        with self.preparing_together():
            self.document_filters.read()
            train, held = self.split_validation([] if self.stream else self.sources)
            mixed = partial(mix, row_length=self.row_length, make_documents=self.make_documents)
            if self.stream:
                opening = (self._encoder, self.filters, self.stream, held, self.cache_dir, self.document_filters.rules)
                self.streamed = StreamedSources.open(self.sources, *opening, self.make_documents)
            else:
                self.train_mixture = mixed(train, self.filters)
            self.validation_mixture = mixed(held, self.validation_filters) if held else None
        for line in [*self.reports, *self.notes(), *(self.streamed.describe() if self.streamed else ())]:
            logger.info("train: %s", line)
        for report in reports_of(self.validation_mixture):
            logger.info("validation: %s", report)

    @contextmanager
    def preparing_together(self) -> Iterator[None]:
        """Prepare data with the other ranks, which must all call this: they share the work, and all fail if one does.

        Raises:
            ValueError: The ranks were started with different settings.
            RuntimeError: Another rank failed.
        """
        if self._ranks.size > 1:
            check_same_on_all_ranks(self._ranks, "data", self.batch_settings())
        with rendezvous(self._ranks, cache_folder("groups", self.cache_dir)) as self.workers:
            try:
                yield
            finally:
                self.workers = ALONE

    def batch_settings(self) -> dict[str, Any]:
        """Settings that decide the batches, and must be the same on all ranks."""
        names = ("validation_share", "filters", "validation_filters", "row_length", "packing", "batch_size", "seed")
        return {
            "class_path": type(self).__name__,
            **self.settings(),
            **({"stream": self.stream} if self.stream else {}),
            **{name: getattr(self, name) for name in names},
            "document_filters": [rule.identity() for rule in self.document_filters.rules],
            "sources": [source.description() for source in self.sources],
            "validation": [source.description() for source in self.validation or ()],
        }

    def split_validation(self, sources: Sequence[Source]) -> tuple[list[Selection], list[Selection]]:
        """The unique examples of each training source, for training and for validation."""
        check_max_positions(self.max_length, getattr(self.trainer, "lightning_module", None))
        train = self._unique(sources) if sources else []
        held = self._unique(self.validation) if self.validation else []
        if held:
            train = remove_shared(train, held, "in a validation source")
        elif self.validation_share:
            train, held = hold_out(train, self.validation_share)
        train = [self.document_filters.apply(one, self._encoder, self.workers) for one in train]
        self.warn(self.document_filters.warnings())
        return train, held

    @override
    def train_dataloader(self) -> PackedLoader | StreamLoader:
        """Packed rows of this rank, shuffled unless ``overfit_batches`` repeats a few of them."""
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        if self.streamed is not None:
            options = self._loading() | {"settings": self.batch_settings(), "shuffle": shuffle, "warn": self.warn}
            self._stream_loader = StreamLoader.of(self.streamed, self.trainer, **options)
            return self._stream_loader
        assert self.train_mixture is not None, "call setup() first"
        return self.loader(self.train_mixture, shuffle)

    @override
    def val_dataloader(self) -> PackedLoader | list[Any]:
        """Packed rows to validate on, in a fixed order; an empty list where there are none."""
        return self.loader(self.validation_mixture, shuffle=False) if self.validation_mixture else []

    @override
    def test_dataloader(self) -> PackedLoader | list[Any]:
        return self.val_dataloader()

    def loader(self, mixture: Mixture, shuffle: bool) -> PackedLoader:
        """Packed rows of a mixture, for this rank where a trainer is attached."""
        settings = {name: value for name, value in flat("data", self.batch_settings()) if not name.startswith(KNOWN)}
        return self.loader_class(
            mixture.documents, mixture.documents.lengths, shuffle=shuffle, settings=settings, **self._loading()
        )

    def _loading(self) -> dict[str, Any]:
        """Arguments of both kinds of loaders."""
        replica = Replica.of(getattr(self.trainer, "strategy", None))
        own = {name: getattr(self, name) for name in ("packing", "batch_size", "seed", "num_workers")}
        return {**own, "rank": replica.rank, "world_size": replica.size, "capacity": self.row_length}

    @property
    def reports(self) -> list[SourceReport]:
        """Counts of each training source; of a stream in the present epoch, as far as it was read."""
        return self._stream_loader.reports if self._stream_loader else reports_of(self.train_mixture)

    def description(self) -> dict[str, Any]:
        """Settings, sources and, after :meth:`setup`, their reports, as plain data: for a model card."""
        return describe_data(self)

    @property
    def _ranks(self) -> Ranks:
        return Ranks.of(getattr(self.trainer, "strategy", None))

    def _tokenized(self, source: Source) -> TokenTable:
        table = tokenize(source, self._encoder, self.cache_dir, self.workers)
        source.require_columns(table.messages)
        self.warn(source.warnings(table.messages, table.raw_rows, self.tokenizer.chat_template is not None))
        return table

    def _unique(self, sources: Sequence[Source]) -> list[Selection]:
        tables = [self._tokenized(source) for source in sources]
        self.digests |= {id(source): table.digest for source, table in zip(sources, tables, strict=True)}
        return deduplicate(sources, tables)

    def row_messages(self) -> dict[str, list[str]]:
        """Messages about the rows, by source, for the start-up summary; those about all of them are under ``all``."""
        return describe_messages(self)

    def notes(self) -> list[str]:
        """Lines about the training documents that the reports do not have."""
        return self.train_mixture.documents.notes() if self.train_mixture else []

    def warn(self, warnings: Sequence[str]) -> None:
        """Log warnings, each once and on the first rank only."""
        for text in warnings:
            if self._ranks.is_first and text not in self._warned:
                logger.warning("%s", text)
            self._warned.add(text)
