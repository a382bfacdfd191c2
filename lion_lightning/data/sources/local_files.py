"""What lies on disk under a path: a file, a glob of files, a folder of files, or a data set saved by ``datasets``."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lion_lightning.cache import read_object
from lion_lightning.data.sources.readers import ChainedRows, DatasetRows, Parquet, Rows
from lion_lightning.data.sources.text_files import COMPRESSIONS, SPLITS, JsonLines, Table, read_json
from lion_lightning.errors import first_line

KINDS: dict[str, Callable[[Path], dict[str, Rows]]] = {
    ".jsonl": lambda path: {"train": JsonLines(path)},
    ".ndjson": lambda path: {"train": JsonLines(path)},
    ".json": lambda path: {**read_json(path)},
    ".parquet": lambda path: {"train": Parquet(path)},
    ".csv": lambda path: {"train": Table(path)},
    ".tsv": lambda path: {"train": Table(path, delimiter="\t")},
}
"""The splits in a file, by the ending of its name."""

_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"}
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")


def kind_of(path: Path) -> str | None:
    """The ending that says how a file is read, in small letters; None if it cannot be."""
    packed = path.suffix.lower() in COMPRESSIONS
    ending = Path(path.stem if packed else path.name).suffix.lower()
    return ending if ending in KINDS and not (packed and ending == ".parquet") else None


def without_ending(path: Path) -> Path:
    """The path without the endings that say how it is read and compressed."""
    return path.with_name(path.stem).with_suffix("") if path.suffix.lower() in COMPRESSIONS else path.with_suffix("")


def find_splits(path: str) -> dict[str, Rows] | None:
    """The rows that lie under a path, by split; None if nothing does and it can only be a hub id.

    Raises:
        ValueError: Nothing is there, or it cannot be read.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _saved(place) if _is_saved(place) else _folder(place)
    if place.is_file():
        return _file(place)
    if glob.has_magic(path):
        files = sorted(name for name in map(Path, glob.glob(str(place), recursive=True)) if name.is_file())
        if not files:
            raise ValueError(_missing(path, "no file matches"))
        return _joined([_file(name) for name in files])
    if kind_of(place) or path[:1] in "./~" or path.count("/") > 1:
        raise ValueError(_missing(path, "no such file"))
    return None


def _missing(path: str, what: str) -> str:
    return f"{path}: {what}; check the path (it is taken from {Path.cwd()})"


def _file(path: Path) -> dict[str, Rows]:
    if (kind := kind_of(path)) is None:
        known = f"{', '.join(KINDS)}, and all but .parquet compressed ({', '.join(COMPRESSIONS)})"
        raise ValueError(f"{path}: cannot read {''.join(path.suffixes[-2:]) or 'such'} files; known are {known}")
    return KINDS[kind](path)


def _joined(files: Sequence[dict[str, Rows]]) -> dict[str, Rows]:
    """The rows of several files, one after the other."""
    names = dict.fromkeys(name for splits in files for name in splits)
    parts = {name: [splits[name] for splits in files if name in splits] for name in names}
    return {name: found[0] if len(found) == 1 else ChainedRows(found) for name, found in parts.items()}


# --- folders


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _saved(folder: Path) -> dict[str, Rows]:
    from datasets import DatasetDict, load_from_disk

    try:
        _refuse_other_places(folder)
        saved = load_from_disk(str(folder))
    except Exception as error:  # datasets raises of any kind where its files are not what it wrote
        raise ValueError(f"{folder}: not a complete saved data set ({first_line(error)}); save it again") from error
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


def _folder(folder: Path) -> dict[str, Rows]:
    """Files of one kind with their splits in their names, as a download from the hub leaves them."""
    files = [path for path in sorted(folder.rglob("*")) if _is_data(path.relative_to(folder)) and path.is_file()]
    if not files:
        fix = f"to read other files in it give a glob such as {folder}/*.jsonl"
        raise ValueError(f"{folder}: not a data set saved with save_to_disk, and no file in it can be read; {fix}")
    _require_one(folder, {str(kind_of(path)) for path in files}, "files of several kinds")
    _require_one(folder, {_subset(path.relative_to(folder)) for path in files}, "files in several folders")
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    unnamed = [path for path, split in splits.items() if split is None]
    if unnamed and len(unnamed) < len(files):
        raise ValueError(
            f"{folder}: of {unnamed[0].relative_to(folder)} it is not clear which split it is of, though others name "
            "theirs; give a glob of the files that are meant"
        )
    names = dict.fromkeys(split or "train" for split in splits.values())
    by_split = {name: [_file(path) for path in files if (splits[path] or "train") == name] for name in names}
    if all(split is None for split in splits.values()):
        return _joined(by_split["train"])
    return {name: ChainedRows([rows for file in found for rows in file.values()]) for name, found in by_split.items()}


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return kind_of(path) is not None and path.name not in _METADATA and not hidden


def _require_one(folder: Path, found: set[str], what: str) -> None:
    if len(found) > 1:
        names = ", ".join(sorted(name or "the folder itself" for name in found))
        raise ValueError(f"{folder}: holds {what} ({names}); name one of the folders, or give a glob")


def _subset(path: Path) -> str:
    """The folder of a file, but for parts that name a split or are ``data``: a subset of a hub data set."""
    return "/".join(part for part in path.parts[:-1] if part.lower() not in {*SPLITS, "data"})


def _split_of(path: Path) -> str | None:
    """The split that the name of a file says, or else that of a folder around it."""
    name = without_ending(path).name
    if shard := _SHARD.fullmatch(name):
        return SPLITS.get(shard[1].lower(), shard[1])
    words = [*re.split(r"[^a-z]+", name.lower()), *(part.lower() for part in reversed(path.parts[:-1]))]
    return next((SPLITS[word] for word in words if word in SPLITS), None)
