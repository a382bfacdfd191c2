"""Q-SFT from files to answers: the two-step task in little, and what `lion fit` refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from examples.q_sft import two_step
from lion_lightning.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
def test_it_finds_the_way_that_no_game_was_played_often(tmp_path: Path) -> None:
    returns = two_step.run(tmp_path, seed=0, games=500, plays=300, betas=(50.0,))
    assert returns["SFT on all games"] == pytest.approx(0.2, abs=0.1)
    assert returns["SFT weighted by return"] == pytest.approx(0.5, abs=0.15)
    assert returns["Q-SFT, beta 50"] > 0.75


@pytest.mark.parametrize(
    ("reward", "settings", "line"),
    [
        (2, {}, "games.jsonl:1: reward is 2; give a number from 0 to 1"),
        (0, {}, "all rewards are 0, so there is nothing to learn"),
        (1, {"gamma": 2.0}, "QSFTModule: gamma is 2.0; give a number from 0 to 1"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_on_the_command_line(
    reward: float,
    settings: dict[str, float],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    two_step.write_model("start")
    turns = [*two_step.opening(1), *two_step.reply("left"), {"role": "assistant", "content": "a"}]
    Path("games.jsonl").write_text(json.dumps({"messages": turns, "reward": reward}) + "\n")
    model = {"policy": {"path": "start"}, "behaviour": "start", **settings}
    data = {"sources": [{"path": "games.jsonl"}], "max_length": 64}
    config = {
        "model": {"class_path": "lion_lightning.experimental.q_sft.QSFTModule", "init_args": model},
        "data": {"class_path": "lion_lightning.experimental.q_sft.TrajectoryDataModule", "init_args": data},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "logger": False},
    }
    Path("q_sft.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", "q_sft.yaml"]) == 2
    assert line in capsys.readouterr().err
