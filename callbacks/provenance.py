"""Where a run came from: code, packages, machine, seed and data, written down when it starts."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lion_lightning.cache import read_json
from lion_lightning.callbacks.folders import require_writable_root, write_json, writes_files
from lion_lightning.one_lightning import LionCallback
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


class Provenance(LionCallback):
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
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            require_writable_root(trainer)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not writes_files(trainer):
            return
        account = getattr(pl_module, "provenance", dict)  # an AlignmentModule's holds its data's, too
        seed = os.environ.get("PL_GLOBAL_SEED")
        entry = {
            **surroundings(),
            "seed": None if seed is None else int(seed),
            "step": trainer.global_step,
            "strategy": type(trainer.strategy).__name__,
            "devices": trainer.num_devices,
            "nodes": trainer.num_nodes,
            "precision": str(trainer.precision),
            "model": without_secrets(account()),
        }
        earlier = _earlier(Path(trainer.default_root_dir) / self.filename)
        write_json(trainer, self.filename, [*earlier, entry], default=str)


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
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    commit = _git("rev-parse", "HEAD")  # None outside of a repository
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redacted_arguments(sys.argv),
        "git": commit and {"commit": commit, "changed": bool(_git("status", "--porcelain", "-uno"))},
        "python": platform.python_version(),
        "packages": versions,
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
    }


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-c", "core.fsmonitor=false", *arguments]  # the repository's own settings may name a program
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
