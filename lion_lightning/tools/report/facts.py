"""Settings, progress and cost of a stage, from its files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from lion_lightning.models.checkpoints.export_files import is_export
from lion_lightning.printing import printable
from lion_lightning.tools.report.logs import ChainLogs, Stage

MIB, GIB = 2**20, 2**30

TAIL = 4_096
"""Bytes of the end of a log that are read."""

LONGEST = 200
"""Characters of a setting that are shown."""

TITLES = {
    "sft": "SFT",
    "dpo": "DPO",
    "kto": "KTO",
    "grpo": "GRPO",
    "online_dpo": "online DPO",
    "reward": "reward model",
}


class Progress(NamedTuple):
    """How far a stage came.

    Attributes:
        done: True if it was trained to its end, as far as its files tell.
        steps: Optimizer steps that were logged, at least.
        planned: Optimizer steps of the full stage; None if that is not known.
        export: The exported model; None without a complete one.
        checkpoint: The newest checkpoint; None without any.
        last_line: Last line of its log; empty without one.
    """

    done: bool
    steps: int
    planned: int | None
    export: Path | None
    checkpoint: Path | None
    last_line: str


class Cost(NamedTuple):
    """Time, steps, data and memory of a stage; None where it is not known.

    Attributes:
        seconds: Wall time, the evaluation included.
        steps: Optimizer steps.
        rows: Packed rows that went through the model.
        tokens: Tokens in them.
        tokens_per_second: Median over the steps.
        memory: Bytes of one device at the peak.
        measured: True if the memory was measured, False if it is the estimate made before the first step.
    """

    seconds: float | None
    steps: int
    rows: int | None
    tokens: int | None
    tokens_per_second: float | None
    memory: float | None
    measured: bool


def stage_title(name: str) -> str:
    """Name of a stage as it is written in text."""
    return TITLES.get(name, name)


def is_reward_model(stage: Stage) -> bool:
    """True for a stage whose model scores answers and writes none."""
    module = stage.provenance.get("model", {}).get("module") or (stage.config.get("model") or {}).get("class_path", "")
    return "Reward" in str(module)


def progress_of(stage: Stage) -> Progress:
    """How far a stage came, by its files."""
    folder = stage.folder
    export = folder / "export" if is_export(folder / "export") else None
    steps = logged_steps(stage)
    planned = stage.startup.get("run", {}).get("steps")
    planned = planned if isinstance(planned, int) else None
    done = bool(stage.done) or export is not None or _is_last(stage, steps, planned)
    checkpoints = sorted(folder.glob("**/checkpoints/[!.]*.ckpt"), key=lambda path: path.lstat().st_mtime)
    return Progress(
        done, steps, planned, export, checkpoints[-1] if checkpoints else None, _last_line(folder / "log.txt")
    )


def logged_steps(stage: Stage) -> int:
    """Optimizer steps of a stage, up to the last that was logged."""
    return max((max(curve) for curve in stage.curves.values()), default=-1) + 1


def _is_last(stage: Stage, steps: int, planned: int | None) -> bool:
    """True if the last step that was logged may well be the last one that was made.

    `lion run` marks a stage that is done. Of others it is known only to the steps that a logger leaves out at the end,
    and not at all where nobody wrote down how many there were to be.
    """
    if planned is None or not steps:
        return steps > 0 and not (stage.folder / "stage.yaml").exists()
    left_out = 0 if (stage.folder / "stage.yaml").exists() else _log_interval(stage) - 1
    return steps + left_out >= planned


def _log_interval(stage: Stage) -> int:
    """Steps between two that were logged."""
    logged = max(stage.curves.values(), key=len)
    return min((later - before for before, later in pairwise(logged)), default=1)


def _last_line(log: Path) -> str:
    """The last line of a log, which is where an error is; empty if there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = re.split(r"[\r\n]+", file.read().decode("utf-8", "replace").strip())
    last = printable(re.sub(r"\|[ \u2588-\u258f]*\|", "|", lines[-1].removeprefix("lion: error: ")))  # no bar of tqdm
    return last if len(last) <= 2 * LONGEST else f"{last[: 2 * LONGEST]}…"


def cost_of(stage: Stage) -> Cost:
    """Time, steps, data and memory of a stage, from its files."""
    steps = logged_steps(stage)
    run, data = stage.startup.get("run", {}), stage.startup.get("data", {})
    rows = tokens = None
    if "step_tokens" in run and "row_tokens" in data:
        full = stage.values("perf/packing_efficiency")
        share = fmean(full) if full else float(str(data.get("full", "100%")).rstrip("%")) / 100
        rows = steps * run["step_tokens"] // data["row_tokens"]
        tokens = round(steps * run["step_tokens"] * share)
    speed, peaks = stage.values("perf/tokens_per_second"), stage.values("perf/peak_memory")
    measured = max(peaks) * GIB if peaks else stage.startup.get("measured", {}).get("memory")
    memory = stage.startup.get("memory", {}).get("total") if measured is None else measured
    return Cost(_seconds(stage), steps, rows, tokens, median(speed) if speed else None, memory, measured is not None)


