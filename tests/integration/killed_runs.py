"""A run of the command line that is killed by the system, and goes on."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lion_lightning.cli import main
from tests.processes import start


def weights(path: Path) -> dict[str, Any]:
    """The weights in a checkpoint."""
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint["state_dict"]  # type: ignore[no-any-return]


def assert_a_killed_run_ends_equal(
    folder: Path, options: Sequence[str], steps: int, callbacks: Sequence[dict[str, Any]] = ()
) -> None:
    """Kill ``lion fit`` behind its first checkpoint, run it again, and compare with a run that was left alone.

    Args:
        folder: The working folder.
        options: Of ``lion fit``.
        steps: Of the run; the killed one must have made fewer.
        callbacks: Callbacks of both, beside the one that saves.
    """

    def command(run: str) -> list[str]:
        saver = {"dirpath": f"{run}/checkpoints", "every_n_train_steps": 5, "save_last": True}
        saving = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}
        more = [f"--trainer.default_root_dir={run}", f"--trainer.callbacks={json.dumps([*callbacks, saving])}"]
        return ["fit", *options, *more, "--ckpt_path=last"]

    assert main(command("whole")) == 0
    victim = start(main, command("killed"))
    last = folder / "killed" / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert victim.is_alive()
        time.sleep(0.01)
    victim.kill()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert torch.load(last, weights_only=True)["global_step"] < steps  # it had more to do
    assert main(command("killed")) == 0
    whole, killed = weights(folder / "whole" / "checkpoints" / "last.ckpt"), weights(last)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
