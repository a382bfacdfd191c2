"""Options of a command line: under their whole names only, and the nearest one where there is none of a name."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from typing_extensions import override


class CommandParser(ArgumentParser):
    """Parser of a command, which refuses options that are short for, or nearly, one of its own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    @override
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, rest = super().parse_known_args(args, namespace)
        if line := mistyped(rest, self._option_string_actions):
            raise ValueError(line)
        return options, rest


def unrecognized(message: str) -> list[str]:
    """The arguments that an error of a parser says are unknown; none where the error is another one."""
    return message.partition("unrecognized arguments: ")[2].split()


def mistyped(unknown: Sequence[str], known: Iterable[str]) -> str | None:
    """One line on the first unknown option that is short for, or nearly, a known one; None if there is none.

    Args:
        unknown: Arguments that a parser has no use for, values among them.
        known: Options of the parser, with the dashes before them.
    """
    names = [name for name in known if name.startswith("--")]
    for argument in unknown:
        option = argument.partition("=")[0]
        if len(option) < 3 or not option.startswith("--") or option in names:
            continue
        longer = [name for name in names if name.startswith(option)]
        if close := longer or get_close_matches(option, names, n=1, cutoff=0.8):
            return f"{option}: there is no such option; did you mean {close[0]}?"
    return None
