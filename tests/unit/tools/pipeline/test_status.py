"""The live status of a pipeline: what it reads from logs, and what it prints with and without a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from lion_lightning.tools.pipeline import status as module
from lion_lightning.tools.pipeline.status import Status, progress_of

FIT = "38%, epoch 1/2, step 190, 0:50 left: loss 0.41, accuracy 0.62"
BAR = "\ranswers:   0%|          | 0/1100 [00:00<?, ?it/s]\ranswers:  47%|████▋     | 512/1100 [00:06<01:07, 75.77it/s]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("Seed set to 0\npolicy     LlamaForCausalLM, 802k parameters\n", ""),
        (f"sanity check: val loss 6.47\n{FIT}\nsaved: all\n", FIT),
        (f"{FIT}\nepoch 3, step 9: loss 1\n", "epoch 3, step 9: loss 1"),  # a fit without an end
        (f"{FIT}\nvalidation at step 514: val loss 0.39\n", "validation at step 514: val loss 0.39"),
        (f"{FIT}\n{BAR}", "47%, answers 512/1100, 1:07 left"),
        (f"{FIT}\nround 2: answers: 100%|█| 8/8 [1:00:06<00:00]\n", "100%, round 2: answers 8/8, 0:00 left"),
        (f"{FIT}\n99%, epo", FIT),  # half written
        ("epoch 3, step 9: loss \x1b[2J1\n", "epoch 3, step 9: loss \N{REPLACEMENT CHARACTER}[2J1"),
    ],
)
def test_the_newest_progress_of_a_log_is_found(tmp_path: Path, text: str, shown: str) -> None:
    (tmp_path / "log.txt").write_text("x" * 20_000 + "\n" + text)
    assert progress_of(tmp_path / "log.txt") == shown


def test_what_an_earlier_process_wrote_is_not_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.txt"
    log.write_text(f"{FIT}\n")
    status = Status()
    status.begin("sft", log)
    with log.open("a") as file:
        file.write("There is no checkpoint yet\n")
    assert progress_of(log, status._running["sft"].start) == ""


def test_without_a_terminal_a_line_per_stage_is_printed_when_it_is_due_and_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("lion_lightning.tools.pipeline.status.time.monotonic", lambda: now[0])
    status = Status()
    logs = {name: tmp_path / f"{name[-1]}.txt" for name in ("seed-0", "seed-1")}
    with status.shown():
        for name, log in logs.items():
            status.begin(name, log)
            log.write_text(f"{FIT}\n")
            status.refresh()
        now[0] = module.EVERY_SECONDS
        status.refresh()
        status.refresh()
        logs["seed-1"].write_text("epoch 2/2, step 200: loss 0.3\n")
        now[0] *= 2
        status.refresh()
    assert capsys.readouterr().out.splitlines() == [
        f"seed-0: {FIT}",
        f"seed-1: {FIT}",
        "seed-1: epoch 2/2, step 200: loss 0.3",
    ]
    assert status.end("seed-0") == 2 * module.EVERY_SECONDS


def test_what_a_stage_warns_of_is_printed_once_and_not_what_the_checks_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, log = Status(), tmp_path / "log.txt"
    log.write_text("warning: of an earlier process\n")
    status.warned.add("few steps")
    with status.shown():
        for name in ("seed-0/sft", "seed-1/sft"):
            status.begin(name, log)
        with log.open("a") as file:
            file.write(f"warning: few steps\nwarning: slow\n{BAR}warning: behind a bar\nwarning: half")
        status.refresh()
        with log.open("a") as file:
            file.write(" written\nno warning: x\n")
        status.refresh()
        with log.open("a") as file:
            file.write("warning: at the end\n")
        status.end("seed-0/sft")
        status.end("seed-1/sft")
    assert capsys.readouterr().out.splitlines() == [
        "seed-0/sft: warning: slow",
        "seed-0/sft: warning: behind a bar",
        "seed-0/sft: warning: half written",
        "seed-0/sft: warning: at the end",
    ]


def test_on_a_terminal_each_stage_has_one_line_that_fits_it_and_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **options: console)
    monkeypatch.setenv("TERM", "xterm")
    status = Status()
    log = tmp_path / "log.txt"
    with status.shown():
        status.begin("sft", log)
        status.refresh()
        log.write_text(f"{FIT}\n")
        status.refresh()
        status.say("sft: done")
        status.end("sft")
    drawn = screen.getvalue()
    assert "sft 0:00 | starting" in drawn
    assert "sft 0:00 | 38%, epoch 1/2, step 190, 0:50 left: loss 0.41, …" in drawn
    assert "\x1b[2K" in drawn  # the line is erased
    assert "sft: done\n" in drawn
