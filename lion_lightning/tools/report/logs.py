"""Read what a run left on disk: metrics, rounds, evaluations, answers, settings and provenance of each stage."""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lion_lightning.cache import read_json, read_object
from lion_lightning.tools.report.answers import Scored, read_answers
from lion_lightning.tools.train.config_file import read_config_file

if TYPE_CHECKING:
    from lion_lightning.callbacks.monitors.health import Finding

Curve = dict[int, float]
"""Values by optimizer step."""

_FIX = "remove it, the report goes without"


class Stage(NamedTuple):
    """One stage of one seed.

    Attributes:
        name: Its folder's name, e.g. ``dpo``.
        folder: The stage's folder.
        curves: Logged metrics, by log key.
        before: Validation metrics before the first step, by log key, as ``BeforeAfter`` keeps them; empty without it.
        rounds: Summary of each round of on-policy sampling.
        evaluation: Results of ``lion evaluate``; empty if there are none.
        answers: Answers to the evaluation's prompts, with their scores.
        asked: Answers of ``BeforeAfter`` or ``SampleTable`` to a few prompts: (prompt, before, after).
        config: Complete config of the stage; empty if there is none.
        startup: Summary before the first step, as ``startup.json`` has it; empty if there is none.
        provenance: The last start's entry of ``provenance.json``; empty if there is none.
        findings: Findings of `HealthMonitor`; None where it did not watch.
        done: The entries of ``done.json``; empty for a stage that is not done, or not one of ``lion run``.
    """

    name: str
    folder: Path
    curves: dict[str, Curve]
    before: dict[str, float]
    rounds: list[dict[str, Any]]
    evaluation: dict[str, Any]
    answers: list[Scored]
    asked: list[tuple[str, str, str]]
    config: dict[str, Any]
    startup: dict[str, Any]
    provenance: dict[str, Any]
    findings: list[Finding] | None
    done: dict[str, Any]

    @property
    def seconds(self) -> float | None:
        """Wall time of the stage, its evaluation included; None if it is not known."""
        return self.done.get("seconds")

    def values(self, key: str) -> list[float]:
        """Logged values of a metric, in order; empty if it was not logged."""
        return list(self.curves.get(key, {}).values())

    def of_rounds(self, name: str) -> list[float]:
        """Values of a metric of the rounds, without ``on_policy/``; empty if it was not logged."""
        found = [made.get("metrics", {}).get(f"on_policy/{name}") for made in self.rounds]
        return [float(value) for value in found if value is not None]


class ChainLogs(NamedTuple):
    """The stages of one seed, in order.

    Attributes:
        name: ``seed-0``, or the run's own name where there is but one.
        stages: The stages.
    """

    name: str
    stages: list[Stage]


class Launch(NamedTuple):
    """How a run was started.

    Attributes:
        command: Command line that goes on with it; empty if it is not known.
        stages: Names of the stages that are planned; empty for a single one.
    """

    command: str = ""
    stages: Sequence[str] = ()


def read_launch(folder: Path, chains: Sequence[ChainLogs]) -> Launch:
    """Read how a run was started, from ``run.json`` of `lion run`, or from what `lion fit` noted in the stage."""
    if (folder / "run.json").exists():
        known = _object(folder / "run.json")
        return Launch(shlex.join(map(str, known.get("command", []))), [str(name) for name in known.get("stages", [])])
    command = [str(word) for word in chains[0].stages[-1].provenance.get("command", [])]
    if command[1:2] != ["fit"]:
        return Launch()
    resumes = [] if any(word.startswith("--ckpt_path") for word in command) else ["--ckpt_path", "last"]
    return Launch(shlex.join(["lion", *command[1:], *resumes]))


