"""Local data: a file, a glob of files, a folder of files, or a data set saved by ``datasets``."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lion_lightning.cache import read_object
from lion_lightning.data.sources.opening import COMPRESSIONS, JSON, PARQUET, head_of
from lion_lightning.data.sources.readers import ChainedRows, DatasetRows, Parquet, Rows
from lion_lightning.data.sources.text_files import SPLITS, Table, read_json, read_json_lines
from lion_lightning.errors import first_line

KINDS: dict[str, Callable[[Path], dict[str, Rows]]] = {
    ".jsonl": lambda path: {**read_json_lines(path)},
    ".ndjson": lambda path: {**read_json_lines(path)},
    ".json": lambda path: {**read_json(path)},
    ".parquet": lambda path: {"train": Parquet(path)},
    ".csv": lambda path: {"train": Table(path)},
    ".tsv": lambda path: {"train": Table(path, delimiter="\t")},
}
"""The splits in a file, by the ending of its name, unless its first bytes say that it is of another kind."""

_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")


def kind_of(path: Path) -> str | None:
    """The ending of a file's name that says how it is read, in small letters; None if it is unknown."""
    compressed = path.suffix.lower() in COMPRESSIONS
    ending = Path(path.stem if compressed else path.name).suffix.lower()
    return ending if ending in KINDS and not (compressed and ending == ".parquet") else None


def without_ending(path: Path) -> Path:
    """The path without the endings of its kind and compression."""
    return path.with_name(path.stem).with_suffix("") if path.suffix.lower() in COMPRESSIONS else path.with_suffix("")


def find_splits(path: str) -> dict[str, Rows] | None:
    """The rows under a local path, by split; None if nothing is there and it can only be a hub id.

    Raises:
        ValueError: Nothing is there, or it cannot be read.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        is_saved = (local / "state.json").is_file() or (local / "dataset_dict.json").is_file()
        return _saved_dataset(local) if is_saved else _folder(local)
    if local.is_file():
        return _file(local)
    if glob.has_magic(path):
        files = sorted(name for name in map(Path, glob.glob(str(local), recursive=True)) if name.is_file())
        if files:
            return _chain([_file(name) for name in files])
        raise ValueError(f"{path}: no file matches; check the path (it is taken from {Path.cwd()})")
    if kind_of(local) or path[:1] in "./~" or path.count("/") > 1:
        raise ValueError(f"{path}: no such file; check the path (it is taken from {Path.cwd()})")
    return None


def _file(path: Path) -> dict[str, Rows]:
    kind, head = kind_of(path), head_of(path)
    if head.startswith(_LFS_POINTER):
        raise ValueError(
            f"{path}: only Git LFS's pointer to the file, not the file; run `git lfs pull` in its repository"
        )
    if head.startswith(PARQUET):
        kind = ".parquet"
    elif JSON.match(head) and kind not in (".jsonl", ".ndjson"):
        kind = ".json"
    if kind is None:
        known = f"{', '.join(KINDS)}, and all but .parquet compressed ({', '.join(COMPRESSIONS)})"
        raise ValueError(f"{path}: cannot read {''.join(path.suffixes[-2:]) or 'such'} files; known are {known}")
    return KINDS[kind](path)


def _chain(files: Sequence[dict[str, Rows]]) -> dict[str, Rows]:
    """The rows of several files, one after the other."""
    found: dict[str, list[Rows]] = {}
    for splits in files:
        for name, rows in splits.items():
            found.setdefault(name, []).append(rows)
    return {name: parts[0] if len(parts) == 1 else ChainedRows(parts) for name, parts in found.items()}


# --- folders


def _saved_dataset(folder: Path) -> dict[str, Rows]:
    """The splits that ``save_to_disk`` wrote; a set that lists files outside of its folder is refused."""
    from datasets import DatasetDict, load_from_disk

    try:
        for listing in (folder / "dataset_dict.json", *folder.glob("state.json"), *folder.glob("*/state.json")):
            known = read_object(listing, "a list of a saved set's parts", "save it again") if listing.exists() else {}
            names = [*known.get("splits", ()), *(file["filename"] for file in known.get("_data_files", ()))]
            for name in names:
                if name == ".." or Path(name).name != name:
                    raise ValueError(f"{listing.name} names {name!r}, which is outside of the folder")
        saved = load_from_disk(str(folder))
    except Exception as error:  # datasets raises of any kind where its files are not what it wrote
        raise ValueError(f"{folder}: not a complete saved data set ({first_line(error)}); save it again") from error
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved, str(saved.split or "train"): saved}
    return {name: DatasetRows(dataset, str(folder)) for name, dataset in splits.items()}


def _folder(folder: Path) -> dict[str, Rows]:
    """Files of one kind with their splits in their names, as a download from the hub leaves them."""
    files = []
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if kind_of(path) and path.name not in _METADATA and not is_hidden and path.is_file():
            files.append(path)
    if not files:
        raise ValueError(
            f"{folder}: not a data set saved with save_to_disk, and no file in it can be read; to read other files in "
            f"it give a glob such as {folder}/*.jsonl"
        )
    _require_one(folder, {str(kind_of(path)) for path in files}, "files of several kinds")
    subsets: set[str] = set()
    by_split: dict[str | None, list[Path]] = {}
    for path in files:
        name = path.relative_to(folder)
        by_split.setdefault(_split_of(name), []).append(path)
        # a subset of a hub data set is a folder, within or around folders named for a split or `data`
        subsets.add("/".join(part for part in name.parts[:-1] if part.lower() not in {*SPLITS, "data"}))
    _require_one(folder, subsets, "files in several folders")
    if by_split.keys() == {None}:
        return _chain([_file(path) for path in files])
    if None in by_split:
        raise ValueError(
            f"{folder}: the name of {by_split[None][0].relative_to(folder)} does not say its split, though those of "
            "other files do; give a glob of the files to read"
        )
    splits: dict[str, Rows] = {}
    for split, paths in by_split.items():
        parts: list[Rows] = []
        for path in paths:
            parts += _file(path).values()  # the name of a file decides its split here
        splits[str(split)] = ChainedRows(parts)
    return splits


def _require_one(folder: Path, found: set[str], what: str) -> None:
    if len(found) > 1:
        names = ", ".join(sorted(name or "the folder itself" for name in found))
        raise ValueError(f"{folder}: holds {what} ({names}); name one of the folders, or give a glob")


def _split_of(path: Path) -> str | None:
    """The split in the name of a file, or else in that of a folder around it."""
    name = without_ending(path).name
    if shard := _SHARD.fullmatch(name):
        return SPLITS.get(shard[1].lower(), shard[1])
    words = [*re.split(r"[^a-z]+", name.lower()), *(part.lower() for part in reversed(path.parts[:-1]))]
    return next((SPLITS[word] for word in words if word in SPLITS), None)
