"""Words to complete: commands, their options, and the keys of a config file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from typing import Any

from lion_lightning.cli import COMMANDS, TRAINING, main

CONFIGURED = (*TRAINING, "inspect", "plan")
"""Commands that take all options of ``lion fit``."""

_OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*[a-z\d]")
_CHOICES = re.compile(r"^\s*(?:usage: .*)?\{([\w,-]+)\}", re.MULTILINE)


def options() -> dict[str, list[str]]:
    """Options of each command, from its help; imports torch and Lightning."""
    found = {name: sorted(set(_OPTION.findall(help_of(name, "--help")))) for name in (*TRAINING, *COMMANDS)}
    shared = {*found["fit"], *_settings_of_classes()}
    return {name: sorted({*own, *shared}) if name in CONFIGURED else own for name, own in found.items()}


def choices() -> dict[str, list[str]]:
    """Words that a command's first argument may be, where it is one of a few."""
    found = {name: _CHOICES.search(help_of(name, "--help")) for name in COMMANDS}
    return {name: match[1].split(",") for name, match in found.items() if match is not None}


def help_of(*arguments: str) -> str:
    """Help that a command line prints."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()), suppress(SystemExit):
        main([*arguments])
    return printed.getvalue()


def _settings_of_classes() -> Iterator[str]:
    """Options of modules and data modules, which depend on the class that a config names: those of all public ones."""
    import lion_lightning as package

    for name in package.__all__:
        if name.endswith("Module") and name != "AlignmentModule":
            section = "data" if name.endswith("DataModule") else "model"
            yield from _OPTION.findall(help_of("fit", f"--{section}.help", f"lion_lightning.{name}"))
    for section, spec in (("model.policy", package.PolicySpec), ("model.tokenizer", package.TokenizerSpec)):
        yield from (f"--{section}.{setting.name}" for setting in fields(spec))


def keys(config: Mapping[str, Any]) -> list[str]:
    """Options that change the values of a config; of a pipeline, those of its stages."""
    parts = config["stages"] if isinstance(config.get("stages"), Mapping) else config
    return sorted({f"--{key}" for key in _keys(parts, "") if re.fullmatch(r"[\w.-]+", key)})


def _keys(values: Mapping[Any, Any], before: str) -> Iterator[str]:
    for name, value in values.items():
        if name == "init_args" and isinstance(value, Mapping):  # which options leave out
            yield from _keys(value, before)
        elif name != "class_path":
            yield f"{before}{name}"
            if isinstance(value, Mapping):
                yield from _keys(value, f"{before}{name}.")
