"""Tool calls and tool definitions of rows: structures or JSON text, with the nulls of Arrow's structs.

The same call gives the same tokens however it is written. A null in a structure counts as absent, as Arrow gives every
struct the keys of all others; JSON text is taken as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lion_lightning.data.sources.json_text import BrokenJSONError, parse_shallow


def read_tools(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Read tool definitions, a list or (as Arrow tables need it) its JSON text."""
    tools = _parsed(row.get("tools") or None, "tools", "a list of JSON schemas")
    if isinstance(tools, Mapping):
        tools = [tools]
    if tools is not None and not isinstance(tools, Sequence):
        raise ValueError(f"tools is {type(tools).__name__}, not a list of JSON schemas")
    return tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools or ())) or None


def _tool(tool: Any, name: str) -> Any:
    schema = without_nulls(_parsed(tool, name, "a JSON schema"))
    if not isinstance(schema, Mapping):
        raise ValueError(f"{name} is {type(schema).__name__}, not a JSON schema")
    # Templates look for the function inside of a tool, where most sets have it.
    is_function = "function" not in schema and "name" in schema and "input_schema" not in schema
    made = {"type": "function", "function": schema} if is_function else schema
    function = made.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("parameters"), str):
        parameters = _parsed(function["parameters"], f"{name}.parameters", "a JSON schema")
        return {**made, "function": {**function, "parameters": parameters}}
    return made


def read_calls(extra: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Take the tool calls out of a message: a list of them, or the one ``function_call`` of older sets.

    Args:
        extra: Keys of a message other than role and content; its calls are taken out.
        name: Its path in the row, for errors.

    Returns:
        The calls, their arguments as a mapping.
    """
    calls = _parsed(extra.pop("tool_calls", None), f"{name}.tool_calls", "a list of calls")
    calls = [] if calls is None else calls  # also of the JSON text `null`
    if (legacy := _parsed(extra.pop("function_call", None), f"{name}.function_call", "an object")) is not None:
        if calls:
            raise ValueError(f"{name} has both tool_calls and function_call; keep one of them (with a `transform`)")
        return [_call(legacy, f"{name}.function_call")]
    if not isinstance(calls, Sequence):
        raise ValueError(f"{name}.tool_calls is {type(calls).__name__}, not a list of calls")
    return [_call(call, f"{name}.tool_calls[{number}]") for number, call in enumerate(calls)]


def _call(call: Any, name: str) -> dict[str, Any]:
    """A call as templates read it: ``{"type": "function", "function": {"name", "arguments"}}``, and its id."""
    own = without_nulls(_parsed(call, name, "an object"))
    if not isinstance(own, dict):
        raise ValueError(f"{name} is {type(own).__name__}, not an object with a function and its arguments")
    function = _parsed(own.get("function"), f"{name}.function", "an object")
    if not isinstance(function, Mapping):
        function = {key: own.pop(key) for key in ("name", *_ARGUMENTS) if key in own}
    if not isinstance(function.get("name"), str):
        raise ValueError(f"{name} names no function; give it a function with a name and arguments")
    given = [key for key in _ARGUMENTS if key in function]
    if len(given) > 1:
        raise ValueError(f"{name} has both {given[0]} and {given[1]}; keep one of them (with a `transform`)")
    path = f"{name}.{given[0] if given else ''}"
    arguments = _parsed((function.get(given[0]) if given else None) or {}, path, "a JSON object")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        raise ValueError(f"{path} is {kind}, not a JSON object; no parser would read such a call")
    rest = {key: value for key, value in function.items() if key not in _ARGUMENTS}
    return {**({} if "type" in own else {"type": "function"}), **own, "function": {**rest, "arguments": arguments}}


_ARGUMENTS = ("arguments", "parameters", "args", "input")
"""Keys of the arguments of a call; templates read the first."""


def _parsed(value: Any, name: str, what: str) -> Any:
    """Parse JSON text; return anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_shallow(value)
    except BrokenJSONError as error:
        raise ValueError(f"{name} is not valid JSON ({error}); give {what}") from None


def without_nulls(value: Any) -> Any:
    """A structure without the keys whose value is null, at any depth; lists keep their nulls."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(inner) for inner in value]
    return value
