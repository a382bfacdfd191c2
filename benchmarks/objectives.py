"""What objectives over answers and groups are worth, on the made-up task; and a reward model as the judge.

    make demo SEEDS=3                           # or: lion run configs/pipeline.yaml --seeds 0 1 2
    python benchmarks/objectives.py --run configs/pipeline.yaml --seeds 0 1 2 --out runs/objectives

Starts from the stages of a finished `lion run`, as ablations.py does: KTO on the pairs of DPO taken apart starts from
its SFT, and so does a reward model; the online runs start from its DPO, three rounds of 400 prompts with eight answers
each. Stopped, it goes on with the same command. It writes every seed's numbers to results/objectives.json, and
the table, with 95% intervals of paired differences over the seeds, into docs/ablations.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ablations import AS_IT_IS, ONLY_DPO, Variant, accuracies, folder_of, shown_interval, stage_of
from results import put_lines

from lion_lightning.rollouts.rounds import find_rounds
from lion_lightning.tools.evaluate.intervals import Interval, mean_interval
from lion_lightning.tools.pipeline.configs import Config, merged
from lion_lightning.tools.pipeline.plan import Plan, read_plan
from lion_lightning.tools.pipeline.run import Runner
from lion_lightning.tools.report.logs import Stage, read_stage

HERE = Path(__file__).parent
CONFIGS = {name: {"config": f"{name}.yaml"} for name in ("sft", "dpo", "kto", "reward", "online_dpo", "online_ranked")}
"""Stages whose configs the runs change, next to the pipeline file."""

SHORT: Config = {"trainer": {"max_epochs": 3}, "sampling": {"prompts_per_round": 400}}
"""Online runs of three rounds, not the demo's five of 593 prompts."""

LOWER_RATE: Config = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 1e-4}}}}}
"""What a contrast stands without the likelihood of the best answer beside it."""

ALONE = merged(ONLY_DPO, LOWER_RATE)
ALL_PAIRS: Config = {"sampling": {"pairing": {"class_path": "lion_lightning.data.formats.pairing.AllPairs"}}}
JUDGE = "lion_lightning.judges.RewardModelJudge"


def _loss(name: str, **arguments: Any) -> Config:
    return {"model": {"init_args": {"loss": {"class_path": f"lion_lightning.losses.{name}", "init_args": arguments}}}}


class Run(NamedTuple):
    """One objective.

    Attributes:
        variant: Its config, what is changed in it, and the stage that it starts from.
        against: Key of the run that it is compared with, besides the model that it starts from; None for no other.
        judge: Key of the reward model of the same seed that judges its rounds; None for the demo's verifier.
        answers_of: Key of the online run of the same seed whose answers, with the verifier's scores, it is trained on;
            None for the data of its config.
    """

    variant: Variant
    against: str | None = None
    judge: str | None = None
    answers_of: str | None = None

    @property
    def key(self) -> str:
        """Stage and name."""
        return f"{self.variant.stage}: {self.variant.name}"

    @property
    def phase(self) -> int:
        """Runs of a phase need those of the phases before."""
        return 2 if self.judge else 1 if self.answers_of else 0


OWN: Config = {"data": {"init_args": {"pairing": ALL_PAIRS["sampling"]["pairing"]}}, "trainer": {"max_epochs": 3}}
"""A reward model that learns from the answers of three rounds of the DPO model: few pairs differ, so three epochs."""

OTHER_PROMPTS: Config = {"sampling": {"seed": 1}}
"""Another draw of prompts than the one that the reward model has seen the answers of."""

WIDE: Config = {"data": {"init_args": {"min_margin": 3.0}}}
"""Only pairs between which a reward model sees much: it ties no answers, right or wrong, as a verifier does."""

SURE, SURE_OWN = "a reward model as judge, margins of 3", "a judge of its own answers, margins of 3"

ANSWERS = "answers.jsonl"
"""File of those answers, in a seed's folder."""

