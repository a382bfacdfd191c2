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
from contextlib import suppress
from typing import Any, TextIO

MEMORY = 4 * 2**30
"""Maximum bytes of the process, on systems with ``setrlimit``."""


def math_equal(reference: str, answer: str) -> bool:
    """Compare the final values of a reference answer or solution and of an answer with math-verify.

    Raises:
        ValueError: The reference has no value.
    """
    from math_verify import parse, verify

    wanted = parse(_final(reference), parsing_timeout=None)
    if not wanted:
        raise ValueError(f"math-verify finds no value in the reference answer {reference[-40:]!r}")
    return bool(verify(wanted, parse(_final(answer), parsing_timeout=None), timeout_seconds=None))


def math_value(answer: str) -> str:
    """Final value of an answer, in one form for equal values (1/2 for 0.5); empty if it has none."""
    from math_verify import parse
    from sympy import Eq, nsimplify

    values = parse(_final(answer), parsing_timeout=None)
    if not values or isinstance(values[0], str):
        return str(values[0]) if values else ""
    try:
        value = values[0].doit()  # math-verify leaves 1 + 1 as it is written
        return str(nsimplify(value.rhs if isinstance(value, Eq) else value, rational=True))
    except Exception:  # sympy raises errors of many kinds: an odd value is compared as it is written
        return str(values[0])


def _final(text: str) -> str:
    """The text after the last ``####``; all of it without one."""
    return text.rpartition("####")[2].strip() if "####" in text else text


def regex_found(pattern: str, answer: str) -> bool:
    """Search an answer for a regular expression, whose dot also matches line ends."""
    return re.search(pattern, answer, re.DOTALL) is not None


def schema_valid(schema: Any, answer: str) -> bool:
    """Validate an answer, JSON with or without a code fence, against a JSON schema, as data or as JSON.

    References must be within the schema: nothing is loaded.

    Raises:
        ValueError: The schema is invalid.
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
        raise ValueError(f"the JSON schema is invalid: {getattr(error, 'message', error)}") from error
    try:
        value = json.loads(without_fence(answer), parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return False
    try:
        return bool(kind(read, registry=Registry()).is_valid(value))
    except Unresolvable as error:
        raise ValueError(f"the JSON schema refers to another document, which is not loaded: {error}") from error


def without_fence(answer: str) -> str:
    """The text in a code fence of JSON; all of the answer without one."""
    fence, _, rest = answer.strip().partition("\n")
    return rest.removesuffix("```") if fence.strip().lower() in ("```", "```json") and rest.endswith("```") else answer


def refuse_constant(name: str) -> Any:
    """Refuse what Python's reader takes for a number and JSON does not have: NaN, Infinity."""
    raise ValueError(f"{name} is not JSON")


CHECKS: dict[str, Callable[..., bool | str]] = {
    "math_equal": math_equal,
    "math_value": math_value,
    "regex_found": regex_found,
    "schema_valid": schema_valid,
}


def serve(requests: TextIO, replies: TextIO) -> None:
    """Run checks, given by name and arguments in lines of JSON, until the requests end.

    Each reply is a line of JSON: ``found``, ``gave_up`` or ``error``.
    """
    for line in requests:
        name, arguments = json.loads(line)
        try:
            reply: dict[str, Any] = {"found": CHECKS[name](*arguments)}
        except (RecursionError, MemoryError, OverflowError) as error:
            reply = {"gave_up": type(error).__name__}
        except Exception as error:
            reply = {"error": str(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    with suppress(ImportError, ValueError, OSError):  # a system without limits of memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries must not mix with the replies
    serve(sys.stdin, lines)
