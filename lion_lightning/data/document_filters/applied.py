"""Document filters applied to the examples of a source: decided once, kept in the cache, counted by cause."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lion_lightning import __version__
from lion_lightning.cache import atomic_write, cache_folder, explain_write_errors, hash_json, read_object
from lion_lightning.data.document_filters.base import DocumentFilter, LeftOut
from lion_lightning.data.document_filters.candidates import Candidates
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.example_batch import Encoder
from lion_lightning.distributed.rendezvous import ALONE, WorkerGroup

logger = logging.getLogger(__name__)

_VERSION = 1
_FIX = "remove the file, and it is made again"


@dataclass
class AppliedFilters:
    """The document filters of a data module.

    Attributes:
        rules: The filters, in the order in which they are applied.
        cache_dir: Folder of caches; None for the default.
        decided: The decision of each filter about each source, by the source's name and the filter's position.
    """

    rules: Sequence[DocumentFilter] = ()
    cache_dir: str | Path | None = None
    decided: dict[tuple[str, int], LeftOut] = field(default_factory=dict)

    @classmethod
    def of(
        cls, rules: Sequence[DocumentFilter], sources: Sequence[Source], cache_dir: str | Path | None
    ) -> AppliedFilters:
        """Filters that work on these training sources.

        Raises:
            ValueError: One does not.
        """
        for rule in rules:
            rule.check(sources)
        return cls(rules, cache_dir)

    def read(self) -> None:
        """Read what the filters need, benchmarks or a record, before the work of tokenizing.

        Raises:
            ValueError: It is missing.
        """
        for rule in self.rules:
            rule.identity()

    def apply(self, selection: Selection, encoder: Encoder, workers: WorkerGroup = ALONE) -> Selection:
        """Leave out what the filters leave out of a tokenized source; all workers must call this."""
        for number in range(len(self.rules)):
            if candidates := Candidates.of(selection, encoder):
                selection = leave_out(selection, self.decide(number, candidates, workers))
        return selection

    def decide(self, number: int, candidates: Candidates, workers: WorkerGroup = ALONE) -> LeftOut:
        """A filter's decision, from the cache or decided by the first of the workers.

        Raises:
            ValueError: The filter's decision is not of its form, or the cache cannot be written.
        """
        rule = self.rules[number]
        key = {
            "version": [_VERSION, __version__],
            "filter": rule.identity(),
            "source": candidates.source.path,  # which lines and details name
            "examples": candidates.digest,
        }
        path = cache_folder("document_filters", self.cache_dir) / f"{hash_json(key)}.json"
        count = len(candidates)
        if workers.rank == 0:
            decided = _kept(path, count) or _decided(rule, candidates, path)
        else:
            workers.wait_until(partial(_is_kept, path, count))
            decided = read_decision(path, count)
        name = candidates.source.label
        self.decided[name, number] = decided
        for line in decided.lines:
            logger.info("%s: %s", name, line)
        return decided

    def to_dict(self) -> list[dict[str, Any]]:
        """Settings of the filters and their reports, as plain data for a model card."""
        rules = []
        for number, rule in enumerate(self.rules):
            found = []
            for (name, position), decided in self.decided.items():
                if position == number:
                    found.append({"source": name, **decided.report})
            rules.append({**rule.identity(), "found": found})
        return rules

    def lines(self) -> list[str]:
        """Findings of the filters in each source, for ``lion inspect``."""
        return [f"{name}: {line}" for (name, _), decided in self.decided.items() for line in decided.lines]

    def warnings(self) -> list[str]:
        """Findings that somebody should act on."""
        return [f"source {name}: {line}" for (name, _), decided in self.decided.items() for line in decided.warnings]


def leave_out(selection: Selection, decided: LeftOut) -> Selection:
    """Leave out examples and count them by the first of their causes."""
    left = np.arange(len(selection.spans.numbers))
    for cause, choice in decided.causes.items():
        chosen = choice[left]
        selection, left = selection.filter(~chosen, cause), left[~chosen]
    return selection


def _decided(rule: DocumentFilter, candidates: Candidates, path: Path) -> LeftOut:
    """Let a filter decide, and keep the decision at a path."""
    decided, count = rule.leave_out(candidates), len(candidates)
    for cause, choice in decided.causes.items():
        if np.shape(choice) != (count,) or choice.dtype != np.bool_:
            raise ValueError(
                f"{type(rule).__name__}.leave_out gives {np.shape(choice)} of {np.asarray(choice).dtype} for "
                f"{cause!r}; give an array of bool with one entry for each of the {count} examples"
            )
    written = decided._asdict() | {
        "causes": {cause: np.flatnonzero(choice).tolist() for cause, choice in decided.causes.items()}
    }
    if decided.details:
        written["lines"] = [*decided.lines, f"each row and why it is left out: {path}"]
    with explain_write_errors(path.parent, "decisions of filters"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(written), "utf-8")
    return read_decision(path, count)  # as later runs read it


def _kept(path: Path, count: int) -> LeftOut | None:
    """A decision of an earlier run; None where there is none, or the file is damaged."""
    try:
        return read_decision(path, count) if path.exists() else None
    except ValueError as error:
        logger.warning("A filter decides anew, since its earlier decision is damaged: %s", error)
        return None


def _is_kept(path: Path, count: int) -> bool:
    with suppress(FileNotFoundError, ValueError):  # not yet there, or an earlier one that is damaged
        read_decision(path, count)
        return True
    return False


def read_decision(path: Path, count: int) -> LeftOut:
    """Read what a filter has left out of so many examples.

    Raises:
        ValueError: The file is damaged.
    """
    found = read_object(path, "a decision of a filter", _FIX)
    kinds = {"causes": dict, "report": dict, "lines": list, "warnings": list, "details": list}
    if found.keys() != kinds.keys() or any(type(found[name]) is not kind for name, kind in kinds.items()):
        raise ValueError(f"{path}: not a decision of a filter; {_FIX}")
    causes = {}
    for cause, positions in found["causes"].items():
        numbers = isinstance(positions, list) and all(type(one) is int and 0 <= one < count for one in positions)
        if not numbers:
            raise ValueError(f"{path}: not positions among {count} examples; {_FIX}")
        causes[cause] = np.zeros(count, np.bool_)
        causes[cause][positions] = True
    return LeftOut(**{**found, "causes": causes})
