"""Run one stage in its own process: train, export, evaluate, and mark it as done."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import yaml

from lion_lightning.cache import atomic_write, hash_file, hash_json
from lion_lightning.models.checkpoints.export_files import is_export, missing_of
from lion_lightning.tools.pipeline.configs import Config, differences
from lion_lightning.tools.pipeline.plan import StagePlan
from lion_lightning.tools.report.files import shapes
from lion_lightning.tools.report.files.shapes import read_shaped
from lion_lightning.tools.train.config_file import read_config_file

CONFIG, EVALUATION, DONE = "stage.yaml", "evaluate.yaml", "done.json"


def begin(stage: StagePlan) -> bool:
    """Write the configs of a stage; return False if it was done before, from the same start and with the same config.

    Raises:
        ValueError: If its folder holds the work of another config, or of another start.
    """
    require_same_work(stage)
    done = (stage.folder / DONE).exists()
    if not done:
        stage.folder.mkdir(parents=True, exist_ok=True)
        if changes(stage):  # nothing was trained with the old config, but steps without a checkpoint may be logged
            logs = stage.folder / "lightning_logs"
            if logs.exists():
                number = 1 + len(list(stage.folder.glob("lightning_logs.before-*")))
                logs.rename(stage.folder / f"lightning_logs.before-{number}")
        _write(stage.folder / CONFIG, stage.config)
    if stage.evaluate:
        _write(stage.folder / EVALUATION, stage.evaluate)
    return not done


def require_same_work(stage: StagePlan) -> None:
    """Refuse a folder where another config was trained, or from another model. An untrained stage may change.

    Raises:
        ValueError: If its folder holds the work of another config, or of another start.
    """
    fix = f"undo the change, give the run another `out`, or remove {stage.folder} to run the stage again"
    changed = changes(stage)
    checkpoints = stage.folder.glob("checkpoints/[!.]*.ckpt")
    if changed and ((stage.folder / DONE).exists() or exported(stage.folder) or any(checkpoints)):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(f"{stage.folder}: the config has changed since ({'; '.join(changed[:3])}{more}); {fix}")
    done = _read(stage.folder / DONE)
    if done and (stage.start is None or (stage.start / DONE).exists()) and done.get("start") != _digest(stage.start):
        raise ValueError(f"{stage.folder}: it is done, but started from another model than {stage.start}; {fix}")


def changes(stage: StagePlan) -> list[str]:
    """Keys of the config that have changed since the stage started, each with both values."""
    path = stage.folder / CONFIG
    return list(differences(read_config_file(path), stage.config)) if path.exists() else []


def run_stage(folder: Path, start: Path | None) -> int:
    """Train, export and evaluate in a folder from :func:`begin`, resuming where an earlier process stopped.

    Returns:
        0; 2 after an error that the user can fix, which is printed; 128 plus its number after a signal.
    """
    from lion_lightning.cli import main
    from lion_lightning.models.checkpoints.files import newest_checkpoint

    began = time.time()
    if code := main(["fit", "-c", str(folder / CONFIG), "--ckpt_path", "last"]):
        return code
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) > 0:
        return 0  # the first process does the rest
    trained, export = time.time() - began, str(folder / "export")
    if not exported(folder):
        # Killed between its last checkpoint and its export: Lightning finds nothing left to train, so nothing exports.
        newest = newest_checkpoint(folder / "checkpoints")
        if newest is None:
            raise ValueError(f"{folder}: there is neither an export nor a checkpoint; remove the folder to train again")
        if code := main(["export", str(newest), export]):
            return code
    if (folder / EVALUATION).exists():
        arguments = ["-c", str(folder / EVALUATION), "--model", export, "--out", str(folder / "evaluation")]
        if code := main(["evaluate", *arguments]):
            return code
    finish(folder, start, {"train_seconds": round(trained, 1), "seconds": round(time.time() - began, 1)})
    return 0


def exported(folder: Path) -> bool:
    """True if the export in the folder of a stage is complete, by the list of its files, which is written last.

    Raises:
        ValueError: The list cannot be read.
    """
    return is_export(folder / "export")


def require_start(folder: Path) -> None:
    """Refuse to start from the export of a stage that is done, if it changed afterwards.

    Raises:
        ValueError: The export is gone, or has changed.
    """
    done, export = _read(folder / DONE), folder / "export"
    if not done:
        return
    what = f"is incomplete ({problem})" if (problem := missing_of(export)) else "has changed since"
    if problem or _weights(export) != done.get("export"):
        raise ValueError(
            f"{export}: the stage is done, and its export {what}; bring it back, or remove {export} and "
            f"{folder / DONE} to export it again from its checkpoint"
        )


def finish(folder: Path, start: Path | None, times: dict[str, float]) -> None:
    """Mark a stage as done, with the stage that it started from and its times in seconds.

    Raises:
        ValueError: The export is missing or incomplete.
    """
    if not exported(folder):
        raise ValueError(f"{folder / 'export'}: the export is missing or incomplete, so the stage is not done")
    # With hashes, so that a run notices when a model was trained again.
    known = {"start": _digest(start), "export": _weights(folder / "export"), **times}
    with atomic_write(folder / DONE) as temporary:
        temporary.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def seconds_of(folder: Path) -> float | None:
    """Wall time of a stage that is done; None where it is not known.

    Raises:
        ValueError: What was written of it cannot be read.
    """
    return _read(folder / DONE).get("seconds")


def score_of(folder: Path) -> str:
    """The score of a stage's evaluation for a message, ``; score 0.707 [0.680, 0.733]``; empty if there is none.

    That of a reward model is the share of pairs that it ranks right.
    """
    path = folder / "evaluation" / "results.json"
    results = read_shaped(path, shapes.RESULTS, "remove it")
    for name, found in (("score", results), ("reward accuracy", results.get("rewards", {}))):
        if one := found.get("accuracy"):
            return f"; {name} {one['estimate']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
    return ""


def _digest(start: Path | None) -> str | None:
    """Hash of the model that a stage starts from; None for the first stage."""
    return _read(start / DONE).get("export") if start else None


def _weights(export: Path) -> str:
    """Hash of the weight files of an export."""
    return hash_json({path.name: hash_file(path) for path in export.glob("*.safetensors")})


def _read(path: Path) -> dict[str, Any]:
    """What a stage was done with; empty if it is not done."""
    done: dict[str, Any] = read_shaped(path, shapes.DONE, "remove it, and the stage is done again")
    return done


def _write(path: Path, config: Config) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
