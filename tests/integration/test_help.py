"""Every command's help ends in an example, which its own parser takes."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from lion_lightning.cli import COMMANDS, TRAINING, main
from tests.marks import slow_but

ROOT = Path(__file__).parents[2]


class Parsed(BaseException):
    """Ends a command once its arguments are parsed."""


def example_of(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The arguments of the example in a command's help."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code in (0, None)
    text = " ".join(capsys.readouterr().out.split())
    found = re.search(r"Example: lion (.+)\Z", text)
    assert found is not None, "the help ends in an example"
    arguments = shlex.split(found[1].partition(" > ")[0])
    assert arguments[0] == command
    return arguments


@pytest.mark.parametrize("command", slow_but(TRAINING, "fit"))
def test_the_example_of_a_training_command_is_parsed(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main([*example_of(command, capsys), "--print_config"])
    assert stop.value.code in (0, None)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_is_parsed(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = example_of(command, capsys)
    monkeypatch.chdir(ROOT)
    kind: Any = jsonargparse.ArgumentParser if command in ("evaluate", "answers") else argparse.ArgumentParser
    parse = kind.parse_args if command in ("evaluate", "answers") else kind.parse_known_args

    def stop_after(*given: Any, **options: Any) -> None:
        parse(*given, **options)
        raise Parsed

    monkeypatch.setattr(kind, parse.__name__, stop_after)
    with pytest.raises(Parsed):
        main(arguments)
