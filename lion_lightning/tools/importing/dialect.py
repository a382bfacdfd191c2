"""Base of the dialects: whose config a file is, and what becomes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lion_lightning.tools.importing.recipe import OBJECTIVES, Objective, Recipe
from lion_lightning.tools.importing.rules import Outcome, Rule, apply_all


class Imported(NamedTuple):
    """A config that was read.

    Attributes:
        dialect: The program that it was written for.
        recipe: What it says.
        outcomes: What became of each of its keys.
        defaults: Defaults of the program that the config leaves to it.
        notes: What else to know.
    """

    dialect: Dialect
    recipe: Recipe
    outcomes: list[Outcome]
    defaults: dict[str, Any]
    notes: list[str]


class Dialect(ABC):
    """The keys of a program's configs. A subclass has a table of them, and the program's defaults.

    Attributes:
        name: For ``--from``.
        title: For people.
        model_key: The key that names the model, which every config has.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    model_key: ClassVar[str] = "model_name_or_path"

    @abstractmethod
    def objective(self, config: Mapping[str, Any], path: Path) -> Objective:
        """The objective of a config.

        Raises:
            ValueError: It cannot be told, or is not one of the four; without the file's name.
        """

    @abstractmethod
    def defaults(self, objective: Objective, config: Mapping[str, Any]) -> dict[str, Any]:
        """The program's values of keys that a config may leave out, where they matter."""

    @abstractmethod
    def rules(self, objective: Objective, folder: Path) -> Mapping[str, Rule]:
        """The rule of each key.

        Args:
            objective: What is trained.
            folder: The folder of the config.
        """

    def finish(self, recipe: Recipe, config: Mapping[str, Any]) -> list[Outcome]:
        """Change what follows from several keys, and say so: here, nothing."""
        return []

    def notes(self, recipe: Recipe, config: Mapping[str, Any]) -> list[str]:
        """Further lines about the result: here, none."""
        return []

    def read(self, config: Mapping[str, Any], path: Path, objective: Objective | None = None) -> Imported:
        """Read a config.

        Args:
            config: Its keys and values.
            path: Where it is from.
            objective: What it trains; None to find out.

        Raises:
            ValueError: A value is not what its key takes, or the objective is not known.
        """
        recipe = Recipe(objective or self.objective(config, path))
        rules = self.rules(recipe.objective, path.parent)
        defaults = self.defaults(recipe.objective, config)
        defaults = {key: value for key, value in defaults.items() if config.get(key) is None}
        apply_all(rules, defaults, recipe)
        outcomes = apply_all(rules, config, recipe) + self.finish(recipe, config)
        if recipe.model is None:
            raise ValueError(f"{self.model_key} is missing, which names the model; this is no config of {self.title}")
        if not recipe.sources:
            raise ValueError("there are no data sets; name one in the config")
        return Imported(self, recipe, _unique(outcomes), defaults, self.notes(recipe, config))

    def known(self, config: Mapping[str, Any]) -> int:
        """Number of keys of a config that the program has; 0 without a model."""
        if config.get(self.model_key) is None:
            return 0
        return len({name for kind in OBJECTIVES for name in self.rules(kind, Path())} & config.keys())


def _unique(outcomes: list[Outcome]) -> list[Outcome]:
    """Each outcome once, in order; a key that several data sets have may have been carried for one of them alone."""
    unique = list(dict.fromkeys(outcomes))
    lost = {outcome.key for outcome in unique if outcome.kind != "carried"}
    return [outcome for outcome in unique if outcome.kind != "carried" or outcome.key not in lost]


HALF_WEIGHTS = (
    "weights and optimizer are in bf16, as there; policy.dtype: float32 with precision: bf16-mixed is more exact, in "
    "twice the memory"
)
"""Why to look at a key that asks for weights in bf16 that train."""
