"""SmolLM2-135M through SFT, DPO and online DPO on GSM8K's short problems, graded by the math verifier.

    python benchmarks/gsm8k.py data train.jsonl gsm8k      # the files that benchmarks/gsm8k.yaml reads
    python benchmarks/gsm8k.py run                         # 75 minutes of two cores; goes on after a stop
    python benchmarks/gsm8k.py run --gpu                   # more of everything, sized for eight minutes of one GPU
    python benchmarks/gsm8k.py show --figure curves.png    # accuracies and curves with bootstrap intervals

A model of 135M parameters hardly ever answers a whole problem, so the first of the two steps of a solution stands in
the prompt, and the policy is left the second and the value. The calculator's annotations are left out of the solutions,
but a rejected answer of the preference pairs comes from them: the last calculation with another operator, and its wrong
value. Held out are 200 short problems, and all of two steps that are a little longer; nothing is trained on either.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lion_lightning.rollouts.rounds import find_rounds
from lion_lightning.tools.evaluate.intervals import Interval, bootstrap
from lion_lightning.tools.pipeline.plan import Plan, read_plan
from lion_lightning.tools.pipeline.run import Runner
from lion_lightning.tools.report.answers import read_answers
from lion_lightning.tools.report.scores import with_interval

HERE = Path(__file__).parent
HELD_OUT, PROMPTS = 200, 800
SHORT, LONGER = (1, 220), (221, 320)
"""Characters of the longer one of question and solution: in training and evaluation, and in evaluation alone."""

CALCULATION = re.compile(r"<<([\d.]+)([-+*/])([\d.]+)=([\d.]+)>>")
ON_GPU: Mapping[str, str] = {
    "trainer.accelerator": "gpu",
    "trainer.precision": "bf16-mixed",
    "sft.trainer.max_steps": "400",
    "sft.data.init_args.max_length": "2048",
    "sft.data.init_args.batch_size": "8",
    "dpo.trainer.max_steps": "150",
    "dpo.data.init_args.row_length": "2048",
    "dpo.data.init_args.batch_size": "8",
    "online_dpo.trainer.max_epochs": "12",
    "online_dpo.data.init_args.row_length": "2048",
    "online_dpo.data.init_args.batch_size": "8",
}
"""Options of `lion run` that make more of each stage on a GPU."""


def problems_of(path: Path, steps: int, characters: tuple[int, int] = SHORT) -> list[dict[str, str]]:
    """Problems whose solution has this many lines before its final value.

    Args:
        path: GSM8K's ``train.jsonl``.
        steps: How many.
        characters: The least and the most of the longer one of question and solution.
    """
    problems = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        shown = plain(row["answer"])
        if shown.count("\n") == steps and characters[0] <= max(len(row["question"]), len(shown)) <= characters[1]:
            problems.append({"question": row["question"], "answer": row["answer"]})
    return problems


def plain(solution: str) -> str:
    """A solution without the calculator's annotations."""
    return re.sub(r"<<[^>]*>>", "", solution)


def last_step(problem: Mapping[str, str]) -> dict[str, str]:
    """A problem with its solution in the question, up to the last step."""
    *before, last, value = problem["answer"].split("\n")
    question = "\n".join([problem["question"], *map(plain, before)])
    return {"question": question, "answer": plain(f"{last}\n{value}")}


def wrong_last_step(problem: Mapping[str, str]) -> str | None:
    """The last step with another operator and its value; None where the step has not one plain calculation."""
    *_, last, _ = problem["answer"].split("\n")
    found = CALCULATION.findall(last)
    if len(found) != 1:
        return None
    a, operator, b, result = found[0]
    first, second = float(a), float(b)
    values = {"+": first + second, "-": first - second, "*": first * second, "/": first / second if second else -1.0}
    others = [(sign, str(int(value))) for sign, value in values.items() if value > 0 and value == round(value)]
    others = [(sign, value) for sign, value in others if sign != operator and value != result]
    if not others:
        return None
    sign, value = others[0]
    # "48+24 = 72 clips" becomes "48-24 = 24 clips", signs of money and spaces as they were
    text = re.sub(rf"({re.escape(a)} ?)\{operator}( ?\$?{re.escape(b)})", rf"\1{sign}\2", plain(last))
    before, _, after = text.rpartition(result)
    return f"{before}{value}{after}\n#### {value}"


