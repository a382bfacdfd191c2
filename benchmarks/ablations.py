"""What each choice of the recipe is worth, on the made-up task: one change at a time, over the seeds of a run.

    make demo SEEDS=3                           # or: lion run configs/pipeline.yaml --seeds 0 1 2
    python benchmarks/ablations.py --run configs/pipeline.yaml --seeds 0 1 2 --out runs/ablations

Starts from the stages of a finished `lion run`: a change to SFT trains from scratch again, one to DPO starts from the
run's SFT, one to online DPO from its DPO. All else is the run's. Stopped, it goes on with the same command. It prints
a table (held-out accuracy, difference to the unchanged stage seed by seed, both with 95% intervals over the seeds,
held-out loss, speed) and writes table.md and ablations.png.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from lion_lightning.tools.evaluate.intervals import Interval, mean_interval
from lion_lightning.tools.pipeline.configs import Config, merged, with_output_folder, with_start_model
from lion_lightning.tools.pipeline.plan import Plan, StagePlan, read_plan
from lion_lightning.tools.pipeline.run import Runner
from lion_lightning.tools.report.logs import Stage, read_stage


class Variant(NamedTuple):
    """One change.

    Attributes:
        stage: The stage that is changed.
        name: Of the change, and of its folder.
        change: Laid over the stage's config.
        start: The stage that it starts from; None for the one before.
    """

    stage: str
    name: str
    change: Config
    start: str | None = None


def _model(**arguments: Any) -> Config:
    return {"model": {"init_args": arguments}}


def _data(**arguments: Any) -> Config:
    return {"data": {"init_args": arguments}}


def _beta(beta: float) -> Config:
    losses = [
        {"class_path": "lion_lightning.losses.SigmoidLoss", "init_args": {"beta": beta}},
        {"class_path": "lion_lightning.losses.ChosenNLLLoss"},
    ]
    return _model(loss={"init_args": {"losses": losses}})


def _share(fraction: float) -> Config:
    return _data(sources=[{"path": "runs/demo/preferences.jsonl", "fraction": fraction}])


def _sampling(**arguments: Any) -> Config:
    return {"sampling": arguments}


ONLY_DPO = _model(loss={"class_path": "lion_lightning.losses.SigmoidLoss", "init_args": {"beta": 0.1}})
ONLY_NLL = _model(loss={"class_path": "lion_lightning.losses.ChosenNLLLoss"})

STAGES = ("sft", "dpo", "online_dpo")

AS_IT_IS = "as it is"
"""Nothing changed, run again beside the others: the same weights on a CPU, and a speed to compare theirs with."""

VARIANTS = (
    *(Variant(stage, AS_IT_IS, {}) for stage in STAGES),
    Variant("sft", "padding, not packing", _model(policy={"attention": "sdpa"})),
    Variant("sft", "loss on all tokens", _data(mask="none")),
    Variant("sft", "rows of 64 tokens", _data(max_length=64, batch_size=6)),
    Variant("sft", "rows of 384 tokens", _data(max_length=384, batch_size=1)),
    Variant("dpo", "10% of the pairs", _share(0.1)),
    Variant("dpo", "30% of the pairs", _share(0.3)),
    Variant("dpo", "beta 0.01", _beta(0.01)),
    Variant("dpo", "beta 0.5", _beta(0.5)),
    Variant("dpo", "DPO's loss alone, lr 1e-4", merged(ONLY_DPO, _model(optimizer={"init_args": {"lr": 1e-4}}))),
    Variant("dpo", "chosen answers' NLL alone", ONLY_NLL),
    Variant("online_dpo", "offline: the pairs of DPO again", {}, "dpo"),
    Variant("online_dpo", "online, straight from SFT", {}, "sft"),
    Variant("online_dpo", "4 answers a prompt", _sampling(num_samples=4)),
    Variant("online_dpo", "the prompts' own answers ranked too", _sampling(original_chosen=1.0)),
    Variant("online_dpo", "chosen answers' NLL alone", ONLY_NLL),
    Variant("online_dpo", "DPO's loss alone, lr 1e-4", merged(ONLY_DPO, _model(optimizer={"init_args": {"lr": 1e-4}}))),
)


def plan_of(base: Plan, out: Path, variants: Sequence[Variant]) -> Plan:
    """The variants as stages that start from the stages of a run.

    Args:
        base: The run's plan.
        out: Where the variants go.
        variants: What to change.
    """
    chains = []
    for chain in base.chains:
        stages = {stage.name: stage for stage in chain}
        chains += [[stage_of(stages, variant, out / chain[0].folder.parent.name)] for variant in variants]
    return Plan(out, chains, base.workers)


def chosen(only: Sequence[str] | None) -> list[Variant]:
    """The variants of some stages, or of these names, with what they are compared with.

    Args:
        only: Stages and names; None for all.
    """
    picked = [variant for variant in VARIANTS if only is None or {variant.stage, variant.name} & {*only}]
    stages = {variant.stage for variant in picked}
    return [one for one in VARIANTS if one in picked or (one.stage in stages and one.name == AS_IT_IS)]


def stage_of(stages: dict[str, StagePlan], variant: Variant, out: Path) -> StagePlan:
    """A variant as a stage.

    Args:
        stages: The stages of a seed, by name.
        variant: What to change.
        out: Where the seed's variants go.
    """
    offline = variant.name.startswith("offline")
    own = stages["dpo" if offline else variant.stage]
    config = _changed(deepcopy(own.config), dict(variant.change))
    folder = folder_of(variant, out)
    start = stages[variant.start].folder if variant.start else own.start
    if start:
        config = with_start_model(config, start / "export")
    return StagePlan(variant.name, folder, with_output_folder(config, folder), start, own.evaluate)


def folder_of(variant: Variant, out: Path) -> Path:
    """Folder of a variant among those of its seed."""
    return out / variant.stage / variant.name.replace(" ", "-").replace(",", "").replace("%", "pc").replace("'", "")


def _changed(config: Config, change: Config) -> Config:
    sampling = change.pop("sampling", None)
    changed: Config = merged(config, change)
    for callback in changed["trainer"]["callbacks"]:
        if sampling and callback["class_path"].endswith("OnPolicySampling"):
            callback["init_args"] |= sampling
    return changed


# --- what came of it


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        stage: The stage that was changed.
        name: The change.
        accuracy: Mean over the seeds; None if the run's evaluation asks no questions.
        gain: Difference to the unchanged stage, seed by seed; None for that itself.
        loss: Held-out loss at the end, mean over the seeds: the evaluation's, on answers alone, if it computes one.
        speed: Tokens a second over those of the unchanged stage, mean over the seeds.
    """

    stage: str
    name: str
    accuracy: Interval | None
    gain: Interval | None
    loss: float
    speed: float


