"""Configs of ``lion fit`` as plain data: merge them, and set the model and the folders of a stage."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

Config = dict[str, Any]

CHECKPOINT = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"save_last": "link", "every_n_train_steps": 100},
}
"""Default for a stage whose config has no checkpoints: without them it could not be resumed."""

ALWAYS = ("lion_lightning.callbacks.HuggingFaceExport", "lion_lightning.callbacks.Provenance")
"""Callbacks of every stage: the next stage starts from the export."""

SHOWN = 60
"""Characters of a value in a message about a change."""

_OWN_FOLDERS = ("dirpath", "rounds_dir", "save_dir")


def merged(base: Any, over: Any) -> Any:
    """Merge two configs: mappings key by key, everything else is replaced.

    A mapping with another ``class_path`` is replaced, too: its arguments are those of another class.
    """
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return deepcopy(over)
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        return deepcopy(over)
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def with_plain_parts(config: Config, where: str) -> Config:
    """Write the parts of a config as mappings, and its callbacks as a list of mappings.

    Args:
        config: Of ``lion fit``.
        where: File and stage, for messages.

    Raises:
        ValueError: A part is neither a class path nor a mapping.
    """
    parts = {key: _as_class(config[key], f"{where}.{key}") for key in ("model", "data") if config.get(key) is not None}
    trainer = config.get("trainer")
    if trainer is None:
        return {**config, **parts}
    if not isinstance(trainer, Mapping):
        raise ValueError(f"{where}.trainer is {_short(trainer)}; give a mapping of the Trainer's arguments")
    given = trainer.get("callbacks")  # a list, one callback, or nothing, as in `lion fit`
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


def with_output_folder(config: Config, folder: Path) -> Config:
    """Put all output of a stage with this config into its folder, checkpoints and export included."""
    trainer = dict(config.get("trainer") or {})
    callbacks: list[Config] = deepcopy(trainer.get("callbacks") or [])
    for given in callbacks:  # by default each writes under the stage's folder
        kept = {key: value for key, value in (given.pop("init_args", None) or {}).items() if key not in _OWN_FOLDERS}
        given |= {"init_args": kept} if kept else {}
    callbacks += [{"class_path": name} for name in ALWAYS if not any(_is(given, name) for given in callbacks)]
    if not any(_is(given, "ModelCheckpoint") for given in callbacks):
        callbacks.append(deepcopy(CHECKPOINT))
    for given in callbacks:
        if _is(given, "ModelCheckpoint"):
            given["init_args"] = {**given.get("init_args", {}), "dirpath": str(folder / "checkpoints")}
    if "logger" in trainer:
        trainer["logger"] = _logging_to(trainer["logger"], folder)
    return {**config, "trainer": {**trainer, "default_root_dir": str(folder), "callbacks": callbacks}}


def with_start_model(config: Config, export: Path) -> Config:
    """Set the exported model of another stage as the policy of a config; its other settings stay."""
    model = dict(config.get("model") or {})
    arguments = dict(model.get("init_args") or {})
    policy = dict(arguments["policy"]) if isinstance(arguments.get("policy"), Mapping) else {}
    policy.pop("config", None)  # of a model with random weights
    arguments["policy"] = {**policy, "path": str(export)}
    return {**config, "model": {**model, "init_args": arguments}}


def with_available_model(config: Config, before: Config) -> Config:
    """Replace a start model that does not exist yet by the one in the config of the stage before."""
    model = dict(config.get("model") or {})
    arguments = dict(model.get("init_args") or {})
    given = (before.get("model") or {}).get("init_args") or {}
    base = given.get("policy")
    base = {"path": base} if isinstance(base, str) else base if isinstance(base, Mapping) else {}
    policy = dict(arguments["policy"])
    policy.pop("path", None)
    for key in ("path", "config", "revision", "trust_remote_code"):
        if key in base:
            policy[key] = base[key]
    arguments["policy"] = policy
    # An export has the tokenizer that its model was trained with.
    tokenizer = arguments.get("tokenizer") or given.get("tokenizer")
    if tokenizer:
        arguments["tokenizer"] = tokenizer
    return {**config, "model": {**model, "init_args": arguments}}


@contextmanager
def as_file(config: Config, name: str = "") -> Iterator[Path]:
    """Write a config to a temporary file for a command; errors begin with ``name`` in place of that file's path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        try:
            yield path
        except Exception as error:
            if str(path) not in str(error):
                raise
            raise ValueError(str(error).replace(f"{path}: ", name)) from error


def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Differences of two configs below a key, as ``trainer.max_epochs: 1 -> 2``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}, key=str):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif isinstance(old, list) and isinstance(new, list):
        for number, (one, other) in enumerate(zip_longest(old, new)):
            yield from differences(one, other, f"{key}[{number}]")
    elif old != new:
        yield f"{key}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    """A value in a few characters; a class with arguments as its name."""
    text = str(value["class_path"] if isinstance(value, Mapping) and "class_path" in value else value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _logging_to(given: Any, folder: Path) -> Any:
    """Replace the ``save_dir`` of loggers by the stage's folder."""
    if isinstance(given, list):
        return [_logging_to(one, folder) for one in given]
    arguments = given.get("init_args") if isinstance(given, Mapping) else None
    if not arguments or "save_dir" not in arguments:
        return given
    return {**given, "init_args": {**arguments, "save_dir": str(folder)}}


def _is(given: Config, name: str) -> bool:
    return str(given.get("class_path", "")).rpartition(".")[2] == name.rpartition(".")[2]