def read_run(folder: Path) -> list[ChainLogs]:
    """Read a folder of ``lion run``, of a single stage, or one that holds stages.

    Args:
        folder: Where to look.

    Raises:
        ValueError: If nothing was trained there.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give that of a run, e.g. runs/pipeline")
    seeds = []
    for path in folder.glob("seed-*"):
        number = path.name.partition("-")[2]
        if number.isdecimal():
            seeds.append((int(number), path))  # 2 is before 10
    chains = [ChainLogs(path.name, _stages(path)) for _, path in sorted(seeds)]
    found = [chain for chain in chains or [ChainLogs(folder.name, _stages(folder))] if chain.stages]
    if not found:
        raise ValueError(
            f"{folder}: no stage has logged anything there (no metrics.csv); train first, or name its folder"
        )
    return found


def all_stages(chains: Sequence[ChainLogs], name: str | None = None) -> list[Stage]:
    """The stages of all chains, or those with a name."""
    found = []
    for chain in chains:
        found += [stage for stage in chain.stages if name in (None, stage.name)]
    return found


def stage_names(chains: Sequence[ChainLogs]) -> list[str]:
    """Names of the stages, in the order in which they come."""
    return list(dict.fromkeys(stage.name for stage in all_stages(chains)))


def _stages(folder: Path) -> list[Stage]:
    """The folder itself if a trainer worked there; else those within it, in the order in which they were begun."""
    if _traces(folder):
        return [read_stage(folder)]
    begun = {}
    for path in folder.iterdir():
        if path.is_dir() and (traces := _traces(path)):
            begun[path] = min(each.stat().st_mtime for each in traces)
    return [read_stage(path) for path in sorted(begun, key=lambda path: begun[path])]


def _traces(folder: Path) -> list[Path]:
    """Files that only a stage has: logs, or what is there before a stage logs anything."""
    early = [folder / name for name in ("stage.yaml", "startup.json", "provenance.json", "done.json")]
    return [*_logs(folder), *filter(Path.is_file, early)]


def read_stage(folder: Path) -> Stage:
    """Read the logs under a trainer's ``default_root_dir``."""
    # Lightning logs nothing of the sanity check: the first value in the logs is one after training.
    before, asked = _before_after(folder / "before_after.json")
    starts_file = folder / "provenance.json"
    starts = read_json(starts_file, "what a run wrote", _FIX) if starts_file.exists() else [{}]
    if not isinstance(starts, list) or not starts or not isinstance(starts[-1], dict):
        raise ValueError(f"{starts_file}: not a list of starts; {_FIX}")
    evaluation, startup = folder / "evaluation", _object(folder / "startup.json")
    config, by = _config(folder), _yaml(folder / "evaluate.yaml").get("by")
    return Stage(
        name=folder.name,
        folder=folder,
        curves=_curves(folder),
        before=before,
        rounds=[_object(path) for path in sorted(folder.glob("rounds/round-*.json"))],
        evaluation=_object(evaluation / "results.json"),
        answers=read_answers(evaluation / "scored.jsonl", by, _FIX),
        asked=asked,
        config=config,
        startup={name: part for name, part in startup.items() if isinstance(part, dict)},
        provenance=starts[-1],
        findings=_findings(folder / "health.jsonl"),
        done=_object(folder / "done.json"),
    )


def _before_after(path: Path) -> tuple[dict[str, float], list[tuple[str, str, str]]]:
    """Metrics before the first step and answers, as `BeforeAfter` keeps them."""
    found = _object(path)
    try:
        metrics = {str(key): float(value) for key, value in found.get("before", {}).get("metrics", {}).items()}
        answers = [
            (str(row["prompt"]), str(row["before"] or ""), str(row["after"])) for row in found.get("answers", [])
        ]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, or not what BeforeAfter writes; {_FIX}") from error
    return metrics, answers


def _config(folder: Path) -> dict[str, Any]:
    """The config of ``lion run``'s stage, or the one that ``lion fit`` kept next to its newest log."""
    for path in (folder / "stage.yaml", *(log.with_name("config.yaml") for log in reversed(_logs(folder)))):
        if path.is_file():
            return _yaml(path)
    return {}


def _yaml(path: Path) -> dict[str, Any]:
    return read_config_file(path) if path.is_file() else {}


def _logs(folder: Path) -> list[Path]:
    """Tables of metrics, by the number of Lightning's version folder."""
    versions = {}
    for path in (*folder.glob("metrics.csv"), *folder.glob("lightning_logs/*/metrics.csv")):
        number = path.parent.name.rpartition("_")[2]
        versions[path] = (int(number) if number.isdigit() else -1, path.stat().st_mtime)
    return sorted(versions, key=lambda path: versions[path])


def _curves(folder: Path) -> dict[str, Curve]:
    """Metrics of all versions: where a resumed run logged a step again, the later value holds."""
    curves: dict[str, Curve] = {}
    for path in _logs(folder):
        try:
            with path.open(newline="", encoding="utf-8") as file:
                # A kill may leave half a row, which is logged again later.
                complete = [line for line in file if line.endswith("\n")]
            for row in csv.DictReader(complete):
                step = int(float(row.pop("step", None) or 0))
                for key, value in row.items():
                    # NaN: a step without any answer of the kind that the metric is of
                    if value and key != "epoch" and not math.isnan(number := float(value)):
                        curves.setdefault(key, {})[step] = number
        except (ValueError, TypeError, OverflowError, csv.Error) as error:
            raise ValueError(f"{path}: damaged, or not metrics ({error}); {_FIX}") from error
    return {key: dict(sorted(curve.items())) for key, curve in curves.items()}


def _findings(path: Path) -> list[Finding] | None:
    if not path.exists():
        return None
    if not path.stat().st_size:
        return []
    from lion_lightning.callbacks.monitors.health import read_findings  # takes seconds, and is seldom needed

    return read_findings(path)


def _object(path: Path) -> dict[str, Any]:
    return read_object(path, "what a run wrote", _FIX) if path.exists() else {}
