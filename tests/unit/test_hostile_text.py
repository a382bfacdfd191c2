"""Text of data, models and servers that is written for the terminal, the page, the picture or the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.models.checkpoints.export import model_card
from lion_lightning.models.checkpoints.lion_entry import LionEntry
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.printing import literal
from lion_lightning.rollouts.files import write_rollouts
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import round_path
from lion_lightning.tools.evaluate import main as evaluate
from lion_lightning.tools.evaluate.intervals import Interval
from lion_lightning.tools.inspect.inspection import inspect
from lion_lightning.tools.report import terminal
from lion_lightning.tools.report.rules import Advice
from lion_lightning.tools.report.scores import ALL, Scores
from lion_lightning.tools.rounds.report import report
from lion_lightning.types import Answer, Prompt
from tests.unit.data.letters import byte_tokenizer

HOSTILE = "a\x1b]0;owned\x07\x1b[2Jb\r\x9b1mc \u202ed [/red] [link=file:///x]y $\\frac{$"
"""Sets a window's title, clears the screen, hides a line, turns the writing; ends markup that nobody began."""


def assert_harmless(shown: str) -> None:
    assert "owned" in shown
    assert "[/red]" in shown
    for char in "\x1b\x07\x9b\r\u202e":
        assert char not in shown


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_a_literal_text_is_as_it_was_but_for_what_commands() -> None:
    assert literal("[b]東京[/b]\n\tx").plain == "[b]東京[/b]\n\tx"
    assert literal("0123456789", 4).plain == "01 [...] 89"
    assert_harmless(literal(HOSTILE).plain)


def test_inspect_shows_rows_and_names_of_sources_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"question": HOSTILE, "answer": HOSTILE}) + "\n")
    source = Source(str(tmp_path / "x.jsonl"), name="n" + HOSTILE.replace("$", ""))
    inspect(SFTDataModule([source], byte_tokenizer(), max_length=2048, cache_dir=tmp_path / "cache"), 1)
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert shown.count("owned") == 5  # the table, how it is read, the heading, question and answer


def test_prompts_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lion_lightning.tools.inspect.inspection import _show_prompts

    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": HOSTILE}) + "\n")
    pool = PromptPool([Source(str(tmp_path / "x.jsonl"))], byte_tokenizer())
    _show_prompts(Console(soft_wrap=True), pool, 1)
    assert_harmless(capsys.readouterr().out)


def test_rounds_are_shown_and_drawn_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = Prompt(HOSTILE, (1,), ({"role": "user", "content": HOSTILE},), where="f:1")
    answers = (Answer(HOSTILE, "stop", (2,)), Answer("b", "stop", (2,)))
    scored = {HOSTILE: (1.0, 0.0), "other": (1.0, 0.0)}
    rollouts = [Rollout(prompt, answers=answers, scores=(1.0, 0.0), by_judge=scored, pairs=((0, 1),), group=b"1" * 16)]
    rollouts.append(Rollout(prompt, group=b"2" * 16, left_out=HOSTILE))
    write_rollouts(round_path(tmp_path, 0), rollouts, {"round": 0, "identity": "x"})
    report(tmp_path)
    assert_harmless(capsys.readouterr().out)
    assert (tmp_path / "rounds.png").stat().st_size > 1000


def test_evaluations_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    interval = {"estimate": 0.5, "low": 0.0, "high": 1.0, "count": 2}
    found = {**interval, "by": {HOSTILE: interval}, "length": 1.0, "unfinished": 0.0, "empty": 0.0}
    evaluate.show({"model": HOSTILE, "accuracy": found})
    assert_harmless(capsys.readouterr().out)


def test_a_report_s_table_shows_names_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    values = {(HOSTILE, ALL): [Interval(0.5, 0.25, 0.75)]}
    terminal.show([], Scores("accuracy", [HOSTILE], [], [], values, {HOSTILE: []}), [Advice(HOSTILE, "")])
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert "0.500 [0.250, 0.750]" in shown


def test_a_kind_of_prompt_is_no_formula_in_a_picture() -> None:
    from lion_lightning.tools.report.plots.overview import figure

    with figure(1, 1) as (made, (axes,)):
        axes.set_xticks([0], ["$\\frac{$"])
        axes.set_title("$\\frac{$")
        made.canvas.draw()


def test_an_error_of_the_command_line_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    from lion_lightning.cli import main

    assert main(["fit", "--model=\x1b[2Jhttp://ann:hunter2@host\r\nlion: all is well"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert "\r" not in error
    assert "hunter2" not in error


def test_a_card_shows_a_checkpoint_s_names_as_text() -> None:
    hostile = "x\n---\nlicense: mit\n# <script>alert(1)</script> ![p](http://h/p.png)"
    spec = PolicySpec(path=hostile)
    card = model_card(
        LionEntry(spec, TokenizerSpec("t\n```\n# owned"), {}, module=hostile, data={"n": "\n```\n# owned"})
    )
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["lion-lightning"],
        "base_model": hostile,
    }
    assert [line for line in body.splitlines() if line.startswith("#")][1:] == ["## Policy", "## Tokenizer", "## Data"]
    heading = next(line for line in body.splitlines() if line.startswith("# "))
    assert "\\<script\\>" in heading
    assert "\\!\\[p\\](" in heading
