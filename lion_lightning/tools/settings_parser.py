"""Parser of commands that take classes and a config file as their options."""

from __future__ import annotations

from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from typing_extensions import override

from lion_lightning.processes.command_line import mistyped, unrecognized


class SettingsParser(ArgumentParser):
    """Takes whole names of options only; of one that there is not, the error names the nearest."""

    def __init__(self, *, exit_on_error: bool = False, allow_abbrev: bool = False, **settings: Any) -> None:
        super().__init__(**settings, exit_on_error=exit_on_error, allow_abbrev=allow_abbrev)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if unknown := unrecognized(message):
            lists = f"{unknown[0]}: there is no such option; {self.prog} --help lists them"
            raise ValueError(mistyped(unknown, self._option_string_actions) or lists) from ex
        super().error(message, ex)
