"""``lion harness DIR``: a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lion_lightning.printing import literal

if TYPE_CHECKING:
    from lion_lightning.tools.harness.tasks import Figure


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: Command line after ``lion harness``.

    Raises:
        ModuleNotFoundError: If lm-evaluation-harness is not installed.
        ValueError: If the model or a task cannot be used.
    """
    options = _parser().parse_args(arguments)
    from lion_lightning.tools.chat.conversation import require_model
    from lion_lightning.tools.harness.tasks import PAPER_TASKS, HarnessSettings, parse_task, run_tasks

    require_model(options.model)
    tasks = [parse_task(text) for text in options.tasks] or list(PAPER_TASKS)
    settings = HarnessSettings(
        options.include_path, options.batch_size, options.limit, options.chat_template, options.trust_remote_code
    )
    figures = run_tasks(options.model, tasks, Path(options.out), settings)
    _print(options.model, figures)
    print(f"wrote {options.out}")


def _print(model: str, figures: Sequence[Figure]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "shots", "metric", "filter", "value", "± error", "questions", title=literal(model))
    for figure in figures:
        cells = (figure.task, figure.shots, figure.metric, figure.filter, figure.value, figure.error, figure.questions)
        table.add_row(*(literal(_cell(cell)) for cell in cells))
    Console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lion harness", description="Run tasks of lm-evaluation-harness; without --tasks those of the LIONs paper."
    )
    parser.add_argument("model", help="a Hugging Face folder, e.g. runs/dpo/export, or a hub id")
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="names, with shots: hellaswag=10 (the paper's six)"
    )
    parser.add_argument("--include-path", help="folder with YAML files of tasks of your own")
    parser.add_argument("--out", default="harness.json", help="file of the results (harness.json)")
    parser.add_argument("--batch-size", default=8, help="sequences at once (8), or auto")
    parser.add_argument("--limit", type=int, help="questions of each task, for a try (all)")
    parser.add_argument("--chat-template", action="store_true", help="ask as a user's turn under the model's template")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser
