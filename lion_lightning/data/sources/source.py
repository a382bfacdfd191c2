"""Where training examples come from: files, saved data sets and the hub."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import Completion
from lion_lightning.data.formats.unused_columns import is_harmless
from lion_lightning.data.reports.row_messages import RowMessages, add_message
from lion_lightning.data.sources.chat_rows import as_chat, with_system_turn
from lion_lightning.data.sources.local_files import find_splits, kind_of, without_ending
from lion_lightning.data.sources.readers import ChainedRows, DatasetRows, Numbers, Row, Rows, Slice
from lion_lightning.data.sources.text_files import SPLITS
from lion_lightning.data.sources.transforming import Transform, code_of, imported, name_of, transformed
from lion_lightning.errors import first_line

Made = TypeVar("Made")
Read = Callable[[Mapping[str, Any], Mapping[str, str]], Sequence[Made]]
"""Reads the examples in a row, given what the row calls the known columns."""


@dataclass(frozen=True)
class Source:
    """One set of a mixture, as it is named in YAML.

    >>> Source("gsm8k/train.jsonl", columns={"prompt": "question", "completion": "answer"}, fraction=0.5).label
    'gsm8k/train'

    Args:
        path: A ``.jsonl``, ``.ndjson``, ``.json``, ``.parquet``, ``.csv`` or ``.tsv`` file, all but parquet also
            compressed (``.gz``, ``.bz2``, ``.xz``, ``.zst``), a glob of such files, a folder of them, a folder that
            ``save_to_disk`` wrote, or else the id of a data set on the hub.
        split: Name of a split, or part of one as ``datasets`` writes it: ``train[:90%]``. A file has only ``train``,
            unless it is a JSON document with arrays by split; in a folder the names of the files say their splits.
        name: Name in reports and logs; by default it is made from path and split.
        subset: Configuration of a hub data set.
        revision: Commit, tag or branch of a hub data set.
        fraction: Below 1 only this share of the raw rows is read, chosen by ``seed``. Above 1 the examples repeat,
            after duplicates were dropped: 2.5 is all of them twice and a half, chosen by ``seed``, once more.
        seed: Seed of that choice.
        columns: The rows' own name for a known column: ``{"prompt": "question", "completion": "answer"}``.
        transform: Import path of a function that turns a raw row into one row, or several, of a known form. Returning
            ``[]`` skips the row; skipped rows are counted.
        system: System message put before every conversation that has none.
        format: What a plain text is that stands in ``prompt`` (and ``completion``): ``chat`` reads it as ``question``
            (and ``answer``), and a dialogue of ``Human:`` and ``Assistant:`` in any column as its turns, so that the
            chat template shows them; ``text`` trains it as it stands. None is ``text``, with a warning where the
            tokenizer has a chat template.
        ignore: Columns that are of no use, though they may look so.
        on_bad_row: What becomes of a row that cannot be read, rendered or masked: ``error`` stops the run and names
            it; ``skip`` leaves it out, counts it by cause and writes it to a file, unless more than half are so.
        streaming: Whether rows are read while training, instead of tokenized before: for what is too big for the disk.
        weight: Share of the source among those that stream, over the sum of all weights; None is 1.
        iterable: Import path of a function without arguments that returns an iterable of rows, to be streamed; the path
            is then only a name.

    Raises:
        ValueError: The path is empty, the fraction is not a positive number, or the transform cannot be imported.
    """

    path: str
    split: str = "train"
    name: str | None = None
    subset: str | None = None
    revision: str | None = None
    fraction: float = 1.0
    seed: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    transform: Transform | None = None
    system: str | None = None
    format: Literal["chat", "text"] | None = None
    ignore: list[str] = field(default_factory=list)
    on_bad_row: Literal["error", "skip"] = "error"
    streaming: bool = False
    weight: float | None = None
    iterable: Callable[[], Iterable[Mapping[str, Any]]] | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without reading, and import a transform that is given by its name."""
        if isinstance(self.path, Path):
            object.__setattr__(self, "path", str(self.path))
        if isinstance(self.transform, str):
            object.__setattr__(self, "transform", imported(self.transform))
        if isinstance(self.iterable, str):
            object.__setattr__(self, "iterable", imported(self.iterable, "iterable"))
        if self.format not in (None, "chat", "text"):
            raise ValueError(f"{self.path}: format is {self.format!r}; choose chat or text")
        if self.on_bad_row not in ("error", "skip"):
            raise ValueError(f"{self.path}: on_bad_row is {self.on_bad_row!r}; choose error or skip")
        if isinstance(self.ignore, str):
            raise ValueError(f"{self.path}: ignore is the text {self.ignore!r}; give a list of columns")
        if not self.path:
            raise ValueError("a source has an empty path; name a file, a glob, a saved data set or a hub id")
        if not 0 < self.fraction < math.inf:
            raise ValueError(f"{self.path}: fraction is {self.fraction}; give a number above 0 (1 is all rows, once)")
        if self.seed < 0:
            raise ValueError(f"{self.path}: seed is {self.seed}; give at least 0")

    @property
    def label(self) -> str:
        """Name of the source in reports and logs."""
        if self.name:
            return self.name
        path = Path(self.path)
        short = "/".join(without_ending(path).parts[-2:]) if kind_of(path) else self.path
        return short if self.split == "train" else f"{short}:{self.split}"

    def open(self) -> Rows:
        """The rows of the split, all of them.

        Raises:
            ValueError: Nothing is at the path, the split is unknown or empty, or the source streams.
        """
        if self.streaming:
            raise ValueError(
                f"source {self.label} streams, and all of its rows are needed here; leave `streaming` out, and name a "
                "set that fits the disk"
            )
        return open_rows(self.path, self.split, self.subset, self.revision)

    def fetch(self) -> None:
        """Bring a data set of the hub to this machine; with local data there is nothing to do."""
        if not self.streaming and find_splits(self.path) is None:
            self.open()

    def choose(self, count: int) -> Numbers:
        """Which of ``count`` raw rows a fraction below 1 reads, ascending; the same for the same seed.

        Raises:
            ValueError: The fraction leaves no row.
        """
        if self.fraction >= 1:
            return np.arange(count)
        share = round(count * self.fraction)
        if share == 0:
            raise ValueError(f"{self.path}: fraction {self.fraction} of {count} rows leaves none; raise it")
        return np.sort(np.random.default_rng(self.seed).permutation(count)[:share])

    def examples(self, row: Row, read: Read[Made]) -> list[Made]:
        """Turn a raw row into examples: the transform, the known form by an encoder's ``read``, the system message.

        Raises:
            ValueError: A step fails; the message starts with the row's file and line.
        """
        rows = [row.values] if self.transform is None else transformed(self.transform, row)
        try:
            examples: list[Made] = []
            for values in rows:
                examples += self._read(values, read)
            return examples
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error

    def _read(self, values: Mapping[str, Any], read: Read[Made]) -> Sequence[Made]:
        """Examples of a row that a transform has made, if there is one."""
        kept = {name: value for name, value in values.items() if name not in self.ignore}
        for name, own in self.columns.items():
            if kept.get(own) is not None:
                add_message("mapped", name)
        columns = self.columns
        if self.format == "chat":
            kept, columns = as_chat(kept, columns)
        examples = read(kept, columns)
        for example in examples:
            if not isinstance(example.answers[0] if isinstance(example, PromptAnswers) else example, Completion):
                continue
            if self.format == "chat":
                raise ValueError(
                    "`format: chat` is set, but this row is plain text without a prompt; give it a prompt "
                    "or messages, with a `transform`, or set `format: text`"
                )
            add_message("plain text")
        return examples if self.system is None else [with_system_turn(example, self.system) for example in examples]

    def require_columns(self, messages: RowMessages) -> None:
        """Refuse ``columns`` that name what, by the messages about all rows, no row has."""
        for name, own in self.columns.items():
            if name not in messages["mapped"]:
                raise ValueError(
                    f"source {self.label}: columns maps {name} to {own!r}, which no row has; correct the name, or "
                    "leave it out"
                )

    def warnings(self, messages: RowMessages, rows: int, has_chat_template: bool) -> list[str]:
        """Warnings, each with the fix, about so many rows whose messages these are."""
        lines = [f"{text} ({count:,} times)" for text, count in messages["warning"].items()]
        lines += [f"{count:,} of {rows:,} rows are left out: {cause}" for cause, count in messages["left out"].items()]
        if bad := messages["bad row"]:
            causes = ", ".join(f"{cause} ({count:,})" for cause, count in bad.most_common(5))
            lines.append(f"{bad.total():,} of {rows:,} rows are bad and left out; see {messages.bad_rows}: {causes}")
        doubtful = {name: count for name, count in messages["unused"].items() if not is_harmless(name)}
        if doubtful:
            listed = RowMessages.of({"unused": doubtful}).listed("unused", rows)
            lines.append(
                f"not used: {listed}. If a column matters, say with `columns` what it is, or use it in a `transform`; "
                "if not, name it in `ignore`"
            )
        plain = messages["plain text"].total()
        if plain and has_chat_template and self.format is None:
            lines.append(
                f"{plain:,} of {rows:,} rows are plain text, which is read without the tokenizer's chat template. Set "
                "`format: chat` on the source to make each prompt a user's turn and each answer an assistant's, or "
                "`format: text` if plain text is meant"
            )
        return [f"source {self.label}: {line}" for line in lines]

    def description(self) -> dict[str, Any]:
        """Settings that are not empty, as plain data."""
        functions = {name: getattr(self, name) for name in ("transform", "iterable")}
        named = {name: function and name_of(function) for name, function in functions.items()}
        values = asdict(self) | named
        return {name: value for name, value in values.items() if value and (name, value) != ("on_bad_row", "error")}

    def identity(self) -> dict[str, Any]:
        """Settings that decide the examples, as plain data: a part of cache keys, in addition to the rows."""
        subsample = [self.fraction, self.seed] if self.fraction < 1 else None
        transform = code_of(self.transform) if self.transform else None
        read = {"columns": self.columns, "system": self.system, "format": self.format, "ignore": self.ignore}
        return {"subsample": subsample, "transform": transform, "on_bad_row": self.on_bad_row, **read}


