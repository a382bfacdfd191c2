"""Upper half of the page: what was trained, whether it got better, what it cost, what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from lion_lightning.printing import clock
from lion_lightning.tools.report.facts import GIB, MIB, Cost, cost_of, data_of, progress_of, stage_title, started
from lion_lightning.tools.report.logs import ChainLogs, Launch, Stage, stage_names
from lion_lightning.tools.report.page.html import Cell, Html, Row, items, join, table, tag
from lion_lightning.tools.report.plots.svg import interval_bar
from lion_lightning.tools.report.rules import Advice
from lion_lightning.tools.report.scores import Scores, Verdict, changes, declines, verdict, with_interval

CHANCE = 0.025
"""Share of 95% intervals that lie below zero where nothing changed."""


def header(folder: str, chains: Sequence[ChainLogs]) -> Html:
    """Title, and what was trained in a sentence."""
    first = chains[0].stages[0]
    policy = first.startup.get("policy", {})
    model, size = policy.get("class", "A model"), policy.get("parameters")
    what = model if size is None else f"{model} with {size:,} parameters"
    trained = []
    for stage in chains[0].stages:
        on = data_of(stage)
        trained.append(f"{stage_title(stage.name)} on {on}" if on else stage_title(stage.name))
    seeds = f" {len(chains)} seeds." if len(chains) > 1 else ""
    title = " → ".join(stage_title(name) for name in stage_names(chains))
    when = started(chains)
    return tag(
        "header",
        tag("h1", title),
        tag("p", f"{what}: {', then '.join(trained)}.{seeds}"),
        tag("p", tag("code", folder), f" · {when}" if when else "", class_="note"),
    )


def gains(scores: Scores | None, chains: Sequence[ChainLogs]) -> Html:
    """The headline, and a row for each stage with its score and what it added."""
    if scores is None:
        return tag("section", tag("h2", "Did it get better?"), _no_scores(chains))
    first, last = scores.stages[0], scores.stages[-1]
    over, kind = f"95% interval over {scores.over}", ""
    if first == last:
        big = f"{stage_title(first)}: held-out {scores.measure} {with_interval(scores.of(first))}"
        note = f"{over}; nothing to compare it with."
    else:
        total = verdict(scores.gain(last, first))
        answer = {"better": "Yes", "worse": "No", "undecided": "Not decided", "unknown": "Not decided"}[total.kind]
        text = total.text.removeprefix("not decided: ")
        big = f"{answer}: {stage_title(last)} against {stage_title(first)}: {text}"
        path = " → ".join(f"{scores.of(stage).estimate:.3f}" for stage in scores.stages)
        note, kind = f"Held-out {scores.measure} {path}; {over}.", total.kind
    shown = [tag("p", big, class_="big"), tag("p", note, class_="note")]
    head = tag("div", *shown, class_=f"headline {kind}".rstrip())
    return tag("section", tag("h2", "Did it get better?"), head, _stages(scores))


def _stages(scores: Scores) -> Html:
    # bars begin at 0 and end at 1, unless scores or their intervals lie beyond
    low = min(0.0, *(scores.of(stage).low for stage in scores.stages))
    high = max(1.0, *(scores.of(stage).high for stage in scores.stages))
    rows: list[Row] = []
    for place, stage in enumerate(scores.stages):
        value = scores.of(stage)
        shown = tag("span", with_interval(value), interval_bar(value, place, low, high))
        change = verdict(scores.gain(stage, scores.stages[place - 1])) if place else Verdict("", "")
        row: list[str | Cell] = [stage_title(stage), Cell(shown, "n"), Cell(change.text, change.kind)]
        if scores.seeds > 1:
            row.append(" ".join(f"{one:.3f}" for one in scores.values(stage)))
        rows.append(row)
    head = ["stage", scores.measure, "against the stage before"]
    return table([*head, "each seed"] if scores.seeds > 1 else head, rows)


def _no_scores(chains: Sequence[ChainLogs]) -> Html:
    """Metrics that the stages logged, where no answers were scored."""
    lines = []
    for chain in chains:
        for stage in chain.stages:
            if logged := _logged(stage):
                seed = f"{chain.name}, " if len(chains) > 1 else ""
                lines.append(f"{seed}{stage_title(stage.name)}: {logged}")
    note = tag("p", "Not measured: no answers were scored.", class_="big")
    return tag("div", note, items(lines or ["Nothing else was logged."]), class_="headline")


def _logged(stage: Stage) -> str:
    """The metric of a stage that says most, at its start and its end; empty if none was logged."""
    held_out = stage.values("val/loss")
    if held_out and "val/loss" in stage.before:  # which alone says nothing of the training
        held_out = [stage.before["val/loss"], *held_out]
    shown = {
        "score of sampled answers": stage.of_rounds("score"),
        "reward": stage.values("train/rewards"),
        "held-out loss": held_out,
        "training loss": stage.values("train/loss"),
    }
    said = []
    if known := [(title, values) for title, values in shown.items() if values]:
        title, values = known[0]
        change = f"from {values[0]:.3g} to {values[-1]:.3g}" if len(values) > 1 else f"{values[0]:.3g}"
        said.append(f"{title} {change}")
    if (step := stage.metrics.nan_since.get("train/loss")) is not None:
        said.append(f"training loss NaN from step {step:,} on")
    return ", ".join(said)


def worse(scores: Scores | None) -> Html:
    """Declines that are decided; and the number of answers that got worse and better."""
    if scores is None or len(scores.stages) < 2:
        return Html("")
    found, count = declines(scores)
    lines = []
    for one in found:
        where = f", {stage_title(one.after)} against {stage_title(one.before)}: {one.verdict.text}"
        lines.append(tag("span", tag("b", one.what), where, class_="worse"))
    none = tag(
        "p",
        f"Nothing is decidedly worse, by {count} comparisons of all prompts, kinds of prompts and parts of the grade.",
    )
    note = f"Of {count} comparisons about {count * CHANCE:.1f} would stand here by chance, were there no difference."
    answers = []
    for after, before in scores.steps():
        if change := changes(scores, after, before):
            title = f"{stage_title(after)} against {stage_title(before)}"
            worse_ones, better_ones = f"{change.worse:,} answers got worse", f"{change.better:,} better"
            answers.append(f"{title}: {worse_ones}, {better_ones}, {change.same:,} scored the same.")
    shown = [items(lines), tag("p", note, class_="note")] if lines else [none]
    counts = items(answers) if answers else Html("")
    return tag("section", tag("h2", "Where it got worse"), *shown, counts)


def wrong(chains: Sequence[ChainLogs]) -> Html:
    """Findings of `HealthMonitor` while the stages trained; empty where it did not watch."""
    watched = [(chain.name, stage) for chain in chains for stage in chain.stages if stage.findings is not None]
    if not watched:
        return Html("")
    lines = []
    for seed, stage in watched:
        where = stage_title(stage.name) if len(chains) == 1 else f"{seed}, {stage_title(stage.name)}"
        lines += [join([tag("b", where), f": {finding.line}"]) for finding in stage.findings or []]
    none = tag("p", f"HealthMonitor watched {len(watched)} stage{'s' * (len(watched) > 1)} and found nothing.")
    return tag("section", tag("h2", "What went wrong"), items(lines) if lines else none)


def cost(chains: Sequence[ChainLogs]) -> Html:
    """Time, tokens, speed and memory, in all and by stage."""
    costs = [(chain.name, stage.name, cost_of(stage)) for chain in chains for stage in chain.stages]
    tiles = _totals([one for _, _, one in costs])
    shown = tag(
        "dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles.items() if value), class_="tiles"
    )
    rows: list[Row] = []
    for seed, name, one in costs:
        where = stage_title(name) if len(chains) == 1 else f"{seed}, {stage_title(name)}"
        speed = f"{one.tokens_per_second:,.0f}" if one.tokens_per_second else ""
        time = clock(one.seconds) if one.seconds else ""
        cells = [time, f"{one.steps:,}", _number(one.rows), _number(one.tokens), speed, _memory(one)]
        rows.append([where, *(Cell(cell, "n") for cell in cells)])
    head = ["stage", "time", "steps", "rows", "tokens", "tokens/s", "memory"]
    by_stage = tag("details", tag("summary", "By stage"), table(head, rows))
    return tag("section", tag("h2", "What it cost"), shown, by_stage if len(costs) > 1 else table(head, rows))


def _totals(costs: Sequence[Cost]) -> dict[str, str]:
    """Time, tokens, steps and the highest memory of all stages, by title; empty texts for what is not known."""
    seconds, tokens = sum(one.seconds or 0 for one in costs), sum(one.tokens or 0 for one in costs)
    totals = {"time": clock(seconds) if seconds else "", "tokens trained": _short(tokens) if tokens else ""}
    totals["optimizer steps"] = f"{sum(one.steps for one in costs):,}"
    most = max((one for one in costs if one.memory), key=lambda one: one.memory or 0, default=None)
    if most:
        totals["peak memory" if most.measured else "memory, estimated"] = _memory(most).removeprefix("about ")
    return totals


def _memory(one: Cost) -> str:
    if not one.memory:
        return ""
    size = f"{one.memory / GIB:.1f} GiB" if one.memory >= GIB else f"{one.memory / MIB:.0f} MiB"
    return size if one.measured else f"about {size}"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _short(value: int) -> str:
    """A large number in three digits: ``1.24 M``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def next_steps(found: Sequence[Advice]) -> Html:
    """Advice on the next steps, each with its reason."""
    if not found:
        return Html("")
    points = []
    for one in found:
        code = tag("pre", tag("code", one.code)) if one.code else Html("")
        points.append(join([tag("b", one.what), f" {one.why}", code]))
    return tag("section", tag("h2", "What to do next"), items(points, "ol"))


def stopped(chains: Sequence[ChainLogs], launch: Launch) -> Html:
    """Stages that are not done, and those that have not begun; empty if there are none."""
    lines = []
    for chain in chains:
        seed = f"{chain.name}, " if len(chains) > 1 else ""
        for stage in chain.stages:
            progress = progress_of(stage)
            if not progress.done:
                of = f" of {progress.planned:,}" if progress.planned else ""
                lines.append(f"{seed}{stage_title(stage.name)}: at step {progress.steps:,}{of}")
        begun = [stage.name for stage in chain.stages]
        lines += [f"{seed}{stage_title(name)}: has not begun" for name in launch.stages if name not in begun]
    if not lines:
        return Html("")
    return tag("div", tag("p", "This run is not finished.", class_="big"), items(lines), class_="headline worse")
