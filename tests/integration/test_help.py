"""Every command's help ends in an example, which its own parser takes; of options it takes whole names only."""

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


MEANT = {
    "fit": "--trainer.benchmark",
    "validate": "--ckpt_path",
    "init": "--model",
    "run": "--seeds",
    "report": "--out",
    "evaluate": "--model",
    "chat": "--max-new-tokens",
    "plan": "--memory",
    "inspect": "--rows",
    "export": "--adapter",
    "rounds": "--samples",
    "answers": "--temperature",
    "models": "--jobs",
    "import": "--stage",
    "demo": "--seed",
}
"""An option of each command that has one of its own."""


@pytest.mark.parametrize("command", [*slow_but(TRAINING, "fit"), *COMMANDS])
def test_a_cut_option_is_refused_with_the_whole_one(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    option = MEANT.get(command, "--help")
    arguments = example_of(command, capsys)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, option[:-1], "1"]) == 2
    said = f"lion: error: {option[:-1]}: there is no such option; did you mean {option}?"
    assert said in capsys.readouterr().err.splitlines()


def test_an_unknown_option_of_settings_is_one_line_without_options_of_a_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", "--xyz", "1"]) == 2
    said = "lion: error: --xyz: there is no such option; lion evaluate --help lists them\n"
    assert capsys.readouterr().err == said
