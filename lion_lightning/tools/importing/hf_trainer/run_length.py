"""How long a run is, and when it is logged, evaluated and saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lion_lightning.tools.importing.recipe import Recipe
from lion_lightning.tools.importing.rules import Kind, at_least, integer


def set_max_steps(value: Any, recipe: Recipe) -> None:
    """Steps of the run; -1 and 0 for as many as the epochs have."""
    steps = integer(value)
    recipe.batches.max_steps = steps if steps > 0 else None


def set_epochs(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Length of the run in epochs, where no number of steps says it."""
    epochs = recipe.batches.epochs = at_least(0)(value)
    if recipe.batches.max_steps or epochs <= 1 or epochs.is_integer():
        return None
    whole_ones = math.ceil(epochs)
    return (
        "check",
        f"{epochs:g}: {whole_ones} epochs of {epochs / whole_ones:.0%} of the rows each, as many steps as there",
    )


def hold_out(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Share of the rows to validate on; a number of rows is no share that is known here."""
    size = at_least(0)(value)
    recipe.validation_share = size if size < 1 else 0.05
    return None if size < 1 else ("check", "a number of rows; data.validation_share is a share of them, 0.05 for now")


def set_validation(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Rows to hold out, which are validated on unless a later key says otherwise."""
    outcome = hold_out(value, recipe)
    recipe.saving.evaluate = recipe.validation_share > 0
    return outcome


def set_logging(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Steps between log lines; below 1 a share of the run, which is not known here."""
    every = at_least(0)(value)
    if every >= 1:
        recipe.saving.log_every = int(every)
        return None
    return "no effect", "without trainer.log_every_n_steps a run is logged at least twenty times"


def set_eval_strategy(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """When to evaluate: by steps, each epoch, or not at all."""
    name = str(value).lower().removeprefix("intervalstrategy.")
    recipe.saving.evaluate = name not in ("no", "false", "none")
    if name == "epoch":
        recipe.saving.eval_steps = None
    if name == "steps" and not recipe.saving.eval_steps:
        return "check", "without eval_steps it is once an epoch: see trainer.val_check_interval"
    return None


def set_save_steps(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Steps between checkpoints; below 1 a share of the run, which max_steps alone tells."""
    steps = at_least(0)(value)
    if 0 < steps < 1 and recipe.batches.max_steps:
        steps = math.ceil(steps * recipe.batches.max_steps)
    recipe.saving.save_steps = steps
    return None if steps >= 1 else ("check", "checkpoints are saved once an epoch; see every_n_train_steps")


def set_save_strategy(value: Any, recipe: Recipe) -> None:
    """When to save: by steps, each epoch, or not at all."""
    name = str(value).lower().removeprefix("savestrategy.")
    recipe.saving.save = name not in ("no", "false", "none")
    if name in ("epoch", "best"):
        recipe.saving.save_steps = None


def lengths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a run's length and of its checkpoints that a config leaves in place."""
    by_steps = str(config.get("save_strategy") or "steps").lower() == "steps"
    has_steps = str(config.get("max_steps") or -1).lstrip("+").isdigit()
    return {**({} if has_steps else {"num_train_epochs": 3}), **({"save_steps": 500} if by_steps else {})}
