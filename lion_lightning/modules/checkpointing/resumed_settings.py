"""Which settings a resumed run may change: one rule, and nothing that is written down and not used.

The rule, which docs/training.md has for users: what the checkpoint's state is made of stays the same (the module, its
policy and tokenizer, and within the model all classes and names); numbers, and what belongs to the run alone, are taken
from the run that resumes, and said. Data is for the loader to compare.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lion_lightning.cache import hash_json
from lion_lightning.modules.checkpointing.settings import (
    GROUP,
    Settings,
    arguments,
    optimizer_settings,
    run_settings,
    schedule_settings,
)
from lion_lightning.modules.optimization.schedules import WarmupSchedule

logger = logging.getLogger(__name__)

COMPUTED = ("attention", "recompute", "liger")
"""Of a policy, how it is computed: to rounding the same numbers."""

STEPPING = ("model.optimizer", "model.lr_scheduler")
"""Settings that are known only when the optimizers exist."""


class Change(NamedTuple):
    """A setting that differs from the checkpoint's; None where one side lacks it."""

    name: str
    then: Any
    now: Any

    @property
    def alike(self) -> bool:
        """True for the same folder under another path, or the same text (by digest) under another name."""
        if self.name.startswith("model.tokenizer.") and self.then and self.now:
            return str(self.then).rpartition(" ")[2] == str(self.now).rpartition(" ")[2]
        if self.name.endswith((".path", ".config")) and isinstance(self.then, str) and isinstance(self.now, str):
            return self.then == self.now or os.path.realpath(self.then) == os.path.realpath(self.now)
        return repr(self.then) == repr(self.now)

    @property
    def refused(self) -> bool:
        """True if the checkpoint's state belongs to the old value."""
        if self.name.startswith(tuple(f"model.policy.{name}" for name in COMPUTED)):
            return False
        if self.name.startswith(("model.policy.", "model.tokenizer.")):
            return True
        if self.name.endswith(".momentum") and bool(self.then) != bool(self.now):
            return True  # without momentum there is no state to go on with
        return self.name.startswith("model.") and not (_is_number(self.then) and _is_number(self.now))


def changes(then: Settings, now: Settings) -> list[Change]:
    """Differences by name; a missing setting equals None."""
    differing: dict[str, Change] = {}
    for name in sorted(then.keys() | now.keys()):
        change = Change(name, then.get(name), now.get(name))
        if not change.alike:
            differing[name] = change
    return [change for change in differing.values() if not _follows(change, differing)]


def _follows(change: Change, others: Mapping[str, Change]) -> bool:
    """True if a change follows from another one: of the class, or of the first parameter group."""
    if change.name.startswith(GROUP):
        first = others.get(f"model.optimizer.{change.name.removeprefix(GROUP).partition('.')[2]}")
        return first is not None and first[1:] == change[1:]
    parent, _, argument = change.name.rpartition(".")
    while parent:
        if f"{parent}.class_path" in others and argument != "class_path":
            return True
        parent = parent.rpartition(".")[0]
    return False


class RunSettings:
    """The settings of a run as given, before a checkpoint restores some of them."""

    def __init__(self) -> None:
        self.values: Settings = {}
        self._stored: Settings | None = None
        self._groups: list[list[Settings]] = []
        self._patience: list[tuple[EarlyStopping, int]] = []
        self._foreign = False

    def begin(self, trainer: Trainer) -> None:
        """Take in what is known when the run is set up."""
        self.values, self._stored, self._groups, self._foreign = run_settings(trainer), None, [], False
        callbacks: list[Any] = getattr(trainer, "callbacks", [])
        self._patience = [(one, one.patience) for one in callbacks if isinstance(one, EarlyStopping)]

    def add_stepping(self, trainer: Trainer, factory: Any) -> None:
        """Take in optimizers and schedules, before anything of them is restored."""
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._groups = [[dict(arguments(one, group)) for group in one.param_groups] for one in trainer.optimizers]
        self.values |= optimizer_settings(trainer.optimizers) | schedule_settings(schedules, factory)
        self._foreign = any(not isinstance(schedule, WarmupSchedule) for schedule in schedules)
        self._refuse()

    def compare(self, stored: Settings, model: Settings) -> None:
        """Take in a checkpoint's."""
        self._stored, self.values = stored, self.values | model
        self._refuse()

    def apply(self, trainer: Trainer) -> None:
        """Let this run's settings be used where the checkpoint brought others, and say which they are."""
        if self._stored is None:
            return
        for callback, patience in self._patience:
            callback.patience = patience
        for optimizer, wanted in zip(trainer.optimizers, self._groups, strict=False):
            for group, own in zip(optimizer.param_groups, wanted, strict=False):
                _take(group, own)
        if trainer.is_global_zero and (found := self._changes()):
            logger.warning("goes on with other settings than the checkpoint's, from here on: %s", _listed(found))
        self._stored = None

    def _changes(self) -> list[Change]:
        """Differences between settings that are known on both sides by now."""
        if self._stored is None:
            return []
        if self._groups:
            return changes(self._stored, self.values)
        return [change for change in changes(self._stored, self.values) if not change.name.startswith(STEPPING)]

    def _refuse(self) -> None:
        # The state of a foreign schedule holds its settings, in a form that only it knows.
        held = ("model.lr_scheduler.", "model.optimizer.lr") if self._foreign else ()
        refused = [change for change in self._changes() if change.refused or change.name.startswith(held)]
        if refused:
            raise ValueError(
                f"the checkpoint's state is of other settings: {_listed(refused)}; resume with the old ones, or begin "
                "anew with its model: `lion export CHECKPOINT FOLDER`, then model.policy.path: FOLDER"
            )


def _take(group: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Write arguments into a parameter group; the rate is the schedule's peak where there is one."""
    for name, value in own.items():
        place = "initial_lr" if name == "lr" and "initial_lr" in group else name
        if isinstance(group[place], Tensor):
            group[place].fill_(value)
        else:
            group[place] = value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(found: Iterable[Change]) -> str:
    return "; ".join(f"{one.name} was {_shown(one.then)}, is {_shown(one.now)}" for one in found)


def _shown(value: Any) -> str:
    """A value on a line; of a text of several, such as a class's code, only which one it is."""
    if isinstance(value, str) and "\n" in value:
        return f"a text of {value.count(chr(10)) + 1} lines ({hash_json(value)[:8]})"
    return "nothing" if value is None else str(value)
