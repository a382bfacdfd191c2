"""``lion evaluate``: what a trained model is worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser

DESCRIPTION = """Loss on held-out conversations, rewards on held-out preference pairs, what a judge says of a model's
answers, and its win rate against another model: as much of that as is asked for. Answers are kept in --out, so that a
call that was stopped goes on. docs/evaluation.md shows a config."""


def main(arguments: list[str]) -> None:
    """Evaluate, and print a table.

    Args:
        arguments: Of the command line.
    """
    from lion_lightning.evaluation.run import RESULTS, Evaluation, evaluate

    parser = ArgumentParser(prog="lion evaluate", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="a config file with these keys")
    parser.add_class_arguments(Evaluation)
    given = parser.instantiate(parser.parse_args(arguments))
    settings = {name: value for name, value in vars(given).items() if name != "config"}
    asked = Evaluation(**settings)
    show(evaluate(asked))
    print(f"wrote {asked.out / RESULTS}")


def show(results: dict[str, Any]) -> None:
    """Print results as a table.

    Args:
        results: As :func:`~lion_lightning.evaluation.run.evaluate` gives them.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("", "value", "95% interval", "n", title=results["model"], title_justify="left")
    for row in _rows(results):
        table.add_row(*row)
    Console().print(table)


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for part in ("loss", "rewards"):
        for name, value in results.get(part, {}).items():
            yield f"{part}: {name.removeprefix('rewards/')}", f"{value:.4g}", "", ""
    if found := results.get("accuracy"):
        yield _row("score", found)
        yield from (_row(f"  {kind}", one) for kind, one in found["by"].items())
        for name, form in (("length", "{:.1f} characters"), ("unfinished", "{:.1%}"), ("empty", "{:.1%}")):
            yield f"answers: {name}", form.format(found[name]), "", ""
    if found := results.get("win_rate"):
        yield _row(f"win rate against {found['against']}", found["win_rate"])
        if found["like_length"]:
            yield _row("  answers of like length", found["like_length"])
        for name in ("ties", "disagreements"):
            yield f"  {name}", f"{found[name]:.1%}", "", ""


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    return name, f"{found['estimate']:.3f}", f"[{found['low']:.3f}, {found['high']:.3f}]", str(found["count"])
