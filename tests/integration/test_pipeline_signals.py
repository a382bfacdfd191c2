"""`lion run` and its stage under real signals: one small run that is stopped in each way, and goes on after each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.cli import main
from lion_lightning.tools.pipeline.run import Runner, stop
from tests import tiny
from tests.processes import in_session, start

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


def wait_until(reached: Callable[[], Any], process: BaseProcess | None = None) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process is None or process.is_alive(), Path("log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def output(process: BaseProcess) -> str:
    """All that a run and its stage have said, once they ended."""
    process.join(60)
    assert process.exitcode is not None
    wait_until(lambda: not stages_of(process))
    return Path("log").read_text()


def steps() -> int:
    """Optimizer steps of the newest checkpoint."""
    found = [int(path.stem.rpartition("step=")[2]) for path in Path("runs/one/checkpoints").glob("*step=*.ckpt")]
    return max(found, default=0)


def stages_of(run: BaseProcess) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid=,sid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    return [
        int(pid)
        for pid, session, command in rows
        if int(session) == run.pid and "lion_lightning.tools.pipeline" in command
    ]


@pytest.fixture
def started() -> Iterator[Callable[[], BaseProcess]]:
    """Starts a run, and returns when it trains further than before."""
    runs = []

    def begin() -> BaseProcess:
        before, process = steps(), start(in_session, "log", main, ["run", "pipeline.yaml", "--no-report"])
        runs.append(process)
        wait_until(lambda: steps() > before, process)
        return process

    yield begin
    for process in runs:
        process.kill()  # where the test failed; its stage ends with it


@pytest.mark.slow
def test_a_run_that_is_stopped_stops_its_stage_and_goes_on_with_it(
    folder: Path, started: Callable[[], BaseProcess], capfd: pytest.CaptureFixture[str]
) -> None:
    process = started()
    assert main(["run", "pipeline.yaml"]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"lion: error: runs: `lion run` is using this folder (process {process.pid} on ")
    assert len(error.splitlines()) == 1
    (stage,) = stages_of(process)
    os.kill(stage, signal.SIGTERM)  # of a stage alone: the run says so, and begins no other
    assert "runs: stopped; run the same command again to go on from there" in output(process)
    assert process.exitcode == 143
    for signum, send, code in [
        (signal.SIGTERM, os.kill, 143),
        (signal.SIGINT, os.killpg, 130),
        (signal.SIGKILL, os.kill, -9),
    ]:
        process = started()
        assert process.pid
        send(process.pid, signum)
        text = output(process)
        assert process.exitcode == code, text
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
