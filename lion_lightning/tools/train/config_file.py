"""Config files read strictly: whatever is wrong with one is said with its name, before anything else is done."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from lion_lightning.printing import require_no_secrets


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.

    Raises:
        ValueError: It can't be read, is no YAML, gives a key twice, holds something other than a mapping, or a secret.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        config = yaml.load(text, Loader=_StrictLoader)  # a SafeLoader: plain data only
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or str(error)).lower()}; name a config file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-99-99
        raise ValueError(f"{path}: no valid YAML: {_reason(error)}") from error
    if config is None:
        raise ValueError(f"{path}: the file is empty; a config is a mapping of keys to values")
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a config is a mapping of keys to values, and this is a {type(config).__name__}")
    _require_bounded(config, path)
    require_no_secrets(config, f"{path}: ")
    return config


MOST_VALUES = 100_000
"""In a config. Aliases may hold one another, or themselves: a few lines are then as many values as one likes."""


def _require_bounded(config: dict[str, Any], path: str | Path) -> None:
    todo: list[Any] = [config]
    for _ in range(MOST_VALUES):
        value = todo.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        todo.extend(islice(inner, MOST_VALUES))
        if not todo:
            return
        if len(todo) > MOST_VALUES:
            break
    raise ValueError(
        f"{path}: more than {MOST_VALUES:,} values; aliases (*name) that hold one another, or themselves, make many: "
        "write them out"
    )


def check_config_files(arguments: Sequence[str], known: Mapping[str, Collection[str] | None]) -> None:
    """Refuse what the parser would drop without a word or blame on something else.

    Args:
        arguments: A command line; its ``-c FILE`` and ``--config FILE`` are checked.
        known: Top-level keys of a config. Where one is a group of plain settings, their names; else None.

    Raises:
        ValueError: A file is not one that :func:`read_config_file` takes, or has a key that nothing reads.
    """
    for path in _config_arguments(arguments):
        config = read_config_file(path)
        if "stages" in config:
            raise ValueError(f"{path}: this is a pipeline of several stages; run it with `lion run {path}`")
        _check_keys(path, "", config, known)
        for group, names in known.items():
            if names is not None and isinstance(config.get(group), dict):
                _check_keys(path, f"{group}.", config[group], names)


def _config_arguments(arguments: Sequence[str]) -> Iterator[str]:
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in ("-c", "--config"):
            continue
        if equals:
            yield value
        elif position + 1 < len(arguments):
            yield arguments[position + 1]


def _check_keys(path: str, prefix: str, config: Mapping[Any, Any], known: Collection[str]) -> None:
    for key in config:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            fix = f"did you mean {prefix + close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"{path}: unknown key {prefix + str(key)!r}; {fix}")


def _reason(error: Exception) -> str:
    """What is wrong, and the line where."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{problem}, line {mark.line + 1}" if mark is not None else problem


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types; the C one crashes on deep nesting
    """Plain data only; a key that stands twice is an error, where others keep the last, and so is half a character."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise yaml.constructor.ConstructorError(problem="merge keys multiply", problem_mark=node.start_mark)

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise yaml.constructor.ConstructorError(problem="half a character", problem_mark=node.start_mark)
        return super().construct_scalar(node)
