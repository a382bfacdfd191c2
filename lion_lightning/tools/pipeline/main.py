"""``lion run PIPELINE``: run the stages of a pipeline file in order."""

from __future__ import annotations

import logging
from pathlib import Path

from lion_lightning.printing import redacted_arguments
from lion_lightning.processes.command_line import CommandParser
from lion_lightning.tools.pipeline.plan import read_plan
from lion_lightning.tools.pipeline.run import Runner

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Run what is not done yet, and draw the report.

    Args:
        arguments: Of the command line.
    """
    options, rest = _parser().parse_known_args(arguments)
    given = {"out": options.out, "seeds": options.seeds, "workers": options.workers}
    changes = {key: value for key, value in given.items() if value is not None}
    plan = read_plan(options.pipeline, changes, stage_options(rest))
    Runner(plan, ["lion", "run", *redacted_arguments(arguments)]).run()
    if not options.no_report:
        from lion_lightning.tools.report import write_report

        try:
            print(f"wrote {write_report(plan.out)}")
        except (ValueError, OSError) as error:  # no failure of the run
            logger.warning("All stages are done, but there is no report: %s", error)


def stage_options(arguments: list[str]) -> dict[str, str]:
    """Options of stages by their keys: ``--dpo.trainer.max_steps 3``, or with ``=`` between.

    Args:
        arguments: Arguments of the command line that ``lion run`` does not know itself.

    Raises:
        ValueError: An argument is not such an option.
    """
    found: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        given = value if equals else next(rest, None)
        if not key.startswith("--") or given is None:
            fix = "lion run takes the file as it is: lion run FILE" if argument in ("-c", "--config") else ""
            fix = fix or "give an option of a stage with its value, e.g. --dpo.trainer.max_steps 3"
            raise ValueError(f"{argument}: {fix}")
        found[key.removeprefix("--")] = given
    return found


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lion run",
        description="Run the stages of a pipeline file, each from the export of the one before. The same command goes "
        "on after a stop: a stage that is done is not repeated, and one that was stopped resumes.",
        epilog="Keys of a stage's config are options too: --dpo.trainer.max_steps 3, or --trainer.max_steps 3 for all. "
        "Example: lion run configs/pipeline.yaml --seeds 0 1 2",
    )
    parser.add_argument("pipeline", type=Path, help="the pipeline file, e.g. configs/pipeline.yaml")
    parser.add_argument("--out", help="folder of the run, instead of the file's")
    parser.add_argument("--seeds", type=int, nargs="+", help="a chain of stages for each of these seeds")
    parser.add_argument("--workers", type=int, help="chains that run at the same time")
    parser.add_argument("--no-report", action="store_true", help="leave the report at the end to `lion report`")
    return parser
