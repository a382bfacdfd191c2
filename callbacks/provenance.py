"""Where a run came from: code, packages, machine, seed and data, written down when it starts."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lion_lightning.cache import atomic_write, read_json
from lion_lightning.callbacks.folders import require_writable, writes_files
from lion_lightning.printing import redacted_arguments, without_secrets

PACKAGES = (
    "lion-lightning",
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "tokenizers",
    "peft",
    "vllm",
    "numpy",
    "safetensors",
)
"""Whose versions are noted, where they are installed."""


class Provenance(Callback):
    """Writes ``provenance.json`` under ``default_root_dir`` when a fit starts: one entry a start, resumed ones too.

    An entry has the time, the command line, the git commit of the working folder (and whether files differ from it),
    versions of packages, the machine, the seed, the module's account of itself and of its data, with a digest of each
    source's examples. Values of environment variables are never in it, nor keys and passwords of the command line.
    Under ``fast_dev_run`` nothing is written.

    Raises:
        MisconfigurationException: Before training, if the file cannot be written.
    """

    filename = "provenance.json"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before training what would fail later."""
        if stage == "fit":
            require_writable(trainer, Path(trainer.default_root_dir), "give the trainer another default_root_dir.")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the entry."""
        if not trainer.is_global_zero or not writes_files(trainer):
            return
        path = Path(trainer.default_root_dir) / self.filename
        entry = {**surroundings(), **_run(trainer, pl_module)}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps([*_earlier(path), entry], indent=2, default=str) + "\n", encoding="utf-8")


def _earlier(path: Path) -> list[Any]:
    """The entries of earlier starts; a file that holds none is moved out of the way."""
    if not path.exists():
        return []
    try:
        found = read_json(path, "a list of starts", "")
    except ValueError:
        found = None
    if isinstance(found, list):
        return found
    aside = path.with_suffix(f".{uuid4().hex[:8]}.json")
    rank_zero_warn(f"Provenance: {path} is not a list of starts; it was renamed to {aside}.")
    path.replace(aside)
    return []


def surroundings() -> dict[str, Any]:
    """Time, command line, code, packages and machine, as plain data."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redacted_arguments(sys.argv),
        "git": git_state(),
        "python": platform.python_version(),
        "packages": _versions(),
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
    }


def git_state() -> dict[str, Any] | None:
    """Commit of the working folder, and whether tracked files differ from it; None outside of a repository."""
    commit = _git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "changed": bool(_git("status", "--porcelain", "-uno"))}


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-c", "core.fsmonitor=false", *arguments]  # the repository's own settings may name a program
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _run(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    account = getattr(module, "provenance", dict)  # an AlignmentModule's holds its data's, too
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "seed": None if seed is None else int(seed),
        "step": trainer.global_step,
        "strategy": type(trainer.strategy).__name__,
        "devices": trainer.num_devices,
        "nodes": trainer.num_nodes,
        "precision": str(trainer.precision),
        "model": without_secrets(account()),
    }