def rows(made: Plan, variants: Sequence[Variant]) -> list[Row]:
    """Read what the stages left.

    Args:
        made: The variants' plan, as :func:`plan_of` gives it.
        variants: The variants, stage by stage, each stage's :data:`AS_IT_IS` first.
    """
    table, own = [], list[Stage]()
    for variant in variants:
        folders = [chain[0].folder for chain in made.chains if _is(chain[0], variant)]
        found = [read_stage(folder) for folder in folders]
        own = found if variant.name == AS_IT_IS else own
        table.append(_row(variant.stage, variant.name, found, own))
    return table


def _is(stage: StagePlan, variant: Variant) -> bool:
    return (stage.folder.parent.name, stage.name) == (variant.stage, variant.name)


def _row(stage: str, name: str, found: Sequence[Stage], own: Sequence[Stage]) -> Row:
    right, base = accuracies(found), accuracies(own)
    gain = mean_interval([a - b for a, b in zip(right, base, strict=True)]) if right and found is not own else None
    speed = fmean(_speed(a) / _speed(b) for a, b in zip(found, own, strict=True))
    return Row(stage, name, mean_interval(right) if right else None, gain, fmean(map(_loss, found)), speed)


def accuracies(stages: Sequence[Stage]) -> list[float]:
    """Share of right answers of each, where it was evaluated."""
    return [one.evaluation["accuracy"]["estimate"] for one in stages if "accuracy" in one.evaluation]


def _loss(stage: Stage) -> float:
    evaluated = stage.evaluation.get("loss")
    return evaluated["loss"] if evaluated else _last(stage, "val/loss")


def _speed(stage: Stage) -> float:
    values = list(stage.curves["perf/tokens_per_second"].values())
    return fmean(values[len(values) // 2 :])


def _last(stage: Stage, key: str) -> float:
    return list(stage.curves[key].values())[-1]


def markdown(table: Sequence[Row]) -> str:
    """The table, in Markdown.

    Args:
        table: Its lines.
    """
    lines = ["| stage | change | accuracy | difference | held-out loss | tokens/s |", "|---|---|---|---|---|---|"]
    for row in table:
        gain = shown_interval(row.gain, "{:+.3f}") if row.gain else ""
        accuracy = shown_interval(row.accuracy, "{:.3f}") if row.accuracy else ""
        figures = f"{accuracy} | {gain} | {row.loss:.4f} | {row.speed:.2f}x"
        lines.append(f"| {row.stage} | {row.name} | {figures} |")
    return "\n".join(lines) + "\n"


def shown_interval(found: Interval, form: str) -> str:
    """An estimate with its interval, each number in this form."""
    return f"{form.format(found.estimate)} [{form.format(found.low)}, {form.format(found.high)}]"


def draw(table: Sequence[Row], path: Path) -> None:
    """Draw the differences with their intervals.

    Args:
        table: The lines.
        path: Where to.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    changed = [row for row in table if row.gain]
    figure, axes = plt.subplots(figsize=(7.5, 0.36 * len(changed) + 1), layout="constrained")
    colours = {"sft": "#8a8f98", "dpo": "#3b6fb6", "online_dpo": "#e07b1f"}
    for place, row in enumerate(changed):
        assert row.gain
        mean, low, high = row.gain
        axes.barh(-place, mean, color=colours.get(row.stage, "#3d9a6c"))
        axes.errorbar(mean, -place, xerr=[[mean - low], [high - mean]], color="#222", capsize=3, linewidth=1)
    axes.set_yticks(
        [-place for place in range(len(changed))], [f"{row.stage}: {row.name}" for row in changed], fontsize=8
    )
    axes.axvline(0, color="#222", linewidth=0.8)
    axes.set_xlabel("change of the held-out accuracy (95% over the seeds)", fontsize=8)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", type=Path, default=Path("configs/pipeline.yaml"), help="pipeline file of a finished run"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="that run's seeds, if not the file's")
    parser.add_argument("--run-out", help="that run's folder, if not the file's")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", nargs="+", help="stages to change, or names of changes")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    given = {"out": options.run_out, "seeds": options.seeds}
    base = read_plan(options.run, {key: value for key, value in given.items() if value is not None})
    variants = sorted(chosen(options.only), key=lambda variant: STAGES.index(variant.stage))
    made = plan_of(base, options.out, variants)
    Runner(made).run()
    table = rows(made, variants)
    print(markdown(table))
    (options.out / "table.md").write_text(markdown(table))
    if any(row.gain for row in table):
        draw(table, options.out / "ablations.png")


if __name__ == "__main__":
    main()
