"""Ranks that Lightning starts stop together, whichever of them is told to, and the exit code is that of a stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import tiny

pytestmark = pytest.mark.distributed


def ranks_of(process: int) -> list[int]:
    found = subprocess.run(["ps", "--ppid", str(process), "-o", "pid="], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(reached: object, seconds: float = 120) -> None:
    assert callable(reached)
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_fit_of_two_ranks_is_stopped_by_a_signal_to_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which tells the first, as the first tells the others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LION_CACHE", str(tmp_path / "cache"))
    tiny.tokenizer_folder(tmp_path / "tokenizer")
    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"w{n} w{n + 1} w9"}) + "\n" for n in range(8)))
    saving = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": "checkpoints", "every_n_train_steps": 1},
    }
    config = {
        "model": {
            "class_path": "lion_lightning.SFTModule",
            "init_args": {"policy": {"config": tiny.config()}, "tokenizer": {"path": "tokenizer"}},
        },
        "data": {
            "class_path": "lion_lightning.SFTDataModule",
            "init_args": {"sources": [{"path": "rows.jsonl"}], "max_length": 16, "mask": "none"},
        },
        "trainer": {
            **{"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 100000, "default_root_dir": "."},
            **{"enable_progress_bar": False, "logger": False, "callbacks": [saving]},
        },
    }
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "lion_lightning", "fit", "-c", "fit.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: list(Path("checkpoints").glob("*.ckpt")) or process.poll() is not None)
    (other,) = ranks_of(process.pid)
    os.kill(other, signal.SIGTERM)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 143, text
    assert "Traceback" not in text
    assert text.count("lion: stopped by SIGTERM") == 1
    wait_until(lambda: gone(other), 30)
