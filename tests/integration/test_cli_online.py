"""Online training from the command line: the shipped config runs and exports; bad input gets one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from lion_lightning.cli import main
from lion_lightning.rollouts.rounds import find_rounds
from tests.demo import copy_demo, copy_start

ROOT = Path(__file__).parents[2]
ONLINE = ROOT / "configs" / "online_dpo.yaml"
RANKED = ROOT / "configs" / "online_ranked.yaml"
GRPO = ROOT / "configs" / "grpo.yaml"
SMALL = [
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=2",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task, and random weights where the config expects those of stage 2."""
    copy_demo(tmp_path / "runs" / "demo", prompts=40)
    copy_start(tmp_path / "runs" / "dpo" / "export")
    (tmp_path / "my_judges.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


JUDGE = '''
class Longest:
    """Random weights are never right, so here more is better."""

    def score(self, prompts, answers):
        return [[len(text) for text in texts] for texts in answers]


class Same:
    def score(self, prompts, answers):
        return [[1.0 for _ in texts] for texts in answers]


class Undecided:
    def score(self, prompts, answers):
        return [[float("nan") for _ in texts] for texts in answers]
'''


def config(path: Path = ONLINE, **changes: Any) -> str:
    """The shipped config with another judge, unfinished answers kept, and other changes to the callback."""
    shipped = yaml.safe_load(path.read_text())
    sampling = shipped["trainer"]["callbacks"][0]["init_args"]
    sampling |= {"judge": {"class_path": "my_judges.Longest"}, "keep_unfinished": True, "monitor_prompts": 4, **changes}
    Path("mine.yaml").write_text(yaml.safe_dump(shipped))
    return "mine.yaml"


def test_the_shipped_config_is_valid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", str(ONLINE), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["callbacks"][0]["init_args"]["num_samples"] == 8


@pytest.mark.slow
def test_it_trains_reports_exports_and_is_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", config(), *SMALL]) == 0
    rounds = find_rounds(folder / "runs/online_dpo/rounds")
    assert [made.number for made in rounds] == [0, 1]
    assert rounds[0].metadata["judge"] == "my_judges.Longest"
    report = json.loads((folder / "runs/online_dpo/before_after.json").read_text())
    assert report["before"]["metrics"]["val/rewards/margin"] == pytest.approx(0, abs=1e-4)
    exported = AutoModelForCausalLM.from_pretrained(folder / "runs/online_dpo/export").state_dict()
    start = AutoModelForCausalLM.from_pretrained(folder / "runs/dpo/export").state_dict()
    assert any(not torch.equal(exported[name], start[name]) for name in start)
    card = (folder / "runs/online_dpo/export/README.md").read_text()
    assert "runs/demo/prompts.jsonl" in card
    capsys.readouterr()
    assert main(["rounds", "runs/online_dpo/rounds"]) == 0
    assert "my_judges.Longest" in capsys.readouterr().out or (folder / "runs/online_dpo/rounds/rounds.png").exists()


@pytest.mark.exhaustive  # as for policy gradients below
def test_the_config_of_groups_trains_reports_exports_and_is_looked_at(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "-c", config(RANKED), *SMALL]) == 0
    rounds = find_rounds(folder / "runs/online_ranked/rounds")
    assert [(made.number, made.items, made.num_pairs) for made in rounds] == [(0, "groups", 0), (1, "groups", 0)]
    metrics = rounds[1].summary["metrics"]
    assert 0 < metrics["on_policy/groups_kept"] <= 1
    report = json.loads((folder / "runs/online_ranked/before_after.json").read_text())
    assert report["before"]["metrics"]["val/rewards/margin"] == pytest.approx(0, abs=1e-4)
    exported = AutoModelForCausalLM.from_pretrained(folder / "runs/online_ranked/export").state_dict()
    start = AutoModelForCausalLM.from_pretrained(folder / "runs/dpo/export").state_dict()
    assert any(not torch.equal(exported[name], start[name]) for name in start)
    card = (folder / "runs/online_ranked/export/README.md").read_text()
    assert "PlackettLuceLoss(beta=0.1) over prompts" in card
    capsys.readouterr()
    assert main(["rounds", "runs/online_ranked/rounds"]) == 0
    printed = capsys.readouterr().out
    assert "groups" in printed
    assert "pairs" not in printed


