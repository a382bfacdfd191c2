"""Where training examples come from: files, saved data sets and the hub."""

import glob
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from lion_lightning.cache import read_object
from lion_lightning.data.formats import Completion, Conversation
from lion_lightning.data.json_text import spelled_out
from lion_lightning.data.preferences import Preference
from lion_lightning.data.readers import (
    Chain,
    DatasetRows,
    JsonArray,
    JsonLines,
    Numbers,
    Parquet,
    Row,
    Rows,
    Slice,
    first_line,
)
from lion_lightning.data.row_notes import RowNotes, note
from lion_lightning.data.turns import Message

Transform = Callable[[dict[str, Any]], Iterable[dict[str, Any]] | dict[str, Any]]
Made = TypeVar("Made")
Read = Callable[[Mapping[str, Any], Mapping[str, str]], Sequence[Made]]
"""Reads the examples in a row, given what the row calls the known columns."""


@dataclass(frozen=True)
class Source:
    """One set of a mixture, as it is named in YAML.

    >>> Source("gsm8k/train.jsonl", columns={"prompt": "question", "completion": "answer"}, fraction=0.5).label
    'gsm8k/train'

    Args:
        path: A ``.jsonl``, ``.json`` or ``.parquet`` file, a glob of such files, a folder that ``save_to_disk`` wrote,
            or else the id of a data set on the hub.
        split: Name of a split, or part of one as ``datasets`` writes it: ``train[:90%]``. Files have only ``train``.
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
            (and ``answer``), so that the chat template shows it; ``text`` trains it as it stands. None is ``text``,
            with a warning where the tokenizer has a chat template.
        ignore: Columns that are of no use, though they may look so.

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

    def __post_init__(self) -> None:
        """Check what can be checked without reading, and import a transform that is given by its name."""
        if isinstance(self.transform, str):
            object.__setattr__(self, "transform", _imported(self.transform))
        if not self.path:
            raise ValueError("a source has an empty path; name a file, a glob, a saved data set or a hub id")
        if not 0 < self.fraction < math.inf:
            raise ValueError(f"{self.path}: fraction is {self.fraction}; give a number above 0 (1 is all rows, once)")

    @property
    def label(self) -> str:
        """Name of the source in reports and logs."""
        if self.name:
            return self.name
        short = "/".join(Path(self.path).with_suffix("").parts[-2:]) if Path(self.path).suffix in _FILES else self.path
        return short if self.split == "train" else f"{short}:{self.split}"

    def open(self) -> Rows:
        """The rows of the split, all of them.

        Raises:
            ValueError: Nothing is at the path, or the split is unknown or empty.
        """
        return open_rows(self.path, self.split, self.subset, self.revision)

    def fetch(self) -> None:
        """Bring a data set of the hub to this machine; with local data there is nothing to do.

        Raises:
            ValueError: It does not load.
        """
        if _local(self.path) is None:
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
            raise ValueError(f"{self.path}: fraction {self.fraction} of {count} rows is none; raise it")
        return np.sort(np.random.default_rng(self.seed).permutation(count)[:share])

    def examples(self, row: Row, read: Read[Made]) -> list[Made]:
        """Turn a raw row into examples: the transform, the known form, then the system message.

        Args:
            row: The raw row.
            read: An encoder's ``read``, which knows the forms.

        Raises:
            ValueError: A step fails; the message starts with the row's place.
        """
        rows = [row.values] if self.transform is None else _transformed(self.transform, row)
        try:
            return [made for values in rows for made in self._read(values, read)]
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error

    def _read(self, values: Mapping[str, Any], read: Read[Made]) -> list[Made]:
        """Examples of a row that a transform has made, if there is one."""
        kept = {name: value for name, value in values.items() if name not in self.ignore}
        for name, own in self.columns.items():
            if kept.get(own) is not None:
                note("mapped", name)
        columns = as_chat(kept, self.columns) if self.format == "chat" else self.columns
        return [self._finished(made) for made in read(kept, columns)]

    def _finished(self, example: Made) -> Made:
        """An example with the system message, plain text noted, or refused where the source is a chat."""
        if _is_plain(example):
            if self.format == "chat":
                raise ValueError(
                    "`format: chat` is set, but this row is plain text without a prompt of its own; give it a prompt "
                    "or messages, with a `transform`, or set `format: text`"
                )
            note("plain text")
        finished: Made = _with_system(example, self.system)
        return finished

    def require_columns(self, notes: RowNotes) -> None:
        """Make sure that some row had what ``columns`` names.

        Args:
            notes: What was found in the rows.

        Raises:
            ValueError: None had.
        """
        for name, own in self.columns.items():
            if name not in notes["mapped"]:
                raise ValueError(
                    f"source {self.label}: columns maps {name} to {own!r}, which no row has; correct the name, or "
                    "leave it out"
                )

    def description(self) -> dict[str, Any]:
        """What was asked for, as plain data, without what was left at nothing."""
        transform = self.transform and _name(self.transform)
        return {name: value for name, value in (asdict(self) | {"transform": transform}).items() if value}

    def identity(self) -> dict[str, Any]:
        """What decides the examples, besides the rows, as plain data: a part of cache keys."""
        subsample = [self.fraction, self.seed] if self.fraction < 1 else None
        transform = _code(self.transform) if self.transform else None
        read = {"columns": self.columns, "system": self.system, "format": self.format, "ignore": self.ignore}
        return {"subsample": subsample, "transform": transform, **read}


def open_rows(path: str, split: str = "train", subset: str | None = None, revision: str | None = None) -> Rows:
    """Find the rows that a path names: a file, a glob of files, a folder saved by ``datasets``, or a hub id.

    Args:
        path: What to read; a hub id when nothing of that name is on disk.
        split: Name of a split, or part of one as ``datasets`` writes it (``train[:90%]``). Files have the split
            ``train`` only.
        subset: Configuration of a hub data set.
        revision: Commit, tag or branch of a hub data set.

    Raises:
        ValueError: Nothing is there, the split is unknown or empty, or the kind of file is.
    """
    local = _local(path)
    if local is not None and (subset or revision):
        raise ValueError(f"{path}: `subset` and `revision` are for data sets on the hub; leave them out for local data")
    rows = _from_hub(path, split, subset, revision) if local is None else _split(local, split, path)
    if len(rows) == 0:
        raise ValueError(f"{path}: split {split!r} is empty; name another split, or leave this source out")
    return rows


def _local(path: str) -> dict[str, Rows] | None:
    """The splits of what lies on disk under ``path``; None where it can only be a hub id."""
    place = Path(path).expanduser()
    if place.is_dir():
        return _saved(place)
    if place.is_file():
        return {"train": _file(place)}
    if glob.has_magic(path):
        files = sorted(name for name in map(Path, glob.glob(str(place), recursive=True)) if name.is_file())
        return {"train": Chain([_file(name) for name in files])} if files else _missing(path, "no file matches")
    if place.suffix in _FILES or path[:1] in "./~" or path.count("/") > 1:
        _missing(path, "no such file")
    return None


def _missing(path: str, what: str) -> Any:
    raise ValueError(f"{path}: {what}; check the path (it is taken from {Path.cwd()})")


def _file(path: Path) -> Rows:
    if path.suffix not in _FILES:
        raise ValueError(f"{path}: cannot read {path.suffix or 'such'} files; convert it to {', '.join(_FILES)}")
    return _FILES[path.suffix](path)


def _json_file(path: Path) -> Rows:
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return JsonArray(path) if start.startswith(b"[") else JsonLines(path)


_FILES = {".jsonl": JsonLines, ".json": _json_file, ".parquet": Parquet}


def _saved(folder: Path) -> dict[str, Rows]:
    from datasets import DatasetDict, load_from_disk

    try:
        _refuse_other_places(folder)
        saved = load_from_disk(str(folder))
    except FileNotFoundError as error:
        fix = f"to read files in it give a glob such as {folder}/*.jsonl"
        raise ValueError(f"{folder}: not a data set saved with save_to_disk; {fix}") from error
    except Exception as error:  # datasets raises of any kind where its files are not what it wrote
        raise ValueError(f"{folder}: not a whole saved data set ({first_line(error)}); save it again") from error
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved, str(saved.split or "train"): saved}
    return {name: DatasetRows(dataset, str(folder)) for name, dataset in splits.items()}


def _refuse_other_places(folder: Path) -> None:
    """Refuse a saved set whose own lists name files outside of it."""
    for listing in (folder / "dataset_dict.json", *folder.glob("state.json"), *folder.glob("*/state.json")):
        known = read_object(listing, "a list of a saved set's parts", "save it again") if listing.exists() else {}
        names = [*known.get("splits", ()), *(file["filename"] for file in known.get("_data_files", ()))]
        for name in names:
            if name == ".." or Path(name).name != name:
                raise ValueError(f"{listing.name} names {name!r}, which is outside of the folder")


def _split(splits: Mapping[str, Rows], spec: str, path: str) -> Rows:
    if spec in splits:
        return splits[spec]
    from datasets import ReadInstruction

    try:
        parts = ReadInstruction.from_spec(spec).to_absolute({name: len(rows) for name, rows in splits.items()})
    except (AssertionError, ValueError) as error:
        names = ", ".join(sorted(splits))
        raise ValueError(f"{path}: no split {spec!r} ({first_line(error)}); the splits here are: {names}") from error
    return Chain([Slice(splits[part.splitname], part.from_, part.to) for part in parts])


def _from_hub(path: str, split: str, subset: str | None, revision: str | None) -> Rows:
    import datasets

    try:
        dataset = datasets.load_dataset(path, subset, split=split, revision=revision)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: nothing on disk has this name, and split {split!r} does not load from the hub "
            f"({first_line(error)}); check path, split, subset and the network"
        ) from error
    return DatasetRows(dataset, path)


def as_chat(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """``columns`` that read a plain text prompt as the user's turn, and its completion as the assistant's."""
    named = dict(columns)
    for plain, turn in (("prompt", "question"), ("completion", "answer")):
        own = named.get(plain, plain)
        if isinstance(row.get(own), str) and spelled_out(row[own], own) is row[own]:
            named.pop(plain, None)
            named[turn] = own
    return named


def _is_plain(example: Any) -> bool:
    """Whether an example is plain text with a prompt."""
    return isinstance(example.chosen if isinstance(example, Preference) else example, Completion)


def _imported(path: str) -> Transform:
    module, _, name = path.rpartition(".")
    try:
        found: Transform = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"transform {path!r} cannot be imported ({first_line(error)}); give MODULE.FUNCTION"
        ) from error
    if not callable(found):
        raise ValueError(f"transform {path!r} is {type(found).__name__}, not a function; give MODULE.FUNCTION")
    return found


def _name(transform: Any) -> str:
    """What a transform is called; one that is a partial or an object is called as what it is made of."""
    made_of = getattr(transform, "func", transform)
    named = made_of if hasattr(made_of, "__qualname__") else type(made_of)
    return f"{named.__module__}.{named.__qualname__}"


def _transformed(transform: Transform, row: Row) -> list[dict[str, Any]]:
    name = _name(transform).rpartition(".")[2]
    try:
        made = transform(dict(row.values))
        rows = [made] if isinstance(made, dict) else list(made)
    except Exception as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{row.where}: transform {name} failed ({cause}); return [] to skip a row") from error
    if not all(isinstance(made, dict) for made in rows):
        raise ValueError(f"{row.where}: transform {name} must return a dict or a list of dicts")
    return rows


def _with_system(example: Any, system: str | None) -> Any:
    if system is None:
        return example
    if isinstance(example, Preference):
        chosen, rejected = (_with_system(side, system) for side in (example.chosen, example.rejected))
        return example._replace(chosen=chosen, rejected=rejected)
    if not isinstance(example, Conversation):
        raise ValueError("`system` is set, but this row is plain text without turns; leave `system` out")
    if example.messages[0].role == "system":
        return example
    turns = None if example.prompt_turns is None else example.prompt_turns + 1
    return example._replace(messages=(Message("system", system), *example.messages), prompt_turns=turns)


def _code(transform: Transform) -> list[str]:
    """What changes when a function or anything else in its file does."""
    from datasets.fingerprint import Hasher

    module = inspect.getmodule(transform)
    try:
        text = inspect.getsource(module) if module else ""
    except (OSError, TypeError):  # typed into an interpreter: the hash of the code object has to do
        text = ""
    return [getattr(transform, "__module__", ""), Hasher.hash(transform), text]
