"""The page of a report: one HTML file with all pictures in it, which needs no network and runs no script."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lion_lightning.tools.report.accuracy import Accuracy
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
    """A table's cell of a kind of its own: ``n`` for numbers, ``a`` for answers, ``right`` and ``wrong``."""

    text: str
    kind: str


class Picture(NamedTuple):
    """A picture under a heading.

    Attributes:
        heading: What it shows.
        png: The file.
        note: A line below it.
    """

    heading: str
    png: bytes
    note: str = ""


def page(title: str, chains: Sequence[ChainLogs], accuracy: Accuracy | None, pictures: Iterable[Picture]) -> str:
    """The whole page.

    Args:
        title: Of the page.
        chains: The run.
        accuracy: Held-out accuracies; None if the stages were not evaluated.
        pictures: In order.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", _summary(chains)]
    if accuracy:
        parts += ["<h2>Held-out accuracy</h2>", _accuracy_table(accuracy), _ACCURACY_NOTE]
    for picture in pictures:
        source = b64encode(picture.png).decode("ascii")
        parts += [f"<h2>{html.escape(picture.heading)}</h2>", f'<img src="data:image/png;base64,{source}" alt="">']
        parts.append(f'<p class="note">{html.escape(picture.note)}</p>' if picture.note else "")
    parts += [_last_figures(chains), _answers(chains[0]), _origin(chains)]
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


_ACCURACY_NOTE = (
    '<p class="note">Share of right greedy answers to questions that no stage has seen. In brackets: 95% interval of '
    "the mean over the seeds (Student's t); a gain is reckoned seed by seed.</p>"
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
        mean, gain = accuracy.overall(stage), accuracy.gain(stage)
        seeds = ", ".join(f"{value:.3f}" for value in accuracy.values(stage))
        rows.append([stage, _with_interval(mean), _with_interval(gain, "{:+.3f}") if gain else Cell("", "n"), seeds])
    return table(["stage", "accuracy", "gain over the stage before", "each seed"], rows)


def _with_interval(value: Any, form: str = "{:.3f}") -> Cell:
    return Cell(f"{form.format(value.estimate)} [{form.format(value.low)}, {form.format(value.high)}]", "n")


def _last_figures(chains: Sequence[ChainLogs]) -> str:
    """Validation before the first step and at the end, of every stage."""
    keys = ("val/loss", "val/accuracy", "val/rewards/accuracy", "val/rewards/margin", "val/kl")
    known = [key for key in keys if any(key in stage.curves for chain in chains for stage in chain.stages)]
    rows: list[Row] = [
        [chain.name, stage.name, *(_ends(stage, key) for key in known), _number(stage.seconds, "{:.0f} s")]
        for chain in chains
        for stage in chain.stages
    ]
    return "<h2>Validation, first → last</h2>" + table(["seed", "stage", *known, "time"], rows) if known else ""


def _ends(stage: Stage, key: str) -> Cell:
    values = list(stage.curves.get(key, {}).values())
    return Cell(f"{values[0]:.4g} → {values[-1]:.4g}" if values else "-", "n")


def _answers(chain: ChainLogs) -> str:
    """The same prompts, answered by every stage."""
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
    return "<h2>Where it came from</h2>" + table(["stage", "started", "commit", "packages"], rows) + note
