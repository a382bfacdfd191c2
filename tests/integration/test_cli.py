"""The command line as a person meets it: shipped configs run, resume and export; bad input gets one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_lightning.cli import main
from tests.demo import copy_demo
from tests.integration.killed_runs import assert_a_killed_run_ends_equal, weights
from tests.marks import slow_but

ROOT = Path(__file__).parents[2]
SFT = ROOT / "configs" / "sft.yaml"
SMALL = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task where the configs look for it."""
    copy_demo(tmp_path / "runs" / "demo", train=96, validation=16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_shipped_sft_config_trains_reports_and_exports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", str(SFT), *SMALL]) == 0
    report = json.loads((folder / "runs/sft/before_after.json").read_text())
    assert set(report) >= {"before", "after"}
    assert (folder / "runs/sft/health.jsonl").read_text() == ""  # it was watched, and nothing was found
    assert not list(folder.glob("runs/sft/lightning_logs/*/checkpoints"))
    out = folder / "out"
    checkpoint = next((folder / "runs/sft/checkpoints").glob("*.ckpt"))
    assert main(["export", str(checkpoint), str(out)]) == 0
    at_end = AutoModelForCausalLM.from_pretrained(folder / "runs/sft/export")
    by_hand = AutoModelForCausalLM.from_pretrained(out)
    ids = AutoTokenizer.from_pretrained(out)("Spell tako.", return_tensors="pt").input_ids
    assert torch.equal(at_end(ids).logits, by_hand(ids).logits)
    assert "runs/demo/train.jsonl" in (out / "README.md").read_text()


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(folder: Path) -> None:
    def fit(run: str, *more: str) -> Path:
        checkpoints = {"dirpath": f"{run}/checkpoints", "every_n_train_steps": 2, "save_last": True, "save_top_k": -1}
        saver = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoints}
        options = [
            "--trainer.max_epochs=4",
            f"--trainer.default_root_dir={run}",
            f"--trainer.callbacks={json.dumps([saver])}",
        ]
        assert main(["fit", "-c", str(SFT), *SMALL, *options, *more]) == 0
        return folder / run / "checkpoints" / "last.ckpt"

    whole = fit("whole", "--trainer.max_steps=8")
    # The schedule's length comes from max_steps, so the first part must be stopped, not shortened.
    part = folder / "whole" / "checkpoints" / "epoch=0-step=4.ckpt"
    resumed = fit("resumed", "--trainer.max_steps=8", f"--ckpt_path={part}")
    assert weights(whole).keys() == weights(resumed).keys()
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_a_tokenizer_of_the_data_is_refused_since_it_would_not_be_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "-c", str(SFT), "--data.tokenizer.path=runs/demo/model"]) == 2
    assert "data.tokenizer: data is tokenized by the model's tokenizer" in capsys.readouterr().err


def test_inspect_shows_the_mask_and_the_packing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-c", str(SFT), "--rows=1"]) == 0
    printed = capsys.readouterr().out
    assert "[[" in printed
    assert "96" in printed
    assert "% full" in printed


def rows(text: str) -> Callable[[Path], list[str]]:
    """A source that holds this text."""

    def write(folder: Path) -> list[str]:
        (folder / "bad.jsonl").write_text(text)
        return ['--data.sources=[{"path": "bad.jsonl"}]']

    return write


