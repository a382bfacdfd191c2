"""Statistics and samples of a data module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lion_lightning.data.on_policy import RoundDataModule
from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.documents import Documents
from lion_lightning.data.selection.mixture import Mixture
from lion_lightning.printing import literal
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.tools.inspect.forms import forms_block
from lion_lightning.tools.inspect.marks import legend, marked, targets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

    from lion_lightning.data.base import PackedDataModule
    from lion_lightning.types import Sample, SampleSegment

_MOST_COLUMNS = 4  # a terminal of 80 characters has no room for more names of sources side by side


def inspect(datamodule: PackedDataModule, rows: int = 3) -> None:
    """Print statistics of each source and of packing, and the loss masks of a few documents or prompts with answers.

    How trained text, its weight and reasoning are told apart, see :mod:`~lion_lightning.tools.inspect.marks`.

    Args:
        datamodule: The data module; its sources are tokenized if needed.
        rows: Number of documents or prompts to show; at least one per source unless it is 0.

    Raises:
        ValueError: A source cannot be read or has no supervised token, or the mixture is empty.
    """
    from rich.console import Console

    console = Console(soft_wrap=True)
    datamodule.prepare_data()
    datamodule.setup()
    training, training_title = datamodule.train_mixture, "Training"
    if datamodule.streamed is not None:
        training, training_title = (
            datamodule.streamed.head(datamodule.row_length),
            "Training, the first rows of each stream",
        )
    for title, mixture in ((training_title, training), ("Validation", datamodule.validation_mixture)):
        if mixture is not None:
            console.print(_table(title, mixture.reports))
            lines = _packing(datamodule, mixture)
            for report in mixture.reports:
                lines += [f"{report.name}: {change}" for change in report.changes()]
            lines += mixture.documents.notes()
            lines += datamodule.document_filters.lines() if mixture is training else []
            lines += [forms_block(report.name, report.messages, report.kind) for report in mixture.reports]
            console.print(literal("\n".join(lines)))
            console.print()
    if training is not None:
        _show(console, datamodule.tokenizer, training, rows)
    if isinstance(datamodule, RoundDataModule):
        _show_prompts(console, datamodule.pool, rows)


def _show_prompts(console: Console, pool: PromptPool, rows: int) -> None:
    left_out = "".join(f"; left out, {cause}: {count:,}" for cause, count in pool.left_out.items())
    console.print(literal(f"Prompts: {len(pool):,}{left_out}. Their answers come with each round; see `lion rounds`."))
    for line in pool.document_filters.lines():
        console.print(literal(line))
    for name, messages in pool.messages.items():
        lines = [f"{name}: {line}" for line in messages.describe(pool.sizes[name])]
        console.print(literal("\n".join([*lines, forms_block(name, messages, "prompts")])))
    for asked in pool.take(np.linspace(0, len(pool), rows, endpoint=False, dtype=int).tolist()):
        heading = f"--- {asked.prompt.where}, {len(asked.prompt.input_ids):,} tokens"
        console.print(literal(f"{heading}\n{asked.prompt.text}"))


def _table(title: str, reports: Sequence[SourceReport]) -> Table:
    from rich.table import Table

    rows = [report.table_row() for report in reports]
    table = Table(title=title, title_justify="left")
    if len(rows) > _MOST_COLUMNS:
        for name in rows[0]:
            table.add_column(name, justify="left" if name == "source" else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(literal, row.values()))
        return table
    table.add_column("source", no_wrap=True)
    for row in rows:  # a column per source: there are few of them, and many numbers of each
        table.add_column(literal(row["source"]), justify="right", overflow="fold")
    for name in rows[0]:
        if name != "source":
            table.add_row(name, *(literal(row[name]) for row in rows))
    return table


def _packing(datamodule: PackedDataModule, mixture: Mixture) -> list[str]:
    rows, capacity = datamodule.loader(mixture, shuffle=False).rows, datamodule.row_length
    full = f"{rows.efficiency(capacity):.1%} full"
    lines = [f"{len(rows):,} packed rows of {capacity:,} tokens, {rows.tokens:,} tokens in all: {full}"]
    if shared := mixture.documents.shared:
        share = shared / (rows.tokens + shared)
        what = "prompts and answers" if mixture.documents.shares_answers else "the prompt"
        lines.append(f"sharing {what} saves {shared:,} tokens, {share:.1%} of separate sequences")
    return lines


def _show(console: Console, tokenizer: PreTrainedTokenizerBase, mixture: Mixture, rows: int) -> None:
    documents = mixture.documents
    colors = console.is_terminal and not console.no_color
    positions = _spread(documents, rows)
    if positions:
        console.print(legend(colors))
        console.print()
    for position in positions:
        sample, kind = documents[position], mixture.reports[0].kind
        root, *answers = _as_trained(sample) if kind == "answers" else sample.segments
        console.print(literal(f"--- {sample.source} ({documents.where(position)}), {_counts(root, *answers)}"))
        console.print(marked(tokenizer, root, colors))
        for name, answer in zip(_names(sample, kind), answers, strict=True):
            console.print(literal(f"--- {name}, {_counts(answer)}"))
            console.print(marked(tokenizer, answer, colors))
        if len(sample.pairs) > 1:
            pairs = ", ".join(f"{chosen + 1} over {rejected + 1}" for chosen, rejected in sample.pairs)
            console.print(literal(f"--- pairs of answers: {pairs}"))
        console.print()


def _names(sample: Sample, kind: str) -> list[str]:
    """A name for each answer, with its score or label where that is known; a document has at most a prefix apart."""
    if kind == "documents":
        return ["behind the prefix"] * sample.num_answers
    names = [f"answer {number + 1}" for number in range(sample.num_answers)]
    if sample.pairs == ((0, 1),):
        names = ["chosen", "rejected"]
    if kind == "answers":
        labels = {1.0: "desirable", 0.0: "undesirable"}
        words = [labels.get(value, "mismatched (it answers another prompt)") for value in sample.values]
    else:
        words = ["" if math.isnan(value) else f"score {value:g}" for value in sample.values]
    return [", ".join(filter(None, (name, word))) for name, word in zip(names, words, strict=True)]


def _as_trained(sample: Sample) -> list[SampleSegment]:
    """The segments of labeled answers: mismatched ones, whose label is unknown, are not trained."""
    root, *answers = sample.segments
    made = [root]
    for answer, value in zip(answers, sample.values, strict=True):
        made.append(answer._replace(supervised=answer.supervised & (not math.isnan(value))))
    return made


def _counts(*pieces: SampleSegment) -> str:
    tokens = trained = 0
    for piece in pieces:
        tokens += len(piece.input_ids)
        trained += int(targets(piece).sum())
    return f"{tokens:,} tokens, {trained:,} of them trained"


def _spread(documents: Documents, rows: int) -> list[int]:
    """Positions of ``rows`` documents, equally many per source and evenly spaced in each."""
    chosen: list[int] = []
    for low, high in documents.bounds:
        share = -(-rows // len(documents.bounds))
        chosen += np.linspace(low, high, share, endpoint=False, dtype=int).tolist() if low < high else []
    return list(dict.fromkeys(chosen))
