"""``lion evaluate``: metrics of a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import TYPE_CHECKING, Any

from lion_lightning.printing import literal, require_no_secrets
from lion_lightning.tools.settings_parser import SettingsParser
from lion_lightning.tools.train.config_file import check_config_files
from lion_lightning.tools.train.null_settings import refuse_nulls
from lion_lightning.tools.train.replaced_lists import lists_replaced

if TYPE_CHECKING:
    from lion_lightning.tools.evaluate.run import Evaluation

DESCRIPTION = """Compute the loss on held-out conversations, rewards on held-out preference pairs, a judge's scores of
answers, and the win rate against another model, as configured. Answers are saved in --out, and a rerun continues from
them. docs/evaluation.md shows a config."""
EXAMPLE = "Example: lion evaluate -c configs/evaluate.yaml"


def main(arguments: list[str]) -> None:
    """Run the command."""
    from lion_lightning.tools.chat.conversation import require_model
    from lion_lightning.tools.evaluate.run import RESULTS, evaluate

    evaluation = parse(arguments)
    for model in filter(None, (evaluation.model, evaluation.reference, evaluation.against)):
        require_model(model)
    show(evaluate(evaluation))
    print(f"wrote {evaluation.out / RESULTS}")


def parse(arguments: list[str]) -> Evaluation:
    """Parse a command line."""
    from lion_lightning.tools.evaluate.run import Evaluation

    check_config_files(arguments, dict.fromkeys(signature(Evaluation).parameters))
    parser = SettingsParser(prog="lion evaluate", description=DESCRIPTION, epilog=EXAMPLE)
    parser.add_argument("-c", "--config", action="config", help="a config file with these keys")
    parser.add_class_arguments(Evaluation, sub_configs=True)
    with lists_replaced():
        parsed = parser.parse_args(arguments)
    require_no_secrets(parsed.as_dict())
    refuse_nulls(parsed.as_dict(), Evaluation)
    given = parser.instantiate(parsed)
    settings = {name: value for name, value in vars(given).items() if name != "config"}
    return Evaluation(**settings)


def show(results: dict[str, Any]) -> None:
    """Print results as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "value", "95% interval", "n", title=literal(results["model"]), title_justify="left")
    for row in _rows(results):
        table.add_row(*map(literal, row))
    Console().print(table)


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for part in ("loss", "rewards"):
        for name, value in results.get(part, {}).items():
            if isinstance(value, dict):
                yield _interval(f"{part}: {name}", value)
            else:
                yield f"{part}: {name}", f"{value:,}" if isinstance(value, int) else f"{value:.4g}", "", ""
    if found := results.get("accuracy"):
        yield _interval("score", found)
        for kind, one in found["by"].items():
            yield _interval(f"  {kind}", one)
        if "right" in found:
            yield _interval("share of right answers", found["right"])
        for name, one in found.get("parts", {}).items():
            yield _interval(f"part of the score: {name}", one)
        yield "answers: length", f"{found['length']:.1f} characters", "", ""
        for name in ("unfinished", "empty"):
            yield f"answers: {name}", f"{found[name]:.1%}", "", ""
    if found := results.get("win_rate"):
        yield _interval(f"win rate against {found['against']}", found["win_rate"])
        if found["like_length"]:
            yield _interval("  answers of similar length", found["like_length"])
        for name in ("ties", "disagreements"):
            yield f"  {name}", f"{found[name]:.1%}", "", ""
        yield "  lengths", "{:.1f} and {:.1f} characters".format(*found["lengths"]), "", ""


def _interval(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    return name, f"{found['estimate']:.3f}", f"[{found['low']:.3f}, {found['high']:.3f}]", str(found["count"])
