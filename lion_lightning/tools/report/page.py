"""The page of a report: one HTML file with all plots in it, which needs no network and runs no script."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lion_lightning.tools.report.accuracy import Accuracy, with_interval
from lion_lightning.tools.report.logs import ChainLogs, Stage

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #20242a; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dce2; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem; }
th, td { border-bottom: 1px solid #e4e6ea; padding: .25rem .7rem; text-align: left; vertical-align: top; }
th { color: #596170; font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.right { color: #1b7a45; } td.wrong { color: #b3302a; }
td.a { white-space: pre-wrap; font-family: ui-monospace, monospace; }
img { max-width: 100%; } .note { color: #596170; font-size: .85rem; } code { font-size: .85rem; }
"""


class Cell(NamedTuple):
    """A table's cell with a style: ``n`` for numbers, ``a`` for answers, ``right`` and ``wrong``."""

    text: str
    kind: str


class Plot(NamedTuple):
    """An image under a heading.

    Attributes:
        heading: What it shows.
        png: The file.
        note: A line below it.
    """

    heading: str
    png: bytes
    note: str = ""


def page(title: str, chains: Sequence[ChainLogs], accuracy: Accuracy | None, plots: Iterable[Plot]) -> str:
    """The page as HTML.

    Args:
        title: Of the page.
        chains: The run.
        accuracy: Held-out accuracies; None if the stages were not evaluated.
        plots: In order.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", _summary(chains)]
    if accuracy:
        parts += [f"<h2>{accuracy.title}</h2>", _accuracy_table(accuracy), _ACCURACY_NOTE]
    for plot in plots:
        source = b64encode(plot.png).decode("ascii")
        parts += [f"<h2>{html.escape(plot.heading)}</h2>", f'<img src="data:image/png;base64,{source}" alt="">']
        parts.append(f'<p class="note">{html.escape(plot.note)}</p>' if plot.note else "")
    parts += [_validation(chains), _answers(chains[0]), _origin(chains)]
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


_ACCURACY_NOTE = (
    '<p class="note">Share of right greedy answers to questions that no stage has seen. Intervals over the prompts are '
    "bootstrapped, those over the seeds are Student's t; gains are computed seed by seed.</p>"
)


Row = list[str | Cell]


def table(head: Sequence[str], rows: Iterable[Row]) -> str:
    """An HTML table.

    Args:
        head: Titles of the columns.
        rows: Texts, or cells of a kind.
    """
    titles = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = ("".join(map(_cell, row)) for row in rows)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(given: str | Cell) -> str:
    text, kind = given if isinstance(given, Cell) else (given, "")
    return f'<td class="{kind}">{html.escape(text)}</td>' if kind else f"<td>{html.escape(text)}</td>"


def _number(value: float | None, form: str = "{:.4g}") -> Cell:
    return Cell("-" if value is None else form.format(value), "n")


def _summary(chains: Sequence[ChainLogs]) -> str:
    stages = " → ".join(stage.name for stage in chains[0].stages)
    times = [stage.seconds for chain in chains for stage in chain.stages if stage.seconds]
    spent = f"; {sum(times):.0f} s of work in all" if times else ""
    return f'<p class="note">{html.escape(stages)}; {len(chains)} seed{"s" * (len(chains) > 1)}{spent}</p>'


def _accuracy_table(accuracy: Accuracy) -> str:
    rows: list[Row] = []
    for stage in accuracy.stages:
        gain = accuracy.gain(stage)
        gained = Cell(with_interval(gain, "{:+.3f}") if gain else "", "n")
        seeds = ", ".join(f"{value:.3f}" for value in accuracy.values(stage))
        rows.append([stage, Cell(with_interval(accuracy.overall(stage)), "n"), gained, seeds])
    return table(["stage", "accuracy", "gain over the stage before", "each seed"], rows)


VALIDATION = {
    "val/loss": "loss",
    "val/accuracy": "token accuracy",
    "val/rewards/accuracy": "reward accuracy",
    "val/rewards/margin": "reward margin",
    "val/kl": "log-ratio to the reference, nats",  # mean over the data's answers: below zero if they grow unlikelier
}


def _validation(chains: Sequence[ChainLogs]) -> str:
    """Validation before the first step, where that is known, and at the end, of every stage."""
    known = {
        key: title
        for key, title in VALIDATION.items()
        if any(key in stage.curves for chain in chains for stage in chain.stages)
    }
    if not known:
        return ""
    rows: list[Row] = []
    for chain in chains:
        for stage in chain.stages:
            ends = [_ends(stage, key) for key in known]
            rows.append([chain.name, stage.name, *ends, _number(stage.seconds, "{:.0f} s")])
    note = (
        '<p class="note">A single value is that after training: before it is known with the callback BeforeAfter and '
        "trainer.num_sanity_val_steps: -1.</p>"
    )
    return "<h2>Validation, before → after</h2>" + table(["seed", "stage", *known.values(), "time"], rows) + note


def _ends(stage: Stage, key: str) -> Cell:
    values = list(stage.curves.get(key, {}).values())
    if not values:
        return Cell("-", "n")
    before = f"{stage.before[key]:.4g} → " if key in stage.before else ""
    return Cell(f"{before}{values[-1]:.4g}", "n")


def _answers(chain: ChainLogs) -> str:
    """Each stage's answers to the same prompts."""
    stages = [stage for stage in chain.stages if stage.samples]
    if not stages:
        return ""
    prompts = list(stages[0].samples)
    rows: list[Row] = [[prompt, *(_answer(stage, prompt) for stage in stages)] for prompt in prompts]
    heading = f"<h2>Answers, side by side ({html.escape(chain.name)})</h2>"
    return heading + table(["prompt", *(stage.name for stage in stages)], rows)


def _answer(stage: Stage, prompt: str) -> Cell:
    found = stage.samples.get(prompt)
    if found is None:
        return Cell("-", "a")
    return Cell(found.text, "a right" if found.score >= 1 else "a wrong" if found.score <= 0 else "a")


def _origin(chains: Sequence[ChainLogs]) -> str:
    rows: list[Row] = []
    for chain in chains:
        for stage in chain.stages:
            start = stage.provenance
            git = start.get("git") or {}
            commit = str(git.get("commit", ""))[:12] + (" (files changed)" if git.get("changed") else "")
            packages = start.get("packages", {})
            versions = ", ".join(
                f"{name} {packages[name]}" for name in ("torch", "lightning", "transformers") if packages
            )
            rows.append([f"{chain.name}/{stage.name}", str(start.get("started", "")), commit, versions])
    note = '<p class="note">All of it: <code>provenance.json</code> and <code>stage.yaml</code> of each stage.</p>'
    return "<h2>Provenance</h2>" + table(["stage", "started", "commit", "packages"], rows) + note
