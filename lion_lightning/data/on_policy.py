"""The data of online training: prompts, and the answers of each epoch's round of sampling."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.document_filters.applied import AppliedFilters
from lion_lightning.data.groups import GroupDataModule
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.data.packing.no_batches import NoBatches
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.reports.round_messages import (
    FITTING,
    FIXES,
    NothingToTrainError,
    nothing_to_train,
    warn_of_ties,
)
from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.reports.tree_reports import GroupReport
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.mixture import Mixture, deduplicate, mix, require_fitting
from lion_lightning.data.sources.source import Source
from lion_lightning.data.streaming.loader import StreamLoader
from lion_lightning.data.trees import TreeDataModule
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.rollouts.rounds import Round
from lion_lightning.rollouts.tokens import RoundTokens

logger = logging.getLogger(__name__)

MAX_SKIPPED = 3  # rounds in a row without anything to train on: they end the run


class RoundLoader(PackedLoader):
    """A loader of a round's answers. Another round has others, which is not a change of settings to warn of."""

    @override
    def warn_of_changes(self, state: Mapping[str, Any]) -> None:
        """Log, once, the settings of later rounds that have changed."""
        made_by = {name: state["settings"].get(name) for name in self.settings}
        if made_by != self.settings:
            super().warn_of_changes({**state, "settings": {**self._settings(), **made_by}})


