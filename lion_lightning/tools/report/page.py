"""The page of a report: one HTML file with all plots in it, which needs no network and runs no script."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lion_lightning.tools.evaluate.intervals import Interval
from lion_lightning.tools.report.accuracy import Accuracy, with_interval
from lion_lightning.tools.report.logs import ChainLogs, all_stages

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


Row = list[str | Cell]


def page(
    title: str,
    chains: Sequence[ChainLogs],
    accuracy: Accuracy | None,
    plots: Iterable[tuple[str, bytes | None, str]],
) -> str:
    """The page as HTML.

    Args:
        title: Of the page.
        chains: The run.
        accuracy: Held-out accuracies; None if the stages were not evaluated.
        plots: Heading, image (None: left out) and note of each, in order.
    """
    stages = " → ".join(stage.name for stage in chains[0].stages)
    seconds = sum(stage.seconds or 0 for stage in all_stages(chains))
    spent = f"; {seconds:.0f} s of work in all" if seconds else ""
    summary = f"{html.escape(stages)}; {len(chains)} seed{'s' * (len(chains) > 1)}{spent}"
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="note">{summary}</p>']
    if accuracy:
        parts += [f"<h2>{accuracy.title}</h2>", _accuracy_table(accuracy)]
    for heading, png, note in plots:
        if png:
            source = b64encode(png).decode("ascii")
            parts += [f"<h2>{html.escape(heading)}</h2>", f'<img src="data:image/png;base64,{source}" alt="">']
            parts.append(f'<p class="note">{html.escape(note)}</p>' if note else "")
    parts += [_rewards(chains), _validation(chains), _answers(chains[0]), _origin(chains)]
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def table(head: Sequence[str], rows: Iterable[Row]) -> str:
    """An HTML table of texts and styled cells under these titles; all of them are escaped."""
    parts = ["<table><tr>", *(f"<th>{html.escape(name)}</th>" for name in head), "</tr>"]
    for row in rows:
        parts.append("<tr>")
        for given in row:
            text, kind = given if isinstance(given, Cell) else (given, "")
            opening = f'<td class="{kind}">' if kind else "<td>"
            parts.append(f"{opening}{html.escape(text)}</td>")
        parts.append("</tr>")
    return "".join([*parts, "</table>"])


def _accuracy_table(accuracy: Accuracy) -> str:
    rows: list[Row] = []
    for stage in accuracy.stages:
        gain = accuracy.gain(stage)
        gained = Cell(with_interval(gain, "{:+.3f}") if gain else "", "n")
        seeds = ", ".join(f"{value:.3f}" for value in accuracy.values(stage))
        rows.append([stage, Cell(with_interval(accuracy.overall(stage)), "n"), gained, seeds])
    note = (
        '\n<p class="note">Share of right greedy answers to questions that no stage has seen. Intervals over the '
        "prompts are bootstrapped, those over the seeds are Student's t; gains are computed seed by seed.</p>"
    )
    return table(["stage", "accuracy", "gain over the stage before", "each seed"], rows) + note


def _rewards(chains: Sequence[ChainLogs]) -> str:
    """Share of held-out pairs that each stage ranks right, by `lion evaluate`."""
    rows: list[Row] = []
    for chain in chains:
        for stage in chain.stages:
            found = stage.evaluation.get("rewards")
            if not found:
                continue
            cells: Row = [chain.name, stage.name]
            for name in ("accuracy", "margin"):
                one = found[name]
                cells.append(Cell(with_interval(Interval(one["estimate"], one["low"], one["high"])), "n"))
            rows.append([*cells, Cell(f"{found['pairs']:,} of {found['prompts']:,} prompts", "n")])
    if not rows:
        return ""
    note = (
        '\n<p class="note">A reward model ranks by its own rewards; a policy by the scaled log-ratio to its reference. '
        "95% intervals over the prompts.</p>"
    )
    head = ["seed", "stage", "share of pairs ranked right", "margin", "pairs"]
    return "<h2>Held-out pairs</h2>" + table(head, rows) + note


VALIDATION = {
    "val/loss": "loss",
    "val/accuracy": "token accuracy",
    "val/rewards/accuracy": "reward accuracy",
    "val/rewards/margin": "reward margin",
    "val/rewards/kendall": "rank correlation of rewards and values",
    "val/kl": "log-ratio to the reference, nats",  # mean over the data's answers: below zero if they grow unlikelier
}


def _validation(chains: Sequence[ChainLogs]) -> str:
    """Validation before the first step, where that is known, and at the end, of every stage."""
    logged: set[str] = set()
    for stage in all_stages(chains):
        logged.update(stage.curves)
    known = {key: title for key, title in VALIDATION.items() if key in logged}
    if not known:
        return ""
    rows: list[Row] = []
    for chain in chains:
        for stage in chain.stages:
            row: Row = [chain.name, stage.name]
            for key in known:
                values = list(stage.curves.get(key, {}).values())
                before = f"{stage.before[key]:.4g} → " if key in stage.before else ""
                row.append(Cell(f"{before}{values[-1]:.4g}" if values else "-", "n"))
            rows.append([*row, Cell("-" if stage.seconds is None else f"{stage.seconds:.0f} s", "n")])
    note = (
        '<p class="note">A single value is that after training: before it is known with the callback BeforeAfter and '
        "trainer.num_sanity_val_steps: -1.</p>"
    )
    return "<h2>Validation, before → after</h2>" + table(["seed", "stage", *known.values(), "time"], rows) + note


def _answers(chain: ChainLogs) -> str:
    """Each stage's answers to the same prompts."""
    stages = [stage for stage in chain.stages if stage.samples]
    if not stages:
        return ""
    rows: list[Row] = []
    for prompt in stages[0].samples:
        row: Row = [prompt]
        for stage in stages:
            answer, score = stage.samples.get(prompt, ("-", 0.5))
            row.append(Cell(answer, "a right" if score >= 1 else "a wrong" if score <= 0 else "a"))
        rows.append(row)
    heading = f"<h2>Answers, side by side ({html.escape(chain.name)})</h2>"
    return heading + table(["prompt", *(stage.name for stage in stages)], rows)


def _origin(chains: Sequence[ChainLogs]) -> str:
    rows: list[Row] = []
    for chain in chains:
        for stage in chain.stages:
            start = stage.provenance
            git = start.get("git") or {}
            commit = str(git.get("commit", ""))[:12] + (" (files changed)" if git.get("changed") else "")
            packages = start.get("packages", {})
            names = ("torch", "lightning", "transformers") if packages else ()
            versions = ", ".join(f"{name} {packages[name]}" for name in names)
            rows.append([f"{chain.name}/{stage.name}", str(start.get("started", "")), commit, versions])
    note = '<p class="note">All of it: <code>provenance.json</code> and <code>stage.yaml</code> of each stage.</p>'
    return "<h2>Provenance</h2>" + table(["stage", "started", "commit", "packages"], rows) + note
