"""Lower half of the page: settings, curves, tables and provenance."""

from __future__ import annotations

from collections.abc import Sequence

from lion_lightning.tools.evaluate.intervals import Interval
from lion_lightning.tools.report.facts import data_of, settings_of, stage_title
from lion_lightning.tools.report.logs import ChainLogs, all_stages
from lion_lightning.tools.report.page.html import Cell, Html, Row, items, table, tag
from lion_lightning.tools.report.plots.panels import (
    POLICY_GRADIENT,
    STEPS,
    loss_panels,
    round_panels,
    step_panels,
)
from lion_lightning.tools.report.plots.svg import Bar, interval_plot, line_plot
from lion_lightning.tools.report.scores import Scores, ScoreSlice, verdict, with_interval


def slices(scores: Scores | None) -> Html:
    """Scores by kind of prompt, and by part of the score: a plot, and the same numbers as a table."""
    if scores is None:
        return Html("")
    found = [
        _sliced(scores, title, parts)
        for title, parts in (("By kind of prompt", scores.kinds), ("By part of the score", scores.parts))
        if parts
    ]
    return tag("section", *(part for pair in found for part in pair))


def _sliced(scores: Scores, title: str, parts: Sequence[ScoreSlice]) -> tuple[Html, Html]:
    groups = []
    rows: list[Row] = []
    for part in parts:
        bars = [Bar(stage_title(stage), scores.of(stage, part), place) for place, stage in enumerate(scores.stages)]
        groups.append((part.name, bars))
        row: list[str | Cell] = [part.name, *(Cell(f"{bar.value.estimate:.2f}", "n wide") for bar in bars)]
        if len(bars) > 1:
            change = verdict(scores.gain(scores.stages[-1], scores.stages[0], part))
            row.append(Cell(change.text, change.kind))
        rows.append(row)
    low = min(0.0, *(bar.value.estimate for _, bars in groups for bar in bars))
    high = max(1.0, *(bar.value.estimate for _, bars in groups for bar in bars))
    stages = [stage_title(stage) for stage in scores.stages]
    head = ["", *stages, "last against first"] if len(stages) > 1 else ["", *stages]
    plot = interval_plot(f"{scores.measure}, {title.lower()}", groups, low, high)
    return tag("h2", title), tag("div", plot, table(head, rows), class_="pair")


def curves(chains: Sequence[ChainLogs]) -> Html:
    """Curves of training, of policy gradients, and over the rounds."""
    policy = [stage for stage in all_stages(chains) if "train/ratio" in stage.curves]
    found = {
        "Learning curves": [*loss_panels(chains), *step_panels(chains, STEPS)],
        "Policy gradients": step_panels([ChainLogs("", policy)], POLICY_GRADIENT),
        "Rounds of on-policy sampling": round_panels(chains),
    }
    parts = []
    for title, panels in found.items():
        if panels:
            parts += [tag("h2", title), tag("div", *map(line_plot, panels), class_="plots")]
    return tag("section", *parts)


def settings(chains: Sequence[ChainLogs]) -> Html:
    """The settings that matter, of the first seed: they differ in nothing else."""
    stages = chains[0].stages
    found = {stage.name: {"data": data_of(stage), **settings_of(stage)} for stage in stages}
    names = list(dict.fromkeys(name for one in found.values() for name, value in one.items() if value))
    rows: list[Row] = [[name, *(one.get(name, "") for one in found.values())] for name in names]
    shown = table(["", *(stage_title(stage.name) for stage in stages)], rows, class_="even")
    left_out = []
    for stage in stages:
        for source, messages in stage.startup.get("rows", {}).items():
            left_out += [f"{stage_title(stage.name)}, {source}: {message}" for message in messages]
    rest = [tag("h3", "What was noticed in the data"), items(left_out)] if left_out else []
    return tag("section", tag("h2", "Settings"), shown, *rest)


