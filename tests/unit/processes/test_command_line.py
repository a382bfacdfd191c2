"""Options of commands: whole names, and the nearest of one that there is not."""

from __future__ import annotations

import pytest

from lion_lightning.processes.command_line import CommandParser, mistyped, unrecognized

KNOWN = ("-o", "--out", "--max-new-tokens", "--template-kwargs", "--temperature")


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        (["--max_new_tokens=3"], "--max_new_tokens: there is no such option; did you mean --max-new-tokens?"),
        (["a", "--temp", "0"], "--temp: there is no such option; did you mean --template-kwargs?"),
        (["--data.x", "--ouut"], "--ouut: there is no such option; did you mean --out?"),
        (["--", "-", "out", "--data.max_length=3", "--figure"], None),
        (["--out"], None),  # a known one, of another parser's message
    ],
)
def test_the_first_option_that_is_nearly_a_known_one_is_said(unknown: list[str], said: str | None) -> None:
    assert mistyped(unknown, KNOWN) == said


def test_the_unknown_arguments_of_a_message() -> None:
    assert unrecognized("unrecognized arguments: --a=1 b") == ["--a=1", "b"]
    assert unrecognized("the following arguments are required: model") == []


def test_a_parser_leaves_what_is_far_from_its_options_to_another_one() -> None:
    parser = CommandParser(prog="x")
    parser.add_argument("--rows", type=int)
    options, rest = parser.parse_known_args(["--data.rows", "3", "--rows=2", "--seed_everything", "1"])
    assert (options.rows, rest) == (2, ["--data.rows", "3", "--seed_everything", "1"])
