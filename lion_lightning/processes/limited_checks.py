"""Checks of model answers that can take forever or use much memory on hostile input: run in a limited process.

:class:`~lion_lightning.processes.limited_process.LimitedCheck` starts and ends the process. Nothing here imports torch,
so that it starts quickly.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

MEMORY = 4 * 2**30
"""Bytes that the process may have, where the system lets it be said."""


def has_value(gold: str, answer: str) -> bool:
    """Whether an answer ends in the same value as the right one, as math-verify compares them.

    Args:
        gold: The right answer, alone or at the end of a solution.
        answer: What was answered.

    Raises:
        ValueError: There is no value in the right one.
    """
    from math_verify import parse, verify

    wanted = parse(_final(gold), parsing_timeout=None)
    if not wanted:
        raise ValueError(f"no value that math-verify reads is in {gold[-40:]!r}")
    return bool(verify(wanted, parse(_final(answer), parsing_timeout=None), timeout_seconds=None))


def _final(text: str) -> str:
    """What stands behind the last ``####``; the whole text where there is none."""
    return text.rpartition("####")[2].strip() if "####" in text else text


def matches(pattern: str, answer: str) -> bool:
    """Whether a pattern is found in an answer; its dot matches line ends, too.

    Args:
        pattern: A regular expression.
        answer: What was answered.
    """
    return re.search(pattern, answer, re.DOTALL) is not None


def fits(schema: Any, answer: str) -> bool:
    """Whether an answer is JSON that fits a schema; a code fence around it does not count.

    Args:
        schema: The schema, as data or as JSON. What it refers to must be in it: nothing is fetched.
        answer: What was answered.

    Raises:
        ValueError: The schema is none.
    """
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        read = json.loads(schema) if isinstance(schema, str) else schema
        kind = validator_for(read)
        kind.check_schema(read)
    except (SchemaError, ValueError, TypeError) as error:
        raise ValueError(f"the JSON schema is none: {getattr(error, 'message', error)}") from error
    try:
        value = json.loads(_unfenced(answer), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    try:
        return bool(kind(read, registry=Registry()).is_valid(value))
    except Unresolvable as error:
        raise ValueError(f"the JSON schema refers to what is not in it, and nothing is fetched: {error}") from error


def _unfenced(text: str) -> str:
    start, _, rest = text.strip().partition("\n")
    fenced = start.strip() in ("```", "```json") and rest.endswith("```")
    return rest.removesuffix("```") if fenced else text


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


CHECKS: dict[str, Callable[..., bool]] = {"has_value": has_value, "matches": matches, "fits": fits}


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests, a line of JSON each, until there are no more.

    Args:
        requests: Lines of a check's name and its arguments.
        replies: Gets a line for each: what the check says, or an error.
    """
    for line in requests:
        name, arguments = json.loads(line)
        try:
            said: dict[str, Any] = {"right": CHECKS[name](*arguments)}
        except (RecursionError, MemoryError, OverflowError) as error:
            said = {"gave_up": type(error).__name__}
        except Exception as error:
            said = {"error": str(error)}
        replies.write(json.dumps(said) + "\n")
        replies.flush()


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # not on this system
        pass


if __name__ == "__main__":
    _limit_memory()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    serve(sys.stdin, lines)