def rewards(chains: Sequence[ChainLogs]) -> Html:
    """Share of held-out pairs that each stage ranks right, by `lion evaluate`."""
    rows: list[Row] = []
    for chain in chains:
        for stage in chain.stages:
            found = stage.evaluation.get("rewards")
            if not found:
                continue
            cells: list[str | Cell] = [_where(chains, chain.name, stage.name)]
            for name in ("accuracy", "margin"):
                one = found[name]
                cells.append(Cell(with_interval(Interval(one["estimate"], one["low"], one["high"])), "n"))
            rows.append([*cells, Cell(f"{found['pairs']:,} of {found['prompts']:,} prompts", "n")])
    if not rows:
        return Html("")
    note = (
        "A reward model ranks by its own rewards; a policy by the scaled log-ratio to its reference. 95% intervals "
        "over the prompts."
    )
    head = ["stage", "share of pairs ranked right", "margin", "pairs"]
    return tag("section", tag("h2", "Held-out pairs"), table(head, rows), tag("p", note, class_="note"))


VALIDATION = {
    "val/loss": "loss",
    "val/accuracy": "token accuracy",
    "val/rewards/accuracy": "reward accuracy",
    "val/rewards/margin": "reward margin",
    "val/rewards/kendall": "rank correlation of rewards and values",
    "val/log_ratio": "mean log-ratio to the reference, nats",
}


SINGLE_VALUE = (
    "A single value is the one after training: the one before is known with the callback BeforeAfter and "
    "trainer.num_sanity_val_steps: -1."
)
OTHERS_PAIRS = (
    "A stage with rounds learns from its own answers, and the held-out pairs are answers of others, which it may rank "
    "worse while its own get better: judge it by its score."
)
"""Notes below the table of validation."""


def validation(chains: Sequence[ChainLogs]) -> Html:
    """Validation before the first step, where that is known, and at the end, of every stage."""
    logged: set[str] = set()
    for stage in all_stages(chains):
        logged.update(stage.curves)
    known = {key: title for key, title in VALIDATION.items() if key in logged}
    if not known:
        return Html("")
    rows: list[Row] = []
    for chain in chains:
        for stage in chain.stages:
            row: list[str | Cell] = [_where(chains, chain.name, stage.name)]
            for key in known:
                values = stage.values(key)
                before = f"{stage.before[key]:.4g} → " if key in stage.before else ""
                row.append(Cell(f"{before}{values[-1]:.4g}" if values else "", "n"))
            rows.append(row)
    has_rounds = any(stage.rounds for stage in all_stages(chains))
    note = f"{SINGLE_VALUE} {OTHERS_PAIRS}" if has_rounds else SINGLE_VALUE
    shown = table(["stage", *known.values()], rows)
    return tag("section", tag("h2", "Validation, before → after"), shown, tag("p", note, class_="note"))


def origin(chains: Sequence[ChainLogs]) -> Html:
    """Start, commit if there is one, and versions."""
    starts = [(_where(chains, chain.name, stage.name), stage.provenance) for chain in chains for stage in chain.stages]
    commits = any(start.get("git") for _, start in starts)
    rows: list[Row] = []
    for where, start in starts:
        git = start.get("git") or {}
        commit = str(git.get("commit", ""))[:12] + (" (files changed)" if git.get("changed") else "")
        packages = start.get("packages", {})
        names = [name for name in ("torch", "lightning", "transformers") if name in packages]
        versions = ", ".join(f"{name} {packages[name]}" for name in names)
        rows.append([where, str(start.get("started", "")), *([commit] if commits else []), versions])
    note = tag(
        "p",
        "All of it: ",
        tag("code", "provenance.json"),
        " and ",
        tag("code", "stage.yaml"),
        " of each stage.",
        class_="note",
    )
    head = ["stage", "started", *(["commit"] if commits else []), "packages"]
    return tag("section", tag("h2", "Provenance"), table(head, rows), note)


def _where(chains: Sequence[ChainLogs], chain: str, stage: str) -> str:
    """A stage, with its seed where there are several."""
    return stage_title(stage) if len(chains) == 1 else f"{chain}, {stage_title(stage)}"
