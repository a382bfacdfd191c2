"""Strict reading of YAML config files."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from lion_lightning.printing import require_no_secrets


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML file with a mapping.

    Raises:
        ValueError: The file cannot be read, is not valid YAML or not a mapping, or has duplicate keys or secrets.
    """
    config = read_mapping(path)
    require_no_secrets(config, f"{path}: ")
    return config


def with_files_read(value: Any, folder: Path, within: Sequence[Path] = ()) -> Any:
    """Put what is in a file in the place of its name: ``judge: judge/demo.yaml``.

    The parser of `lion fit` does the same where a class could stand.

    Args:
        value: A config or a part of one. Texts that end in .yaml or .yml and name no file are left as they are.
        folder: What names of files are relative to: the folder of the config that has them.
        within: Files that lead here.

    Raises:
        ValueError: A file cannot be read, or leads back to itself.
    """
    if isinstance(value, Mapping):
        return {key: with_files_read(inner, folder, within) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_files_read(inner, folder, within) for inner in value]
    if not isinstance(value, str) or not value.endswith((".yaml", ".yml")):
        return value
    file = folder / value
    if not file.is_file():
        return value
    path = file.resolve()
    if path in within:
        raise ValueError(f"{file}: this file leads back to itself; write its values out")
    return with_files_read(read_config_file(file), path.parent, [*within, path])


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The same, for a mapping that may have secrets."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        config = yaml.load(text, Loader=_StrictLoader)  # a SafeLoader: plain data only
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or str(error)).lower()}; give a config file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-99-99
        raise ValueError(f"{path}: not valid YAML: {_reason(error)}") from error
    if config is None:
        raise ValueError(f"{path}: the file is empty; a config is a mapping of keys to values")
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a config is a mapping of keys to values, but this is a {type(config).__name__}")
    _require_bounded(config, path)
    return config


MOST_VALUES = 100_000
"""Maximum number of values. A few lines of nested aliases could otherwise expand to any number."""


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
        f"{path}: more than {MOST_VALUES:,} values, probably by nested aliases (*name); write the values out"
    )


def check_config_files(arguments: Sequence[str], known: Mapping[str, Collection[str] | None]) -> None:
    """Check config files of a command line for what the parser would silently drop or report unclearly.

    Args:
        arguments: A command line; the files of its ``-c FILE`` and ``--config FILE`` are checked.
        known: Valid top-level keys; for a group of plain settings the valid keys in it, else None.

    Raises:
        ValueError: A file is invalid or has an unknown key.
    """
    for _, path in named_config_files(arguments):
        config = read_config_file(path)
        if "stages" in config:
            raise ValueError(f"{path}: this is a pipeline of several stages; run it with `lion run {path}`")
        _check_keys(path, "", config, known)
        for group, names in known.items():
            if names is not None and isinstance(config.get(group), dict):
                _check_keys(path, f"{group}.", config[group], names)


def named_config_files(arguments: Sequence[str]) -> Iterator[tuple[slice, str]]:
    """The arguments ``-c FILE``, ``--config FILE`` or ``--config=FILE`` of a command line, and the file of each."""
    for position, argument in enumerate(arguments):
        name, equals, path = argument.partition("=")
        if name not in ("-c", "--config"):
            continue
        if equals:
            yield slice(position, position + 1), path
        elif position + 1 < len(arguments):
            yield slice(position, position + 2), arguments[position + 1]


def _check_keys(path: str, prefix: str, config: Mapping[Any, Any], known: Collection[str]) -> None:
    for key in config:
        if str(key).removesuffix("+") not in known:  # jsonargparse adds the list of `callbacks+` to that of `callbacks`
            close = get_close_matches(str(key), known, n=1)
            fix = f"did you mean {prefix + close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"{path}: unknown key {prefix + str(key)!r}; {fix}")


def _reason(error: Exception) -> str:
    """The cause of a YAML error, and its line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{problem}, line {mark.line + 1}" if mark is not None else problem


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types; the C one crashes on deep nesting
    """Loads plain data only, and refuses duplicate keys and lone surrogates."""

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
            raise yaml.constructor.ConstructorError(
                problem="a lone surrogate, which is not a character", problem_mark=node.start_mark
            )
        return super().construct_scalar(node)
