"""Tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), each with its own shots."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.models.spec import PolicySpec

logger = logging.getLogger(__name__)


class Task(NamedTuple):
    """A task of the harness.

    Attributes:
        name: Its name there.
        shots: Solved examples before each question; None for as many as the task's own config says.
    """

    name: str
    shots: int | None = None


PAPER_TASKS = (
    Task("hellaswag", 10),
    Task("arc_challenge", 25),
    Task("truthfulqa_mc2", 0),
    Task("winogrande", 5),
    Task("gsm8k", 5),
    Task("mmlu", 5),
)
"""What the LIONs paper (arXiv 2407.06542) calls OpenLLM."""


class Figure(NamedTuple):
    """A number that a task gave.

    Attributes:
        task: Name of the task.
        metric: Name of the metric.
        filter: How answers were read out of what was generated; ``none`` where nothing is generated.
        value: The number.
        error: Its standard error; None where the harness gives none.
        shots: Solved examples before each question; None for a group of tasks.
        questions: How many there were; None for a group of tasks.
    """

    task: str
    metric: str
    filter: str
    value: float
    error: float | None
    shots: int | None
    questions: int | None


@dataclass(frozen=True)
class HarnessSettings:
    """How the harness runs.

    Attributes:
        include_path: Folder with tasks of one's own, as YAML files.
        batch_size: Sequences at once; ``auto`` to find out how many fit, which on a CPU takes longer than it saves.
        limit: Questions of each task, for a try; None for all.
        chat_template: Ask as a user's turn under the model's template; the harness's default is plain text.
        trust_remote_code: Run code that comes with the model.
    """

    include_path: str | None = None
    batch_size: int | str = 8
    limit: int | None = None
    chat_template: bool = False
    trust_remote_code: bool = False


def parse_task(text: str) -> Task:
    """A task as it is written on the command line: ``hellaswag=10``, or ``hellaswag`` for the paper's shots.

    Args:
        text: The name, with ``=`` and the shots or without; a task that the paper has not is run with its own.

    Raises:
        ValueError: The shots are no number.
    """
    name, _, shots = text.partition("=")
    if not shots:
        return next((task for task in PAPER_TASKS if task.name == name), Task(name))
    if not shots.isdigit():
        raise ValueError(f"task {text!r}: {shots!r} is no number of shots; write {name}=5")
    return Task(name, int(shots))


def run_tasks(model: str, tasks: Sequence[Task], out: Path, settings: HarnessSettings | None = None) -> list[Figure]:
    """Run tasks one after the other; the results so far are in the file after each of them.

    Args:
        model: A Hugging Face folder or hub id; safetensors only.
        tasks: What is run.
        out: JSON file of the results: under ``tasks`` what the harness gave, whole; under ``figures`` the numbers.
        settings: How it is run; None for the defaults.

    Returns:
        The numbers of each task; of a group (``mmlu``) those of the group.

    Raises:
        ModuleNotFoundError: The harness is not installed.
        ValueError: There is no such task, or the file cannot be written.
    """
    settings = settings or HarnessSettings()
    manager = _manager(settings)
    _require_known(tasks, manager, settings)
    language_model = _language_model(model, settings)
    report: dict[str, Any] = {"model": model, "versions": _versions(), "tasks": {}, "figures": []}
    figures: list[Figure] = []
    for task in tasks:
        result = _run(task, language_model, manager, settings)
        figures += read_figures(task, result)
        report["tasks"][task.name] = result
        report["figures"] = [figure._asdict() for figure in figures]
        _write(report, out)
    return figures


def read_figures(task: Task, result: Mapping[str, Any]) -> list[Figure]:
    """The numbers in what the harness gave for a task.

    Args:
        task: The task.
        result: What ``lm_eval.simple_evaluate`` returned.
    """
    named = result["results"]
    return [
        Figure(name, *_split(key), value, _error(named[name], key), _shots(result, name), _questions(result, name))
        for name in ([task.name] if _has_numbers(named.get(task.name, {})) else sorted(named))
        for key, value in named[name].items()
        if _is_metric(key, value)
    ]


def _run(task: Task, language_model: Any, manager: Any, settings: HarnessSettings) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    result = simple_evaluate(
        model=language_model,
        tasks=[task.name],
        num_fewshot=task.shots,
        limit=settings.limit,
        task_manager=manager,
        apply_chat_template=settings.chat_template,
        log_samples=False,
    )
    given = set(result.get("n-shot", {}).values())
    if task.shots is not None and given - {task.shots}:
        logger.warning("%s: %d shots were asked for, and the task was run with %s", task.name, task.shots, given)
    return dict(result)


def _manager(settings: HarnessSettings) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "lion harness needs lm-evaluation-harness: pip install 'lion-lightning[harness]'"
        ) from error
    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        raise ValueError(f"{settings.include_path}: no such folder; name one with the YAML files of your tasks")
    return TaskManager(include_path=settings.include_path)


def _require_known(tasks: Sequence[Task], manager: Any, settings: HarnessSettings) -> None:
    known = set(manager.all_tasks)
    for task in tasks:
        if task.name not in known:
            also = (
                f" nor in {settings.include_path}" if settings.include_path else "; a task of yours needs include_path"
            )
            raise ValueError(f"task {task.name!r} is not in lm-evaluation-harness {version('lm_eval')}{also}")


def _language_model(model: str, settings: HarnessSettings) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    # Built here first, and let go: the harness would draw weights that the files lack, and read NaN, without a word.
    PolicySpec(model, dtype="bfloat16", trust_remote_code=settings.trust_remote_code).build()
    return HFLM(
        pretrained=model,
        device="cuda" if torch.cuda.is_available() else "cpu",  # its own default is CUDA, there or not
        batch_size=settings.batch_size,
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=True,
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("lm_eval", "transformers", "torch")}


def _write(report: Mapping[str, Any], out: Path) -> None:
    with explain_write_errors(out, "results", "name another file in --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(report, indent=2, default=str, ensure_ascii=False) + "\n", "utf-8")


# --- the form of the harness's results: {"results": {task: {"metric,filter": 0.5, "metric_stderr,filter": 0.1}}}


def _is_metric(key: str, value: Any) -> bool:
    return "," in key and not _split(key)[0].endswith("_stderr") and isinstance(value, int | float)


def _has_numbers(figures: Mapping[str, Any]) -> bool:
    return any(_is_metric(key, value) for key, value in figures.items())


def _split(key: str) -> tuple[str, str]:
    metric, _, name = key.partition(",")
    return metric, name


def _error(figures: Mapping[str, Any], key: str) -> float | None:
    metric, name = _split(key)
    error = figures.get(f"{metric}_stderr,{name}")
    return float(error) if isinstance(error, int | float) else None  # the harness writes "N/A" where there is none


def _shots(result: Mapping[str, Any], name: str) -> int | None:
    shots = result.get("n-shot", {}).get(name)
    return int(shots) if shots is not None else None


def _questions(result: Mapping[str, Any], name: str) -> int | None:
    samples = result.get("n-samples", {}).get(name)
    return int(samples["effective"]) if samples else None
