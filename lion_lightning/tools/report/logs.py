"""Read what a run left on disk: metrics, rounds, evaluations, answers, settings and provenance of each stage."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lion_lightning.models.checkpoints.export_files import is_export
from lion_lightning.tools.report.answers import Scored, read_answers
from lion_lightning.tools.report.files import shapes
from lion_lightning.tools.report.files.metrics import Curve, Metrics, metric_files, read_last_line, read_metrics
from lion_lightning.tools.report.files.shapes import FIX, fitted, read_shaped
from lion_lightning.tools.train.config_file import read_config_file

if TYPE_CHECKING:
    from lion_lightning.callbacks.monitors.health import Finding


class Stage(NamedTuple):
    """One stage of one seed.

    Attributes:
        name: Its folder's name, e.g. ``dpo``.
        folder: The stage's folder.
        metrics: Logged metrics.
        before: Validation metrics before the first step, by log key, as ``BeforeAfter`` keeps them; empty without it.
        rounds: Summary of each round of on-policy sampling.
        evaluation: Results of ``lion evaluate``; empty if there are none.
        answers: Answers to the evaluation's prompts, with their scores.
        asked: Answers of ``BeforeAfter`` or ``SampleTable`` to a few prompts: (prompt, before, after).
        config: Complete config of the stage; empty if there is none.
        startup: Summary before the first step, as ``startup.json`` has it; empty if there is none.
        provenance: The last start's entry of ``provenance.json``; empty if there is none.
        findings: Findings of `HealthMonitor`; None where it did not watch.
        done: True for a stage that `lion run` has marked as done.
        seconds: Wall time of such a stage, its evaluation included; None if it is not known.
        export: The exported model; None without a complete one.
        checkpoint: The newest checkpoint; None without any.
        last_line: Last line of its log; empty without one.
    """

    name: str
    folder: Path
    metrics: Metrics
    before: dict[str, float]
    rounds: list[dict[str, Any]]
    evaluation: dict[str, Any]
    answers: list[Scored]
    asked: list[tuple[str, str, str]]
    config: dict[str, Any]
    startup: dict[str, Any]
    provenance: dict[str, Any]
    findings: list[Finding] | None
    done: bool
    seconds: float | None
    export: Path | None
    checkpoint: Path | None
    last_line: str

    @property
    def curves(self) -> dict[str, Curve]:
        """Logged metrics, by log key."""
        return self.metrics.curves

    def values(self, key: str) -> list[float]:
        """Logged values of a metric, in order; empty if it was not logged."""
        return list(self.curves.get(key, {}).values())

    def of_rounds(self, name: str) -> list[float]:
        """Values of a metric of the rounds, without ``on_policy/``; empty if it was not logged."""
        found = [made.get("metrics", {}).get(f"on_policy/{name}") for made in self.rounds]
        return [value for value in found if value is not None]


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
        known = read_shaped(folder / "run.json", shapes.RUN)
        return Launch(shlex.join(known.get("command", [])), known.get("stages", []))
    command = chains[0].stages[-1].provenance.get("command", [])
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
    return [*metric_files(folder), *filter(Path.is_file, early)]


def read_stage(folder: Path) -> Stage:
    """Read the logs under a trainer's ``default_root_dir``.

    Raises:
        ValueError: A file is damaged; the message names it, and what to do.
    """
    # Lightning logs nothing of the sanity check: the first value in the logs is one after training.
    before_after = read_shaped(folder / "before_after.json", shapes.BEFORE_AFTER)
    answers = before_after.get("answers", [])
    evaluation, export, done = folder / "evaluation", folder / "export", folder / "done.json"
    plan = fitted(_yaml(folder / "evaluate.yaml"), shapes.EVALUATE, folder / "evaluate.yaml")
    # without the mark the stage would be trained again
    finished = read_shaped(done, shapes.DONE, "correct it: without it `lion run` trains this stage again")
    return Stage(
        name=folder.name,
        folder=folder,
        metrics=read_metrics(folder),
        before=before_after.get("before", {}).get("metrics", {}),
        rounds=[read_shaped(path, shapes.ROUND) for path in sorted(folder.glob("rounds/round-*.json"))],
        evaluation=read_shaped(evaluation / "results.json", shapes.RESULTS),
        answers=read_answers(evaluation / "scored.jsonl", plan.get("by")),
        asked=[(row["prompt"], row.get("before", ""), row["after"]) for row in answers],
        config=_config(folder),
        startup=read_shaped(folder / "startup.json", shapes.STARTUP),
        provenance=read_shaped(folder / "provenance.json", shapes.PROVENANCE),
        findings=_findings(folder / "health.jsonl"),
        done=done.exists(),
        seconds=finished.get("seconds"),
        export=export if is_export(export) else None,
        checkpoint=_newest_checkpoint(folder),
        last_line=read_last_line(folder / "log.txt"),
    )


def _config(folder: Path) -> dict[str, Any]:
    """The config of ``lion run``'s stage, or the one that ``lion fit`` kept next to its newest log."""
    for path in (folder / "stage.yaml", *(log.with_name("config.yaml") for log in reversed(metric_files(folder)))):
        if path.is_file():
            return _yaml(path)
    return {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return read_config_file(path) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{error}; {FIX}") from error


def _newest_checkpoint(folder: Path) -> Path | None:
    checkpoints = folder.glob("**/checkpoints/[!.]*.ckpt")
    return max(checkpoints, key=lambda path: path.lstat().st_mtime, default=None)


def _findings(path: Path) -> list[Finding] | None:
    if not path.exists():
        return None
    if not path.stat().st_size:
        return []
    from lion_lightning.callbacks.monitors.health import read_findings  # takes seconds, and is seldom needed

    return read_findings(path)
