"""`lion rounds`: tables that fit a terminal and hold what applies, and answers with the parts of their scores."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lion_lightning.judges import ExactMatch, Length, VerifierJudge, WeightedJudge
from lion_lightning.rollouts.files import write_rollouts
from lion_lightning.rollouts.rewards import Scoring, SoftOverlongPunishment, UnfinishedScore
from lion_lightning.rollouts.rollout import Rollout, with_usable
from lion_lightning.rollouts.rounds import Round, identity_of, round_path
from lion_lightning.tools.rounds.report import report
from lion_lightning.tools.rounds.tables import metric_tables
from lion_lightning.types import Answer, Prompt

PROMPT = Prompt("<q>1+1?", (5,), ({"role": "user", "content": "1+1?"},), {"answer": "2"}, where="f:1")


def rounds(folder: Path, number: int, items: str = "groups") -> list[Round]:
    made = []
    for place in range(number):
        write_rollouts(round_path(folder, place), [], {"round": place, "identity": "x", "items": items})
        made.append(Round(round_path(folder, place)))
    return made


def printed(tables: Any) -> list[str]:
    console = Console(record=True, width=200)
    for table in tables:
        console.print(table)
    return console.export_text().splitlines()


def test_no_table_is_wider_than_a_terminal(tmp_path: Path) -> None:
    names = [f"{kind}_at_{2**power}" for kind in ("pass", "majority") for power in range(7)]
    names += [f"reward/{name}" for name in ("SoftOverlongPunishment", "RubricLLMJudge", "a b c", "x" * 30, "y" * 30)]
    metrics = [dict.fromkeys(names, 0.123456) | {"length": 123456.7}] * 2
    lines = printed(metric_tables(rounds(tmp_path, 2), metrics))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.count("Right answers to the monitor prompts") == 2  # 14 columns in two tables
    assert text.count("12.3%") == 2 * 14
    titles = [line.strip() for line in lines if line[:1].isalpha()]
    assert len(set(titles)) == len(titles)  # what goes on in another table says so
    assert "x" * 30 in text
    assert "123456.7" in text


def test_only_what_is_known_has_a_column(tmp_path: Path) -> None:
    metrics = [{"score": 1.0, "win_rate": math.nan, "groups": 2.0, "pairs": 3.0}, {"score": math.nan, "kl": 0.5}]
    lines = printed(metric_tables(rounds(tmp_path, 2), metrics))
    titles = [line.strip() for line in lines if line[:1].isalpha()]
    assert titles == ["Scores", "Prompts", "While training"]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [["0", "1.000"], ["1", "-"], ["0", "2"], ["1", "-"], ["0", "-"], ["1", "0.5"]]


@pytest.fixture
def verified(tmp_path: Path) -> Path:
    """Two rounds of a verifier with shaping, each of one prompt and one monitor prompt."""
    judge = WeightedJudge([VerifierJudge(ExactMatch()), VerifierJudge(Length(1, 1))], names=["correct", "brief"])
    scoring = Scoring(judge, [UnfinishedScore(-1.0), SoftOverlongPunishment(4, 2)])
    texts = [("2", "stop"), ("two or 3", "length"), ("2", "stop"), ("4", "stop")]
    answers = tuple(Answer(text, reason, (7,) * len(text)) for text, reason in texts)
    trained, monitor = Rollout(PROMPT, answers), Rollout(PROMPT, answers, b"m" * 16, monitor=True)
    for number in range(2):
        monitors = monitor if number == 0 else replace(monitor, answers=(*answers, answers[0]), num_added=1)
        made = [with_usable(rollout, bool) for rollout in scoring.score([trained, monitors])]
        about = {"round": number, "identity": "x", "items": "groups", "shaping": identity_of(scoring.shaping)}
        write_rollouts(round_path(tmp_path, number), made, about)
    return tmp_path


def test_parts_of_a_score_are_shown_and_shaping_where_it_changed_one(
    verified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lion_lightning.tools.rounds.report.plot", lambda *_: None)
    console = Console(record=True, width=80)
    report(verified, console=console)
    text = console.export_text()
    assert "= 2 (correct 1, brief 1)" in text
    assert "= -2 (correct 0, brief 0, UnfinishedScore -1, SoftOverlongPunishment -1), cut off" in " ".join(
        text.replace("│", "").split()
    )
    assert text.count("2 of 4 answers right") == 2
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│ ")]
    assert ["0", "50.0%", "0.0%", "0.0%", "1.0", "0.0%", "4.5", "50.0%"] in cells  # wrong ones have 1 and 8 tokens
    assert ["1", "50.0%", "83.3%", "100.0%", "100.0%"] in cells  # 1 - 1/6; 2 and 2 outvote two others


@pytest.mark.slow
def test_everything_is_drawn(verified: Path) -> None:
    report(verified, console=Console(quiet=True))
    assert (verified / "rounds.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("shaping", [7, ["x"], [{"a": 1}], None])
def test_other_settings_than_shapings_are_no_error(tmp_path: Path, shaping: Any) -> None:
    write_rollouts(round_path(tmp_path, 0), [], {"round": 0, "identity": "x", "shaping": shaping})
    assert Round(round_path(tmp_path, 0)).shapings <= {"None"}
