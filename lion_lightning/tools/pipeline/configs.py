"""Configs of ``lion fit`` as plain data: read, merged, and told where their stage lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import zip_longest
from pathlib import Path
from typing import Any

Config = dict[str, Any]

CHECKPOINT = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"save_last": "link", "every_n_train_steps": 100},
}
"""For a stage whose config has no checkpoints: without them it could not be resumed."""

ALWAYS = ("lion_lightning.callbacks.HuggingFaceExport", "lion_lightning.callbacks.Provenance")
"""Callbacks that every stage of a pipeline has: what the next stage starts from, and where this one came from."""

SHOWN = 60
"""Characters of a value in a message about a change."""

_OWN_FOLDERS = ("dirpath", "rounds_dir", "save_dir")


def merged(base: Any, over: Any) -> Any:
    """``over`` laid over ``base``: mappings are merged key by key, all else is replaced.

    So is a mapping that names another class than the one below it: its arguments mean nothing to another class.

    Args:
        base: What lies below.
        over: What is laid over it.
    """
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return deepcopy(over)
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        return deepcopy(over)
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def with_plain_parts(config: Config, where: str) -> Config:
    """The config with its parts as mappings, and its callbacks as a list of them, as all that follows takes them.

    Args:
        config: Of ``lion fit``.
        where: What it belongs to, for messages.

    Raises:
        ValueError: A part is of another kind.
    """
    parts = {key: _as_class(config[key], f"{where}.{key}") for key in ("model", "data") if config.get(key) is not None}
    trainer = config.get("trainer")
    if trainer is None:
        return {**config, **parts}
    if not isinstance(trainer, Mapping):
        raise ValueError(f"{where}.trainer is {_short(trainer)}; give a mapping of the Trainer's arguments")
    given = trainer.get("callbacks")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    callbacks = [_as_class(one, f"{where}.trainer.callbacks[{number}]") for number, one in enumerate(listed)]
    return {**config, **parts, "trainer": {**trainer, "callbacks": callbacks}}


def _as_class(given: Any, where: str) -> Config:
    part = {"class_path": given} if isinstance(given, str) else given
    if not isinstance(part, Mapping):
        raise ValueError(f"{where} is {_short(given)}; give a class_path, or a mapping with class_path and init_args")
    if not isinstance(part.get("init_args") or {}, Mapping):
        raise ValueError(f"{where}.init_args is {_short(part['init_args'])}; give a mapping of arguments")
    return dict(part)


def placed(config: Config, folder: Path) -> Config:
    """The config with all that a stage writes under its own folder, checkpoints and export included.

    Args:
        config: Of ``lion fit``.
        folder: Of the stage.
    """
    trainer = dict(config.get("trainer") or {})
    callbacks = [_own_folder(deepcopy(given)) for given in trainer.get("callbacks") or ()]
    callbacks += [{"class_path": name} for name in ALWAYS if not any(_is(given, name) for given in callbacks)]
    if not any(_is(given, "ModelCheckpoint") for given in callbacks):
        callbacks.append(deepcopy(CHECKPOINT))
    for given in callbacks:
        if _is(given, "ModelCheckpoint"):
            given["init_args"] = {**given.get("init_args", {}), "dirpath": str(folder / "checkpoints")}
    if "logger" in trainer:
        trainer["logger"] = _logging_to(trainer["logger"], folder)
    return {**config, "trainer": {**trainer, "default_root_dir": str(folder), "callbacks": callbacks}}


def starting_from(config: Config, export: Path) -> Config:
    """The config with the policy that another stage exported; what else is said of the policy stays.

    Args:
        config: Of ``lion fit``.
        export: Folder of the exported model.
    """
    model = dict(config.get("model") or {})
    arguments = dict(model.get("init_args") or {})
    said = arguments.get("policy")
    kept = {key: value for key, value in said.items() if key != "config"} if isinstance(said, Mapping) else {}
    arguments["policy"] = {**kept, "path": str(export)}
    return {**config, "model": {**model, "init_args": arguments}}


def standing_in(config: Config, before: Config) -> Config:
    """The config of a stage whose start is still to be made, with the model that the stage before it starts from.

    Args:
        config: Of the stage.
        before: Of the stage before, with a model that is there.
    """
    model, earlier = (dict(each.get("model") or {}) for each in (config, before))
    arguments, given = (dict(each.get("init_args") or {}) for each in (model, earlier))
    base = given.get("policy")
    base = {"path": base} if isinstance(base, str) else base if isinstance(base, Mapping) else {}
    source = {key: value for key, value in base.items() if key in ("path", "config", "revision", "trust_remote_code")}
    kept = {key: value for key, value in dict(arguments["policy"]).items() if key != "path"}
    arguments["policy"] = {**kept, **source}
    # An export has the tokenizer that its model was trained with.
    tokenizer = arguments.get("tokenizer") or given.get("tokenizer")
    if tokenizer:
        arguments["tokenizer"] = tokenizer
    return {**config, "model": {**model, "init_args": arguments}}


def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Where two configs differ, as ``trainer.max_epochs: 1 -> 2``.

    Args:
        old: One config.
        new: The other.
        key: Where in the whole they stand.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}, key=str):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif isinstance(old, list) and isinstance(new, list):
        for number, (one, other) in enumerate(zip_longest(old, new)):
            yield from differences(one, other, f"{key}[{number}]")
    elif old != new:
        yield f"{key}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    """A value on a part of a line; of a class with arguments, its name."""
    text = str(value["class_path"] if isinstance(value, Mapping) and "class_path" in value else value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _logging_to(given: Any, folder: Path) -> Any:
    """Loggers with the stage's folder where they name one."""
    if isinstance(given, list):
        return [_logging_to(one, folder) for one in given]
    arguments = given.get("init_args") if isinstance(given, Mapping) else None
    if not arguments or "save_dir" not in arguments:
        return given
    return {**given, "init_args": {**arguments, "save_dir": str(folder)}}


def _is(given: Config, name: str) -> bool:
    return str(given.get("class_path", "")).rpartition(".")[2] == name.rpartition(".")[2]


def _own_folder(given: Config) -> Config:
    """Without folders of its own: under the stage's folder is where each callback writes by default."""
    arguments = {key: value for key, value in (given.get("init_args") or {}).items() if key not in _OWN_FOLDERS}
    rest = {key: value for key, value in given.items() if key != "init_args"}
    return {**rest, "init_args": arguments} if arguments else rest