def _seconds(stage: Stage) -> float | None:
    """Wall time; of a stage that `lion run` did not finish, from its last start to its last log."""
    if stage.seconds is not None or "started" not in stage.provenance:
        return stage.seconds
    logs = [path.stat().st_mtime for path in stage.folder.glob("lightning_logs/*/metrics.csv")]
    try:
        began = datetime.fromisoformat(str(stage.provenance["started"])).timestamp()
    except ValueError:  # not what Provenance writes
        return None
    return max(0.0, max(logs) - began) if logs else None


def settings_of(stage: Stage) -> dict[str, str]:
    """The settings that matter most, as its config gives them; what it leaves to defaults is not named."""
    model = _arguments(stage.config.get("model"))
    data, trainer = _arguments(stage.config.get("data")), stage.config.get("trainer") or {}
    run, startup = stage.startup.get("run", {}), stage.startup
    policy = model.get("policy")
    policy = {"path": policy} if isinstance(policy, str) else policy or {}
    start = policy.get("path") or (f"{policy['config']} (random weights)" if policy.get("config") else "")
    found = {
        "starts from": start,
        "loss": described(model.get("loss")) or str(startup.get("objective", {}).get("loss", "")),
        "reference": described(model.get("reference")),
        "optimizer": described(model.get("optimizer")),
        "schedule": described(model.get("lr_scheduler")),
        "LoRA": described(policy.get("lora")),
        "epochs": str(run.get("epochs", trainer.get("max_epochs", ""))),
        "a step": f"up to {run['step_tokens']:,} tokens on {run['devices']} device(s)" if "step_tokens" in run else "",
        "longest": f"{data['max_length']:,} tokens" if data.get("max_length") else "",
        "precision": str(stage.provenance.get("precision") or trainer.get("precision") or ""),
        "seed": str(stage.provenance.get("seed", stage.config.get("seed_everything", ""))),
    }
    found |= _sampling_settings(trainer)
    return {name: value for name, value in found.items() if value and value != "None"}


def _sampling_settings(trainer: Mapping[str, Any]) -> dict[str, str]:
    """Settings of the trainer's ``OnPolicySampling``; empty without one."""
    found: dict[str, str] = {}
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:  # Lightning takes a single one, too
        if isinstance(callback, Mapping) and str(callback.get("class_path", "")).endswith("OnPolicySampling"):
            given = _arguments(callback)
            found["answers per prompt"] = str(given.get("num_samples", ""))
            found["sampler"] = described(given.get("sampler"))
            found["judge"] = described(given.get("judge"))
    return found


def data_of(stage: Stage) -> str:
    """The training data in a few words; empty if it is not known."""
    data = stage.startup.get("data", {})
    if "streamed" in data or "window" in data:
        return f"{data.get('sources')} streamed source(s)"
    if stage.rounds:
        kept = [made.get("report", {}).get("kept", {}) for made in stage.rounds]
        rounds = f"{len(kept)} round{'s' * (len(kept) != 1)} of own answers"
        for noun in ("pairs", "answers"):
            if any(noun in one for one in kept):
                return f"{sum(one.get(noun, 0) for one in kept):,} {noun} of {rounds}"
        return rounds
    if "units" in data:
        return str(data["units"])
    return f"{data['samples']:,} examples" if "samples" in data else ""


def started(chains: Sequence[ChainLogs]) -> str:
    """When the first stage began, to the minute; empty if it is not known."""
    times = [str(stage.provenance["started"]) for chain in chains for stage in chain.stages if stage.provenance]
    return min(times)[:16].replace("T", " ") + " UTC" if times else ""


def described(part: Any) -> str:
    """A class of a config in a few words: ``AdamW (lr 0.002, betas 0.9 0.95)``; a weighted sum by its parts."""
    text = _described(part)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _described(part: Any) -> str:
    if part is None or part is False or part == "":  # what is off is not named
        return ""
    if isinstance(part, Mapping) and "class_path" in part:
        name, arguments = str(part["class_path"]).rpartition(".")[2], _arguments(part)
        if weights := arguments.get("weights"):
            parts: Any = next((arguments[key] for key in ("names", "losses", "judges") if key in arguments), [])
            if isinstance(weights, list) and isinstance(parts, list) and len(parts) == len(weights):
                terms = [(_described(weight), _described(one)) for weight, one in zip(weights, parts, strict=True)]
                return " + ".join(term if weight == "1" else f"{weight} {term}" for weight, term in terms)
        inner = ", ".join(f"{key} {_described(value)}" for key, value in arguments.items() if _described(value))
        return f"{name} ({inner})" if inner else name
    if isinstance(part, Mapping):
        return ", ".join(f"{key} {_described(value)}" for key, value in part.items() if _described(value))
    if isinstance(part, list):
        return (" + " if any(isinstance(one, Mapping) for one in part) else " ").join(map(_described, part))
    return f"{part:g}" if isinstance(part, float) else str(part)


def _arguments(part: Any) -> dict[str, Any]:
    found = part.get("init_args") if isinstance(part, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}
