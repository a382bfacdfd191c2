"""LLaMA-Factory's data sets: names, which ``dataset_info.json`` explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from lion_lightning.cache import read_object
from lion_lightning.tools.importing.dialects.datasets import Dataset, unknown_roles
from lion_lightning.tools.importing.recipe import Recipe
from lion_lightning.tools.importing.rules import Outcome, Rule, texts

INFO = "dataset_info.json"

_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "label",
}
"""Known columns, by the names that the file has for them."""

_ROLES = ("user", "assistant", "observation", "function", "system")


class NamedDatasets(Rule):
    """Names of data sets, with commas between them.

    Args:
        folder: The folder of the config.
        validation: True to validate on them.
    """

    def __init__(self, folder: Path, validation: bool = False) -> None:
        self.folder, self.validation = folder, validation

    @override
    def apply(self, key: str, value: Any, recipe: Recipe) -> Iterator[Outcome]:
        target = recipe.validation if self.validation else recipe.sources
        info = _find(self.folder, value["folder"])
        known = {} if info is None else read_object(info, "a list of data sets", "give a JSON object of data sets")
        for name in texts(value["names"]):
            if isinstance(entry := known.get(name), Mapping) and info is not None:
                dataset, reason = _dataset(entry, recipe, info.parent)
            else:
                dataset = Dataset(recipe.objective, name)
                where = f"no {INFO} was found" if info is None else f"{info} has no such data set"
                reason = f"{name}: {where}; fill in its path or hub id in data.sources"
            target += dataset.sources()
            yield Outcome(key, "check" if reason else "carried", reason)


def _find(folder: Path, given: Any) -> Path | None:
    """The file: where the config says (from the working folder, and from its own), next to it, or in ``data``."""
    named = str(given or "data")
    for place in (Path(named), folder / named, folder):
        if (place / INFO).is_file():
            return place / INFO
    return None


def _dataset(entry: Mapping[str, Any], recipe: Recipe, folder: Path) -> tuple[Dataset, str]:
    """A data set from what the file says, and why to look at it."""
    dataset = Dataset(recipe.objective, format=None if recipe.objective == "sft" else "chat")
    reason = ""
    if entry.get("hf_hub_url"):
        dataset.path = str(entry["hf_hub_url"])
    elif entry.get("file_name"):
        dataset.path = str(folder / str(entry["file_name"]))
    else:
        dataset.path = str(entry.get("script_url") or entry.get("cloud_file_name") or entry.get("ms_hub_url"))
        reason = f"{dataset.path}: download it, and fill in its folder in data.sources"
    dataset.split, dataset.subset = entry.get("split"), entry.get("subset")
    columns = entry.get("columns") or {}
    media = sorted({"images", "videos", "audios"} & columns.keys())
    if media:
        reason = f"{dataset.path}: text alone is trained, and its rows have {', '.join(media)}"
    tags = entry.get("tags") or {}
    if unknown := unknown_roles(tags.get(f"{role}_tag") for role in _ROLES):
        reason = f"{dataset.path}: give its messages the roles user and assistant, and not {', '.join(unknown)}"
    dataset.columns = {_COLUMNS[name]: str(own) for name, own in columns.items() if name in _COLUMNS}
    if dataset.columns.get("messages") == "conversations":  # known without a setting
        del dataset.columns["messages"]
    if most := entry.get("num_samples"):
        dataset.split = f"{dataset.split or 'train'}[:{most}]"
    return dataset, reason