OWN_REWARD = "reward: on the policy's own answers"
BEST_WORST, BEST_WORST_ALONE = "online_dpo: as it is", "online_dpo: best against worst, DPO alone, lr 1e-4"
RUNS = (
    Run(Variant("kto", AS_IT_IS, {}, "sft")),
    Run(Variant("reward", AS_IT_IS, {}, "sft")),
    Run(Variant("online_dpo", AS_IT_IS, {}, "dpo")),
    Run(Variant("online_dpo", "all pairs", ALL_PAIRS, "dpo"), BEST_WORST),
    Run(Variant("online_dpo", "best against worst, DPO alone, lr 1e-4", ALONE, "dpo"), BEST_WORST),
    Run(Variant("online_ranked", "Plackett-Luce", _loss("PlackettLuceLoss"), "dpo"), BEST_WORST_ALONE),
    Run(Variant("online_ranked", "LiPO-lambda", _loss("LambdaLoss"), "dpo"), BEST_WORST_ALONE),
    Run(Variant("online_dpo", "a reward model as judge", {}, "dpo"), BEST_WORST, judge="reward: as it is"),
    Run(Variant("online_dpo", SURE, WIDE, "dpo"), BEST_WORST, judge="reward: as it is"),
    Run(Variant("reward", "on the policy's own answers", OWN, "sft"), answers_of=BEST_WORST),
    Run(Variant("online_dpo", "a judge of its own answers", OTHER_PROMPTS, "dpo"), BEST_WORST, judge=OWN_REWARD),
    Run(Variant("online_dpo", SURE_OWN, merged(OTHER_PROMPTS, WIDE), "dpo"), BEST_WORST, judge=OWN_REWARD),
)


def plan_of(base: Plan, out: Path, runs: Sequence[Run]) -> Plan:
    """The runs as stages, for every seed of a finished run.

    Args:
        base: The finished run's plan, with the stages of :data:`CONFIGS`.
        out: Where the runs go.
        runs: Which of them.
    """
    chains = []
    for chain in base.chains:
        stages = {stage.name: stage for stage in chain}
        folder = out / chain[0].folder.parent.name
        for run in runs:
            short = SHORT if run.variant.stage.startswith("online") else {}
            variant = run.variant._replace(change=merged(short, run.variant.change))
            stage = stage_of(stages, variant, folder)
            if run.judge:
                stage = stage._replace(config=_judged_by(stage.config, _folder(run.judge, folder) / "export"))
            if run.answers_of:
                answers: Config = {"data": {"init_args": {"sources": [{"path": str(folder / ANSWERS)}]}}}
                stage = stage._replace(config=merged(stage.config, answers))
            chains.append([stage._replace(evaluate=None) if run.variant.stage == "reward" else stage])
    return Plan(out, chains, base.workers)


def _folder(key: str, folder: Path) -> Path:
    """Folder of another run of a seed."""
    return folder_of(next(run.variant for run in RUNS if run.key == key), folder)


def write_answers(rounds: Path, path: Path) -> None:
    """Write the answers of rounds, with their scores, as rows of ranked answers.

    Args:
        rounds: Folder of the rounds.
        path: The JSON Lines file.
    """
    rows = []
    for finished in find_rounds(rounds):
        for rollout in finished.rollouts:
            if rollout.scores and not rollout.monitor:
                texts = [answer.text for answer in rollout.answers]
                rows.append({"question": rollout.prompt.question, "answers": texts, "scores": rollout.scores})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _judged_by(config: Config, folder: Path) -> Config:
    """Let the reward model of a folder judge the rounds."""
    callbacks = []
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("OnPolicySampling"):
            judge = {"class_path": JUDGE, "init_args": {"model": str(folder)}}
            callback = {**callback, "init_args": {**callback["init_args"], "judge": judge}}
        callbacks.append(callback)
    return {**config, "trainer": {**config["trainer"], "callbacks": callbacks}}


# --- what came of it


class Row(NamedTuple):
    """A line of the table; a list has a number a seed.

    Attributes:
        run: The run.
        accuracies: Share of held-out questions that are answered right; empty for a reward model.
        gains: Difference to the model that it starts from; empty for a reward model.
        differences: To the run that it is compared with; empty without one.
        steps: Optimizer steps, up to the last that was logged.
        ranked: Share of held-out pairs whose chosen answer has the higher reward; empty but for a reward model.
    """

    run: Run
    accuracies: list[float]
    gains: list[float]
    differences: list[float]
    steps: list[int]
    ranked: list[float]


