"""The items of benchmarks, read from their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from lion_lightning.data.decontamination.overlap import split_words
from lion_lightning.data.document_filters.candidates import user_texts
from lion_lightning.data.formats.pairing import PromptAnswer
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.digests import prompt_of
from lion_lightning.rollouts.prompts.forms import recognize_prompt


@dataclass(frozen=True)
class BenchmarkItem:
    """A row of a benchmark.

    Attributes:
        benchmark: Position of the benchmark among all.
        where: Place of the row.
        texts: Words of each text that is looked for.
    """

    benchmark: int
    where: str
    texts: tuple[tuple[str, ...], ...]


def read_items(number: int, source: Source, ngram: int) -> list[BenchmarkItem]:
    """Read the prompts of a benchmark.

    Each user turn of ``ngram`` words or more is looked for; of an item without any its longest turn.

    Args:
        number: Position of the benchmark.
        source: Its rows, in any known form, with or without answers.
        ngram: Words of an n-gram.

    Raises:
        ValueError: It cannot be read, has no rows, or a row has no prompt.
    """
    rows = source.open()
    items = []
    with collect_messages() as messages:
        for row in rows.take(source.choose(len(rows))):
            for prompt in source.examples(row, _read_prompt):
                texts = [tuple(split_words(text)) for text in user_texts(prompt_of(prompt))]
                longest = max(texts, key=len, default=())
                if not longest:
                    raise ValueError(
                        f"{row.where}: the prompt of this benchmark item has no words; leave the row out with a "
                        "`transform`"
                    )
                long = tuple(text for text in texts if len(text) >= ngram)
                items.append(BenchmarkItem(number, row.where, long or (longest,)))
    source.require_columns(messages)
    if not items:
        raise ValueError(f"benchmark {source.label}: its {len(rows)} rows give no prompt; name another")
    return items


def _read_prompt(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[PromptAnswer]:
    prompt = recognize_prompt(row, columns)
    return [] if prompt is None else [prompt]


def digest_of(items: list[BenchmarkItem]) -> str:
    """Hash of the words of all items, in their order."""
    digest = blake2b(digest_size=16)
    for item in items:
        digest.update(repr(item.texts).encode())
    return digest.hexdigest()
