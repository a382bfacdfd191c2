"""alignment-handbook's configs: TRL's, with mixtures of data sets and a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lion_lightning.tools.importing.dialects.trl import TRL
from lion_lightning.tools.importing.dialects.trl_keys import CARRIED, DATASET_LIST, DatasetList
from lion_lightning.tools.importing.hf_trainer.run_length import hold_out
from lion_lightning.tools.importing.recipe import Objective, Recipe
from lion_lightning.tools.importing.rules import (
    Do,
    Inside,
    NoEffect,
    Rule,
    To,
    at_least,
    text,
    texts,
)


def _set_mixer(value: Any, recipe: Recipe) -> None:
    """Data sets with the share of their rows."""
    if not isinstance(value, Mapping):
        raise ValueError("not a mapping of data sets to shares")
    for path, share in value.items():
        fraction = at_least(0)(share)
        if fraction:
            recipe.sources.append({"path": text(path), **({} if fraction == 1 else {"fraction": fraction})})


class AlignmentHandbook(TRL):
    """Keys of alignment-handbook, older and newer."""

    name: ClassVar[str] = "alignment-handbook"
    title: ClassVar[str] = "alignment-handbook"

    @override
    def rules(self, objective: Objective, folder: Path) -> Mapping[str, Rule]:
        entry: Mapping[str, Rule] = {
            "id": To("path", text),
            "config": To("subset", lambda value: None if value == "default" else text(value)),
            "weight": To("fraction", lambda value: None if at_least(0)(value) == 1 else at_least(0)(value)),
            "split": To("split", text),
            "columns": DATASET_LIST.rules["columns"],
        }
        mixture: dict[str, Rule] = {
            "datasets": DatasetList(entry),
            "seed": NoEffect("rows are shuffled by data.seed"),
            "test_split_size": Do(hold_out),
        }
        return {
            **super().rules(objective, folder),
            "dataset_mixture": Inside(mixture),
            "dataset_mixer": Do(_set_mixer),
            "dataset_splits": CARRIED,
            "dataset_configs": CARRIED,
            "text_column": NoEffect("columns are found by their names"),
        }

    @override
    def name_data(self, recipe: Recipe, config: Mapping[str, Any]) -> None:
        super().name_data(recipe, config)
        if not config.get("dataset_mixer"):
            return
        splits = texts(config.get("dataset_splits") or ["train", "test"])
        sources, recipe.sources = recipe.sources, []
        for split in splits:
            target = recipe.validation if "test" in split else recipe.sources
            for source in sources:
                # a share of the rows is trained on, and all test rows are validated on
                own = {key: value for key, value in source.items() if key != "fraction" or "test" not in split}
                target.append({**own, "split": split})
