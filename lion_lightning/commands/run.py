"""``lion run PIPELINE``: the stages of a pipeline file, one after the other."""

from __future__ import annotations

import argparse
from pathlib import Path

from lion_lightning.pipeline.plan import read_plan
from lion_lightning.pipeline.run import Runner


def main(arguments: list[str]) -> None:
    """Run what is not done yet, and draw the report.

    Args:
        arguments: Of the command line.
    """
    options = _parser().parse_args(arguments)
    given = {"out": options.out, "seeds": options.seeds, "workers": options.workers}
    plan = read_plan(options.pipeline, {key: value for key, value in given.items() if value is not None})
    Runner(plan).run()
    if not options.no_report:
        from lion_lightning.report import write_report

        print(f"wrote {write_report(plan.out)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lion run",
        description="Run the stages of a pipeline file, each from the export of the one before. The same command goes "
        "on after a stop: a stage that is done is not repeated, and one that was stopped resumes.",
    )
    parser.add_argument("pipeline", type=Path, help="the pipeline file, e.g. configs/pipeline.yaml")
    parser.add_argument("--out", help="folder of the run, instead of the file's")
    parser.add_argument("--seeds", type=int, nargs="+", help="a chain of stages for each of these seeds")
    parser.add_argument("--workers", type=int, help="chains that run at the same time")
    parser.add_argument("--no-report", action="store_true", help="leave the report at the end to `lion report`")
    return parser