def pair(problem: Mapping[str, str]) -> dict[str, Any] | None:
    """A preference pair of a problem's last step; None where no wrong one can be made."""
    rejected = wrong_last_step(problem)
    if rejected is None:
        return None
    right = last_step(problem)
    turns = {"chosen": right["answer"], "rejected": rejected}
    return {
        "prompt": [{"role": "user", "content": right["question"]}],
        **{name: [{"role": "assistant", "content": text}] for name, text in turns.items()},
    }


def write_data(train: Path, out: Path) -> None:
    """Write the rows of all stages and of the evaluation.

    Args:
        train: GSM8K's ``train.jsonl``.
        out: Folder to write to.
    """
    problems = problems_of(train, 2)
    rest = problems[:-HELD_OUT]
    others = [*rest[:-PROMPTS], *problems_of(train, 3)]
    files: dict[str, list[dict[str, Any]]] = {
        "sft": [{"question": one["question"], "answer": plain(one["answer"])} for one in others],
        "last_step": [last_step(one) for one in others],
        "pairs": [row for row in map(pair, others) if row],
        "prompts": [last_step(one) for one in rest[-PROMPTS:]],
        "held_out": [last_step(one) for one in [*problems[-HELD_OUT:], *problems_of(train, 2, LONGER)]],
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        print(f"{out / name}.jsonl: {len(rows)} rows")


def scores(plan: Plan) -> dict[str, list[float]]:
    """Scores of the held-out problems by finished stage, in the order of the problems."""
    found = {}
    for stage in plan.chains[0]:
        if answers := read_answers(stage.folder / "evaluation" / "scored.jsonl", None):
            found[stage.name] = [one.score for one in answers]
    return found


def comparisons(by_stage: Mapping[str, Sequence[float]]) -> list[str]:
    """Share of right answers of each stage, and its gain over the stage before, with bootstrap intervals."""
    lines: list[str] = []
    before: Sequence[float] | None = None
    for name, values in by_stage.items():
        line = f"{name}: {with_interval(bootstrap(values), '{:.3f}')} right of {len(values)}"
        if before:  # problem by problem
            gains = bootstrap([one - other for one, other in zip(values, before, strict=True)])
            line += f", {with_interval(gains, '{:+.3f}')} over the stage before"
        lines.append(line)
        before = values
    return lines


def round_scores(rounds: Path) -> list[Interval]:
    """Mean score of each round's answers, with bootstrap intervals over its prompts."""
    found = []
    for finished in find_rounds(rounds):
        means = []
        for rollout in finished.rollouts:
            if rollout.scores and not rollout.monitor:
                means.append(sum(rollout.scores) / len(rollout.scores))
        found.append(bootstrap(means))
    return found


def draw(plan: Plan, path: Path) -> None:
    """Draw the accuracy by stage, the losses by step and the scores by round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from lion_lightning.tools.report.logs import read_stage

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    by_stage = scores(plan)
    _errorbars(axes[0], [bootstrap(values) for values in by_stage.values()])
    axes[0].set_xticks(range(len(by_stage)), list(by_stage))
    axes[0].set_title("share of right answers, held-out problems", fontsize=9)
    for stage in plan.chains[0]:
        curve = read_stage(stage.folder).curves.get("train/loss", {})
        axes[1].plot(list(curve), list(curve.values()), label=stage.name)
    axes[1].set_title("training loss by optimizer step", fontsize=9)
    axes[1].legend(fontsize=8)
    _errorbars(axes[2], round_scores(plan.chains[0][-1].folder / "rounds"))
    axes[2].set_title("mean score of a round's answers, by round", fontsize=9)
    axes[2].xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _errorbars(axis: Any, found: Sequence[Interval]) -> None:
    means = [one.estimate for one in found]
    errors = [[one.estimate - one.low for one in found], [one.high - one.estimate for one in found]]
    axis.errorbar(range(len(found)), means, yerr=errors, fmt="o-", capsize=3)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write the files")
    data.add_argument("train", type=Path, help="GSM8K's train.jsonl")
    data.add_argument("out", type=Path, help="folder to write to")
    for name, text in (("run", "train and evaluate all stages"), ("show", "print and draw what came of them")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--gpu", action="store_true", help="the sizes for a GPU")
        command.add_argument("--figure", type=Path, help="picture to draw")
    options = parser.parse_args(argv)
    if options.command == "data":
        write_data(options.train, options.out)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    changes = {"out": "runs/gsm8k-gpu"} if options.gpu else {}
    plan = read_plan(HERE / "gsm8k.yaml", changes, ON_GPU if options.gpu else {})
    if options.command == "run":
        Runner(plan).run()
    print(*comparisons(scores(plan)), sep="\n")
    if options.figure:
        draw(plan, options.figure)


if __name__ == "__main__":
    main()