class RoundDataModule(TreeDataModule, ABC):
    """Mixin that makes the data of a stage on-policy: name it before the data module of what the stage trains on.

    ``class OnPolicyDataModule(RoundDataModule, PreferenceDataModule)`` is all of the data of online DPO.

    Lightning asks for each epoch's loader (``trainer.reload_dataloaders_every_n_epochs: 1``), and the loader asks
    ``rounds`` for the epoch's round: :class:`~lion_lightning.callbacks.OnPolicySampling` samples it with the weights
    of that moment, or finds it on disk. So the first epoch is on-policy too, however many workers read ahead. The
    tokens of the answers are read from the round's file.

    Args:
        prompts: Sources of the prompts that the policy answers, in any known form; answers in them are not trained on.
            Prompts of over ``max_prompt_length`` tokens and prompts of the validation set are left out.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        sources: Answers of a data set that every epoch trains on as well; with a fraction below 1, each epoch draws
            anew. (The paper mixes 0.3 of Nectar in.)
        **kwargs: Further arguments of the data module of what is trained.

    Attributes:
        rounds: Gives the round of an epoch; :class:`OnPolicySampling` sets it.
        skipped: Rounds in a row, the present one the last, that had nothing to train on; 0 in an epoch that trains.
        is_used_again: Whether the epoch after one trains on its round as well; set in the same way.
        current_round: The round that the present epoch trains on; None before the first.
        train_mixture: Trees and reports of the current epoch.
        validation_mixture: Trees and reports of the validation data; None without any.

    Raises:
        ValueError: A number is out of range, or there are no prompts.
    """

    items: ClassVar[str]
    """Items of a round: ``pairs``, or ``groups`` of all usable answers to a prompt."""

    loader_class = RoundLoader

    def __init__(
        self,
        prompts: list[Source],
        tokenizer: TokenizerSpec | PreTrainedTokenizerBase,
        sources: list[Source] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(sources=sources or [], tokenizer=tokenizer, **kwargs)
        if not self.train_reasoning:
            raise ValueError(
                "data.train_reasoning: false is for answers of a data set, and sampled answers are compared as they "
                "were written; remove it"
            )
        if not prompts:
            raise ValueError("data.prompts is empty; name at least one source of prompts")
        for name, named in (("prompts", prompts), ("sources", sources or [])):
            for source in named:
                if source.streaming:
                    raise ValueError(
                        f"data.{name}: source {source.label} streams, and each round draws from all of its rows; leave "
                        "`streaming` out, and choose the rows that the rounds need"
                    )
        if self.validation_share and not sources:
            raise ValueError(
                "data.validation_share is a share of data.sources, and there are none; set data.validation"
            )
        AppliedFilters.of(self.document_filters.rules, prompts, self.cache_dir)
        self.prompts = prompts
        self.rounds: Callable[[int], Round] | None = None
        self.is_used_again: Callable[[int], bool] = lambda epoch: False
        self.current_round: Round | None = None
        self.skipped = 0
        self._prepared = False
        self._epoch: int | None = None
        self._validated: frozenset[bytes] = frozenset()

    @override
    def require_sources(self, sources: Sequence[Source]) -> None:
        """Accept a data module without sources: the policy gives the answers."""

    @cached_property
    def pool(self) -> PromptPool:
        """All prompts, read on first use after :meth:`setup`."""
        filters = AppliedFilters(self.document_filters.rules, self.cache_dir)
        pool = PromptPool(self.prompts, self.tokenizer, self._validated, filters)
        self.warn(pool.warnings())
        return pool

    @property
    def prompt_limit(self) -> int:
        """Most tokens of a prompt: ``max_prompt_length``, or what leaves room for one token of an answer."""
        return self.max_prompt_length or self.max_length - 1

    @override
    def row_messages(self) -> dict[str, list[str]]:
        return {
            **super().row_messages(),
            **{name: messages.describe(self.pool.sizes[name]) for name, messages in self.pool.messages.items()},
        }

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "prompts": [source.path for source in self.prompts]}

    @override
    def batch_settings(self) -> dict[str, Any]:
        return {**super().batch_settings(), "prompts": [source.description() for source in self.prompts]}

    @override
    def setup(self, stage: str | None = None) -> None:
        """Choose what validates, alike on every rank; what trains comes with each epoch.

        Raises:
            ValueError: A source trains nothing, or a tree is longer than a row.
        """
        if self._prepared:
            return
        self._prepared = True
        with self.preparing_together():
            _, held = self.split_validation(self.sources)
            groups = chain.from_iterable(selection.groups for selection in held)
            self._validated = frozenset(group.tobytes() for group in groups)
            if held:
                self.validation_mixture = mix(held, self.validation_filters, self.row_length)
                require_fitting(self.validation_mixture.documents, self.row_length)

    @override
    def train_dataloader(self) -> PackedLoader | StreamLoader | NoBatches:  # type: ignore[override]
        """Shuffled packed rows of the current epoch's answers, for this rank.

        A round that has nothing to train on is skipped with a warning, and its epoch has no batches.

        Raises:
            MisconfigurationException: No callback samples rounds.
            ValueError: This and the rounds before have nothing to train on: three in a row, or all of the run.
        """
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        if self._epoch != epoch:
            if self.rounds is None:
                raise MisconfigurationException(
                    f"no callback samples rounds for {type(self).__name__}: add "
                    "lion_lightning.callbacks.OnPolicySampling to trainer.callbacks, or set the data module's `rounds`"
                )
            finished = self.rounds(epoch)
            try:
                with self.preparing_together():
                    self.train_mixture = self._mixture(finished)
                self.skipped = 0
            except NothingToTrainError as error:
                self._skip(epoch, error)
            self._epoch, self.current_round = epoch, finished
        return NoBatches() if self.skipped else super().train_dataloader()

    def _skip(self, epoch: int, error: NothingToTrainError) -> None:
        """Go on without the round of an epoch, unless none before it trained either and none may follow."""
        last = self.trainer is None or epoch + 1 == self.trainer.max_epochs
        if self.skipped + 1 >= MAX_SKIPPED or (last and self.skipped == epoch):
            raise error
        self.skipped, self.train_mixture = self.skipped + 1, None
        logger.warning("%s; this round is skipped, and the run goes on", error.problem)

    def report(self, finished: Round) -> dict[str, Any]:
        """Report on what was kept of a round and left out, as plain data; empty if it has nothing to train on."""
        reports = self.train_mixture.reports if self.train_mixture is not None and finished.num_items else []
        return reports[0].to_dict() if reports else {}

    def keeps_any_of(self, finished: Round) -> bool:
        """True if an epoch on a finished round has something to train on: its own, filtered, or ``sources``."""
        return bool(self.sources) or (finished.num_items > 0 and self._has_trainable(self._filtered(finished)))

    def _has_trainable(self, reports: Sequence[SourceReport]) -> bool:
        return any(report.kept.documents for report in reports) and not self.problem(reports)

    def _filtered(self, finished: Round) -> list[SourceReport]:
        """Reports on the items of a round that the filters keep."""
        kept = [self.filters.apply(selection) for selection in self._sampled(finished)]
        return [self.filters.report.of(selection, np.arange(len(selection.spans.numbers))) for selection in kept]

    def problem(self, reports: Sequence[SourceReport]) -> str:
        """Why nothing can be learned from the kept items of an epoch; empty if something can."""
        return ""

    def _mixture(self, finished: Round) -> Mixture:
        """Items of a round, and the sources."""
        # A fraction below 1 of a source is another draw in each round.
        sources = [replace(source, seed=source.seed + finished.number) for source in self.sources]
        try:
            selections = [*self._sampled(finished), *self.split_validation(sources)[0]]
            mixture = mix(selections, self.filters, self.row_length)
            if problem := self.problem(mixture.reports):
                raise ValueError(problem)
        except ValueError as error:
            reports = self._filtered(finished) if finished.num_items else []
            why = f" ({error})" if any(report.kept.documents for report in reports) else ""
            problem, fix = f"{nothing_to_train(finished, reports)}{why}", FIXES[self.items]
            if not self.sources:
                fix += ". The next start samples this round again, unless the filters then keep some of its "
                fix += self.items
            kept = bool(self.sources) or self._has_trainable(reports)
            raise (ValueError(f"{problem}; {fix}") if kept else NothingToTrainError(problem, fix)) from error
        require_fitting(mixture.documents, self.row_length, FITTING[self.items])
        for report in mixture.reports:
            logger.info("%s", report)
        if not finished.num_items:
            logger.warning("%s; this epoch trains on data.sources alone", nothing_to_train(finished))
        else:
            warn_of_ties(mixture.reports[0])
        return mixture

    def _sampled(self, finished: Round) -> list[Selection]:
        """Training items of a round, read as tokens from its file."""
        if finished.num_items:
            source = Source(str(finished.path), name=f"round {finished.number}")
            return deduplicate([source], [RoundTokens(finished.path, groups=self.items == "groups")])
        if not self.sources:
            raise ValueError(f"no {self.items[:-1]} was made")
        return []


class OnPolicyDataModule(RoundDataModule, PreferenceDataModule):
    """Packed rows of pairs of the policy's own answers, new ones each epoch; all of a prompt's answers once.

    ``pairing`` is for ``sources`` alone: :class:`~lion_lightning.callbacks.OnPolicySampling` pairs sampled answers.
    """

    items: ClassVar[str] = "pairs"


class OnPolicyGroupDataModule(RoundDataModule, GroupDataModule):
    """Packed rows of groups of the policy's own answers, new ones each epoch: all usable answers to a prompt.

    Their values are the judge's scores; no pairs are made.
    """

    items: ClassVar[str] = "groups"

    @override
    def problem(self, reports: Sequence[SourceReport]) -> str:
        loss = getattr(self.trainer.lightning_module, "loss", None) if self.trainer is not None else None
        groups = sum(report.prompts for report in reports if isinstance(report, GroupReport))
        equal = sum(report.equal for report in reports if isinstance(report, GroupReport))
        if equal < groups or getattr(loss, "learns_from_equal", True):
            return ""
        return (
            f"the scores of each of the {groups} groups that data.keep_equal keeps are equal, and "
            f"{type(loss).__name__} learns from differences alone"
        )
