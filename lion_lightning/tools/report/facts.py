"""Settings, progress and cost of a stage, from its files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from statistics import fmean, median
from typing import Any, NamedTuple

from lion_lightning.tools.report.logs import ChainLogs, Stage

MIB, GIB = 2**20, 2**30

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
    """

    done: bool
    steps: int
    planned: int | None


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
    module = stage.provenance.get("model", {}).get("module") or _dict(stage.config.get("model")).get("class_path")
    return "Reward" in str(module)


def progress_of(stage: Stage) -> Progress:
    """How far a stage came, by its files."""
    steps = stage.metrics.steps
    planned = stage.startup.get("run", {}).get("steps")
    planned = planned if isinstance(planned, int) else None
    return Progress(stage.done or stage.export is not None or _is_last(stage, steps, planned), steps, planned)


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
    logged = max(stage.curves.values(), key=len, default={})
    return min((later - before for before, later in pairwise(logged)), default=1)


def cost_of(stage: Stage) -> Cost:
    """Time, steps, data and memory of a stage, from its files."""
    steps = stage.metrics.steps
    run, data = stage.startup.get("run", {}), stage.startup.get("data", {})
    rows = tokens = None
    if "step_tokens" in run and "row_tokens" in data:
        full = [share for share in stage.values("perf/packing_efficiency") if math.isfinite(share)]
        share = fmean(full) if full else float(data.get("full", "100%").rstrip("%")) / 100
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
        began = datetime.fromisoformat(stage.provenance["started"]).timestamp()
    except ValueError:  # not what Provenance writes
        return None
    return max(0.0, max(logs) - began) if logs else None


def settings_of(stage: Stage) -> dict[str, str]:
    """The settings that matter most, as its config gives them; what it leaves to defaults is not named."""
    model = _arguments(stage.config.get("model"))
    data, trainer = _arguments(stage.config.get("data")), _dict(stage.config.get("trainer"))
    run, startup = stage.startup.get("run", {}), stage.startup
    policy = model.get("policy")
    policy = {"path": policy} if isinstance(policy, str) else _dict(policy)
    devices = f"{run.get('devices', 1)} device(s)"
    start, config = described(policy.get("path")), described(policy.get("config"))
    found = {
        "starts from": start or (f"{config} (random weights)" if config else ""),
        "loss": described(model.get("loss")) or startup.get("objective", {}).get("loss", ""),
        "reference": described(model.get("reference")),
        "optimizer": described(model.get("optimizer")),
        "schedule": described(model.get("lr_scheduler")),
        "LoRA": described(policy.get("lora")),
        "epochs": _epochs(stage, run.get("epochs", trainer.get("max_epochs"))),
        "a step": f"up to {run['step_tokens']:,} tokens on {devices}" if "step_tokens" in run else "",
        "longest": f"{data['max_length']:,} tokens" if isinstance(data.get("max_length"), int) else "",
        "precision": str(stage.provenance.get("precision") or trainer.get("precision") or ""),
        "seed": str(stage.provenance.get("seed", stage.config.get("seed_everything", ""))),
    }
    found |= _sampling_settings(trainer)
    return {name: value for name, value in found.items() if value and value != "None"}


def _epochs(stage: Stage, planned: Any) -> str:
    """Epochs that were trained, of those that were planned; the plan alone where the log does not tell."""
    limit = planned if isinstance(planned, int) and planned >= 0 else math.inf
    of = "" if math.isinf(limit) else f" of {planned}"
    progress, per_epoch, begun = progress_of(stage), _steps_per_epoch(stage), stage.metrics.epochs
    if progress.steps and per_epoch:
        # with the steps at the end that the logger left out
        ended = _is_last(stage, progress.steps, progress.planned)
        steps = max(progress.steps, progress.planned or 0) if ended else progress.steps
        trained = steps / per_epoch
        # rows are packed anew in each epoch, perhaps into one more or one less
        return str(planned) if trained > 0.99 * limit else f"{trained:.2g}{of}"
    if begun and begun != limit:
        return f"{begun} begun{of if begun < limit else ''}"
    return "" if planned is None else str(planned)


def _steps_per_epoch(stage: Stage) -> float | None:
    """Optimizer steps of an epoch; None where that is not known, or where rounds differ in their rows."""
    run, data = stage.startup.get("run", {}), stage.startup.get("data", {})
    if stage.rounds or "step_tokens" not in run or not data.get("rows") or "row_tokens" not in data:
        return None
    return float(-(-data["rows"] * data["row_tokens"] // run["step_tokens"]))  # rounded up


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
    if "window" in data:
        return f"{data.get('sources', 'a')} streamed source(s)"
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
    stages = [stage for chain in chains for stage in chain.stages]
    times = [stage.provenance["started"] for stage in stages if "started" in stage.provenance]
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
    return _dict(_dict(part).get("init_args"))


def _dict(part: Any) -> dict[str, Any]:
    """A section of a config; empty for anything else, which is for `lion fit` to refuse."""
    return part if isinstance(part, dict) else {}