def rows(base: Plan, out: Path, runs: Sequence[Run]) -> list[Row]:
    """Read what the runs left.

    Args:
        base: The finished run's plan.
        out: Folder of the runs.
        runs: Which of them.
    """
    found: dict[str, list[float]] = {}
    table = []
    for run in runs:
        stages, starts = [], []
        for chain in base.chains:
            stages.append(read_stage(folder_of(run.variant, out / chain[0].folder.parent.name)))
            starts.append(read_stage(next(one.folder for one in chain if one.name == run.variant.start)))
        right = found[run.key] = accuracies(stages)
        other = found.get(run.against or "", [])
        steps = [max(stage.curves["train/loss"]) + 1 for stage in stages]
        gains = _differences(right, accuracies(starts))
        ranked = _ranked(stages) if run.variant.stage == "reward" else []
        table.append(Row(run, right, gains, _differences(right, other), steps, ranked))
    return table


def _differences(of: Sequence[float], to: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(of, to, strict=True)] if of and to else []


def _ranked(stages: Sequence[Stage]) -> list[float]:
    curves = [stage.curves.get("val/rewards/accuracy", {}) for stage in stages]
    return [list(curve.values())[-1] for curve in curves if curve]


def markdown(table: Sequence[Row]) -> list[str]:
    """The table, in Markdown.

    Args:
        table: Its lines.
    """
    lines = [
        "| run | accuracy | gain over its start | difference | to | optimizer steps | held-out pairs ranked |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        steps = " ".join(map(str, row.steps))
        cells = [
            row.run.key,
            _cell(row.accuracies, "{:.3f}"),
            _cell(row.gains, "{:+.3f}"),
            _cell(row.differences, "{:+.3f}"),
            row.run.against or "",
            steps,
            _cell(row.ranked, "{:.3f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(numbers: Sequence[float], form: str) -> str:
    if not numbers:
        return ""
    found = mean_interval(numbers) if len(numbers) > 1 else Interval(numbers[0], numbers[0], numbers[0])
    return shown_interval(found, form) if len(numbers) > 1 else form.format(found.estimate)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", type=Path, default=Path("configs/pipeline.yaml"), help="pipeline file, with the configs"
    )
    parser.add_argument("--run-out", help="folder of the finished run, if not the file's")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds of that run, if not the file's")
    parser.add_argument("--workers", type=int, help="runs at a time, if not the file's")
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--only", nargs="+", help="keys of runs, as the table names them")
    parser.add_argument("--page", type=Path, help="page to put the table into, between its marks")
    parser.add_argument("--results", type=Path, help="JSON file to write every seed's numbers to")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    given: Mapping[str, Any] = {"out": options.run_out, "seeds": options.seeds, "workers": options.workers}
    runs = [run for run in RUNS if options.only is None or run.key in options.only]
    needed = {"sft", "dpo", *(run.variant.stage for run in runs)}
    stages = {name: config for name, config in CONFIGS.items() if name in needed}
    base = read_plan(
        options.run, {"stages": stages, **{key: value for key, value in given.items() if value is not None}}
    )
    for phase in range(3):  # answers are given before a reward model learns from them, and it judges afterwards
        if some := [run for run in runs if run.phase == phase]:
            for learned, chain in product(filter(None, (run.answers_of for run in some)), base.chains):
                folder = options.out / chain[0].folder.parent.name
                write_answers(_folder(learned, folder) / "rounds", folder / ANSWERS)
            Runner(plan_of(base, options.out, some)).run()
    table = rows(base, options.out, runs)
    lines = markdown(table)
    print("\n".join(lines))
    if options.results:
        numbers = [
            {"run": row.run.key, "against": row.run.against, **dict(list(row._asdict().items())[1:])} for row in table
        ]
        options.results.write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
    if options.page:
        put_lines(options.page, "objectives", lines)


if __name__ == "__main__":
    main()
