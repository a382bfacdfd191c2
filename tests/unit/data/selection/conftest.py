"""Trees of letters, tokenized and chosen from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.mixture import Filters, Mixture, deduplicate, mix
from lion_lightning.data.selection.pair_filters import PairFilters
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.tokenize import tokenize
from tests.unit.data.letters import LetterTrees

Trees = Callable[..., Mixture]
Selections = Callable[..., list[Selection]]


@pytest.fixture
def selections(tmp_path: Path) -> Selections:
    """The unique examples of sources of trees, each a list of rows."""

    def selections(*sources: list[dict[str, Any]]) -> list[Selection]:
        made = []
        for number, rows in enumerate(sources):
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            made.append(Source(str(path), name="abc"[number]))
        return deduplicate(made, [tokenize(source, LetterTrees(), tmp_path / "cache") for source in made])

    return selections


@pytest.fixture
def trees(selections: Selections) -> Trees:
    """A mixture of one source of trees, filtered."""

    def trees(*rows: dict[str, Any], filters: Filters | None = None, row_length: int | None = None) -> Mixture:
        return mix(selections(list(rows)), filters or PairFilters(16), row_length)

    return trees
