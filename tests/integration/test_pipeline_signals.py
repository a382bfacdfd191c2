"""`lion run` and its stage under real signals: one small run that is stopped in each way, and goes on after each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.cli import main
from lion_lightning.tools.pipeline.run import Runner, stop
from tests import tiny

STAGE = {
    "model": {
        "class_path": "lion_lightning.SFTModule",
        "init_args": {"policy": {"config": tiny.config()}, "tokenizer": {"path": "tokenizer"}},
    },
    "data": {
        "class_path": "lion_lightning.SFTDataModule",
        "init_args": {"sources": [{"path": "rows.jsonl"}], "max_length": 16, "mask": "none"},
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 100000,
        "enable_progress_bar": False,
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"save_last": True, "every_n_train_steps": 1},
            }
        ],
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LION_CACHE", str(tmp_path / "cache"))
    tiny.tokenizer_folder(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"w{n} w{n + 1} w9"}) + "\n" for n in range(8)))
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"out": "runs", "stages": {"one": STAGE, "two": STAGE}}))
    return tmp_path


def start() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lion_lightning", "run", "pipeline.yaml", "--no-report"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_until(reached: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process is None or process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps() -> int:
    """Optimizer steps of the newest checkpoint."""
    found = [int(path.stem.rpartition("step=")[2]) for path in Path("runs/one/checkpoints").glob("*step=*.ckpt")]
    return max(found, default=0)


def stages_of(run: int) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid=,sid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    return [
        int(pid) for pid, session, command in rows if int(session) == run and "lion_lightning.tools.pipeline" in command
    ]


def stopped(signum: int, whole_group: bool = False) -> tuple[int, str]:
    """Start the run, wait until it trains further than before, and send it a signal."""
    before, process = steps(), start()
    wait_until(lambda: steps() > before, process)
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    text, _ = process.communicate(timeout=60)
    wait_until(lambda: not stages_of(process.pid))
    return process.returncode, text


@pytest.mark.slow
def test_a_run_that_is_stopped_stops_its_stage_and_goes_on_with_it(folder: Path) -> None:
    process = start()
    wait_until(steps, process)
    second = subprocess.run(
        [sys.executable, "-m", "lion_lightning", "run", "pipeline.yaml"], capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    assert second.stderr.startswith(f"lion: error: runs: `lion run` is using this folder (process {process.pid} on ")
    assert len(second.stderr.splitlines()) == 1
    (stage,) = stages_of(process.pid)
    os.kill(stage, signal.SIGTERM)  # of a stage alone: the run says so, and begins no other
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "runs: stopped; run the same command again to go on from there" in text
    for signum, group, code in [
        (signal.SIGTERM, False, 143),
        (signal.SIGINT, True, 130),
        (signal.SIGKILL, False, -9),
    ]:
        returned, text = stopped(signum, group)
        assert returned == code, text
        assert "Traceback" not in text
        assert text.count("stopped by") == (0 if code == -9 else 1)
    assert not Path("runs/two").exists()
    assert not Path("runs/one/done.json").exists()
    assert not list(Path("runs/one").glob("export/*"))


def test_a_stage_without_done_is_never_taken_for_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever its process says."""
    monkeypatch.setattr(Runner, "_check", lambda self: None)
    monkeypatch.setattr(Runner, "_process", lambda self, command, **streams: 0)
    assert main(["run", "pipeline.yaml", "--no-report"]) == 2
    said = capfd.readouterr()
    assert "runs/one: the stage failed" in said.err
    assert "runs/two" not in said.out


def test_a_report_that_cannot_be_drawn_is_said_and_fails_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Runner, "run", lambda self: None)
    assert main(["run", "pipeline.yaml"]) == 0
    assert "All stages are done, but there is no report: runs is not a folder" in capfd.readouterr().err


def test_a_stage_that_was_stopped_when_all_was_done_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its interpreter takes a while to end."""

    def stopped_at_the_end(self: Runner, command: list[str], **streams: Any) -> int:
        Path(command[3], "done.json").write_text("{}")
        return -signal.SIGTERM

    monkeypatch.setattr(Runner, "_check", lambda self: None)
    monkeypatch.setattr(Runner, "_process", stopped_at_the_end)
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({"out": "runs", "stages": {"one": STAGE}}))
    assert main(["run", "pipeline.yaml", "--no-report"]) == 0
    assert "runs/one: done in " in capfd.readouterr().out


@pytest.mark.parametrize(("code", "said"), [(143, 143), (-signal.SIGINT, 130), (129, 129)])
def test_a_stage_that_was_stopped_stops_the_run_with_its_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int, said: int
) -> None:
    monkeypatch.setattr(Runner, "_check", lambda self: None)
    monkeypatch.setattr(Runner, "_process", lambda self, command, **streams: code)
    assert main(["run", "pipeline.yaml", "--no-report"]) == said
    text = capfd.readouterr().out
    assert "runs: stopped; run the same command again to go on from there" in text
    assert "runs/two" not in text


def test_a_stage_that_the_system_ended_is_named_with_the_signal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Runner, "_check", lambda self: None)
    monkeypatch.setattr(Runner, "_process", lambda self, command, **streams: -signal.SIGKILL)
    assert main(["run", "pipeline.yaml", "--no-report"]) == 2
    error = capfd.readouterr().err
    assert "runs/one: the stage was ended by SIGKILL (see runs/one/log.txt: nothing was written); run the same" in error


def test_a_stage_that_does_not_stop_is_killed_by_the_third_signal() -> None:
    deaf = "import signal, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\nprint(flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    for after in (0.2, 1.0):
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
    stop([process], signal.SIGINT)
    assert process.returncode == -signal.SIGKILL