def options(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(arguments)


def edited(old: str, new: str) -> Callable[[Path], list[str]]:
    """The shipped config with a typo."""

    def write(folder: Path) -> list[str]:
        (folder / "typo.yaml").write_text(SFT.read_text().replace(old, new))
        return ["-c", "typo.yaml"]

    return write


TURN = '{"role": "user", "content": "a"}'
GOOD = f'{{"messages": [{TURN}, {{"role": "assistant", "content": "b"}}]}}\n'
BAD = {
    "missing config": (options("-c", "nope.yaml"), ["nope.yaml"]),
    "missing file": (options('--data.sources=[{"path": "nope.jsonl"}]'), ["nope.jsonl", "no such file"]),
    "broken JSON line": (rows(GOOD + "{"), ["bad.jsonl:2", "broken JSON"]),
    "unknown format": (rows('{"foo": 1}\n'), ["bad.jsonl:1", "unknown format", "foo", "transform"]),
    "empty messages": (rows('{"messages": []}\n'), ["bad.jsonl:1", "messages is empty"]),
    "roles out of order": (rows(f'{{"messages": [{TURN}, {TURN}]}}\n'), ["bad.jsonl:1", "roles out of order"]),
    "empty file": (rows(""), ["bad.jsonl", "it has no rows"]),
    "negative fraction": (options('--data.sources=[{"path": "runs/demo/train.jsonl", "fraction": -1}]'), ["fraction"]),
    "row longer than the model": (options("--data.max_length=100000"), ["data.max_length", "1024"]),
    "nothing left": (options("--data.max_length=3", "--data.overlong=drop"), ["mixture is empty", "longer than 3"]),
    "unknown template": (
        options("--model.tokenizer.path=runs/demo/model", "--model.tokenizer.chat_template=nope"),
        ["tokenizer.chat_template", "chatml"],
    ),
    "missing model": (options("--model.policy.config=/nope/model"), ["/nope/model", "does not exist"]),
    "typo in a data key": (edited("max_length", "max_lenght"), ["max_lenght", "did you mean 'max_length'"]),
    "typo in a nested key": (edited("warmup:", "warmpu:"), ["warmpu", "did you mean 'warmup'"]),
    "typo in a class": (edited("SFTModule", "SFTModul"), ["SFTModul"]),
    "typo on the command line": (options("--model.policy.pth=x"), ["pth"]),
    "value of the wrong kind": (options("--data.mask=everyone"), ["mask", "everyone", "assistant"]),
}


QUICK = ("missing config", "broken JSON line", "typo in a data key")


@pytest.mark.parametrize("case", slow_but(BAD, *QUICK, "value of the wrong kind"))
def test_bad_input_gets_one_line_and_exit_code_2(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange, expected = BAD[case]
    assert main(["inspect", "-c", str(SFT), *arrange(folder)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(error) == 1
    assert all(word in error[0] for word in expected)
    assert "Traceback" not in error[0]


def test_a_template_without_the_roles_it_needs_names_the_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = '{"role": "system", "content": "s"}'
    arguments = rows(GOOD + GOOD.replace("[", f"[{system}, "))(folder)
    tokenizer = ["--model.tokenizer.path=runs/demo/model", "--model.tokenizer.chat_template=gemma"]
    assert main(["inspect", "-c", str(SFT), *arguments, *tokenizer]) == 2
    assert "bad.jsonl:2" in capsys.readouterr().err


def test_a_tokenizer_without_a_template_says_how_to_give_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs/demo/model/chat_template.jinja").unlink()
    assert main(["inspect", "-c", str(SFT)]) == 2
    assert "chat_template" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_before_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "runs" / "sft").write_text("a file where the folder should go")
    assert main(["fit", "-c", str(SFT), *SMALL]) == 2
    assert "runs/sft" in capsys.readouterr().err


def test_an_unknown_command_names_the_nearest_and_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fitt"]) == 2
    said = capsys.readouterr().err
    assert "unknown command 'fitt'; did you mean 'fit'; the commands are" in said
    assert "fit, validate, test, init, run, report, evaluate, chat, plan, inspect, export" in said


def test_a_validation_without_a_checkpoint_says_that_nothing_trained_is_validated(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        assert main(["validate", "-c", str(SFT), *SMALL]) == 0
    assert "--ckpt_path last for the trained one" in caplog.text


def test_a_missing_checkpoint_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nope.ckpt", "out"]) == 2
    assert "nope.ckpt: no such checkpoint" in capsys.readouterr().err


def test_a_pass_over_no_rows_or_of_no_checkpoint_is_no_success(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "-c", str(SFT), *SMALL, "--data.validation=null"]) == 2
    assert "there are no validation rows; set data.validation" in capsys.readouterr().err
    for command in ("validate", "test"):
        assert main([command, "-c", str(SFT), *SMALL, "--ckpt_path=last"]) == 2  # and not the starting weights
        assert "`last` finds no checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_killed_by_the_system_resumes_to_the_same_weights(folder: Path) -> None:
    options = ["-c", str(SFT), *SMALL, "--trainer.max_epochs=6"]  # 6 batches an epoch
    assert_a_killed_run_ends_equal(folder, options, steps=36)


@pytest.mark.slow
def test_averaged_weights_are_trained_by_the_command_line(folder: Path) -> None:
    average = '[{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}]'  # it copies the module
    options = ["--trainer.max_steps=1", f"--trainer.callbacks={average}", "--trainer.num_sanity_val_steps=0"]
    assert main(["fit", "-c", str(SFT), *SMALL, *options]) == 0