def open_rows(path: str, split: str = "train", subset: str | None = None, revision: str | None = None) -> Rows:
    """Find the rows that a path names: a file, a glob or folder of files, a data set saved on disk, or a hub id.

    Args:
        path: What to read; a hub id when nothing of that name is on disk.
        split: Name of a split, or part of one as ``datasets`` writes it (``train[:90%]``). Files have the split
            ``train`` only, folders those that the names of their files say.
        subset: Configuration of a hub data set.
        revision: Commit, tag or branch of a hub data set.

    Raises:
        ValueError: Nothing is there, the split is unknown or empty, or the kind of file is.
    """
    local = find_splits(path)
    if local is None:
        import datasets

        try:
            dataset = datasets.load_dataset(path, subset, split=split, revision=revision)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path}: nothing on disk has this name, and split {split!r} does not load from the hub "
                f"({first_line(error)}); check path, split, subset and the network"
            ) from error
        rows: Rows = DatasetRows(dataset, path)
    elif subset or revision:
        raise ValueError(f"{path}: `subset` and `revision` are for data sets on the hub; leave them out for local data")
    else:
        rows = _split(local, split, path)
    if len(rows) == 0:
        if local is not None and len(local) == 1:
            raise ValueError(f"{path}: it has no rows; name another file, or leave this source out")
        raise ValueError(f"{path}: split {split!r} is empty; name another split, or leave this source out")
    return rows


def _split(splits: Mapping[str, Rows], spec: str, path: str) -> Rows:
    name = spec if spec in splits else SPLITS.get(spec, spec)  # `dev` is `validation`, as `datasets` has it
    if name in splits:
        return splits[name]
    from datasets import ReadInstruction

    try:
        parts = ReadInstruction.from_spec(spec).to_absolute({name: len(rows) for name, rows in splits.items()})
    except (AssertionError, ValueError) as error:
        names = ", ".join(sorted(splits))
        raise ValueError(f"{path}: no split {spec!r} ({first_line(error)}); the splits here are: {names}") from error
    return ChainedRows([Slice(splits[part.splitname], part.from_, part.to) for part in parts])