@pytest.mark.slow
def test_policy_gradients_train_report_export_and_are_looked_at(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "-c", config(GRPO), *SMALL]) == 0
    printed = "".join(capsys.readouterr())
    assert "num_sanity_val_steps" not in printed  # there is no validation to set it for
    rounds = find_rounds(folder / "runs/grpo/rounds")
    assert [(made.number, made.items) for made in rounds] == [(0, "groups"), (1, "groups")]
    assert all(len(rollout.answers) == 8 for rollout in rounds[0].rollouts if not rollout.monitor)
    metrics = rounds[1].summary["metrics"]
    assert metrics["on_policy/steps_per_round"] > 1
    report = json.loads((folder / "runs/grpo/before_after.json").read_text())
    assert (report["before"]["metrics"], report["after"]["metrics"]) == ({}, {})
    assert all(answer["before"] is not None and answer["after"] is not None for answer in report["answers"])
    assert "GRPOLoss(" in (folder / "runs/grpo/export/README.md").read_text()
    assert main(["rounds", "runs/grpo/rounds"]) == 0
    assert main(["report", "runs/grpo"]) == 0
    page = (folder / "runs/grpo/report.html").read_text()
    assert "Rounds of on-policy sampling" in page
    assert "before \N{RIGHTWARDS ARROW} after" not in page
    assert main(["plan", "-c", "mine.yaml", "--gpus=1"]) == 0
    assert "(8 to a prompt)" in capsys.readouterr().out


def test_inspect_shows_the_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-c", str(ONLINE), "--rows=1"]) == 0
    printed = capsys.readouterr().out
    assert "Prompts: 40." in printed
    first = json.loads((folder / "runs/demo/prompts.jsonl").read_text().splitlines()[0])
    assert f"<|user|>{first['question']}<|end|><|assistant|>" in printed


Change = Callable[[], list[str]]

BAD: list[tuple[str, Change, str]] = [
    (
        "no reload",
        lambda: [config(), "--trainer.reload_dataloaders_every_n_epochs=0"],
        "reload_dataloaders_every_n_epochs: 1",
    ),
    (
        "no prompts left",
        lambda: [config(prompts_per_round=36)],
        "no prompts left for round 1: 36 prompts (4 more are monitor prompts) make 1 rounds of 36",
    ),
    (
        "NaN",
        lambda: [config(judge={"class_path": "my_judges.Undecided"})],
        "Undecided returned the score nan for an answer to runs/demo",
    ),
    ("ties", lambda: [config(judge={"class_path": "my_judges.Same"})], "gives no pair to train on"),
    ("no file", lambda: [config(), '--data.prompts=[{"path": "nothing.jsonl"}]'], "nothing.jsonl: no such file"),
    (
        "unreachable server",
        lambda: [
            config(
                sampler={
                    "class_path": "lion_lightning.sampling.ServerSampler",
                    "init_args": {"url": "http://127.0.0.1:9", "retries": 1, "backoff": 0.01},
                }
            )
        ],
        "http://127.0.0.1:9: no response after 2 attempts",
    ),
    (
        "a verifier as a judge",
        lambda: [config(judge={"class_path": "lion_lightning.judges.ExactMatch"})],
        "or give a verifier to lion_lightning.judges.VerifierJudge",
    ),
    ("one sample", lambda: [config(num_samples=1)], "num_samples is 1; give at least 2 answers"),
]


@pytest.mark.parametrize(
    ("change", "said"),  # test_online.py has the others without the command line
    [pytest.param(*rest, id=name, marks=() if name == "no file" else pytest.mark.slow) for name, *rest in BAD],
)
def test_bad_input_is_one_line_and_exit_2(
    folder: Path, change: Change, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "-c", *change(), *SMALL]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lion: error:")]
    assert len(lines) == 1
    assert said in lines[0]


def test_rounds_of_an_empty_folder_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rounds", "runs"]) == 2
    assert "lion: error:" in capsys.readouterr().err
