"""Answers of all stages to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from lion_lightning.tools.report.answers import Scored, side_by_side
from lion_lightning.tools.report.facts import stage_title
from lion_lightning.tools.report.logs import ChainLogs
from lion_lightning.tools.report.page.html import Html, tag
from lion_lightning.tools.report.scores import Scores

TITLE = "Answers, side by side"


def samples(scores: Scores | None, chains: Sequence[ChainLogs]) -> Html:
    """Answers to some prompts of each group of :func:`side_by_side`, a column a stage."""
    if scores is None or not all(scores.answers.values()):
        return _asked(chains[0])
    first, last = stage_title(scores.stages[0]), stage_title(scores.stages[-1])
    seed = f" of {chains[0].name}" if len(chains) > 1 else ""
    grouped = f"how their score changed from {first} to {last}" if first != last else "their score"
    rule = (
        f"Not picked by hand: the prompts{seed} are grouped by {grouped}, and of each group the first are shown, in an "
        "order drawn by a hash of the question."
    )
    parts = [tag("p", rule, class_="note")]
    for group in side_by_side([scores.answers[stage][0] for stage in scores.stages]):
        some = f"{len(group.shown)} of {group.size:,} prompts" if group.size else "none"
        parts.append(tag("h3", f"{group.name}: {some}"))
        parts += [_sample(row, scores.stages) for row in group.shown]
    return tag("section", tag("h2", TITLE), *parts)


def _sample(row: Sequence[Scored], stages: Sequence[str]) -> Html:
    columns = []
    best, least = max(one.score for one in row), min(one.score for one in row)
    for stage, one in zip(stages, row, strict=True):
        # of answers with equal scores none is marked, unless they are right or wrong
        high = one.score >= 1 or one.score == best > least
        low = one.score <= 0 or one.score == least < best
        columns.append(
            _column(
                f"{stage_title(stage)}, score {one.score:.3g}", one.answer, "high" if high else "low" if low else ""
            )
        )
    return _card(row[0].question, row[0].kind, columns)


def _asked(chain: ChainLogs) -> Html:
    """Answers before and after of `BeforeAfter`, where no evaluation has any."""
    parts = []
    for stage in chain.stages:
        title = stage_title(stage.name)
        for prompt, before, after in stage.asked:
            columns = [_column(f"before {title}", before), _column(f"after {title}", after)]
            parts.append(_card(prompt, "", columns))
    if not parts:
        return Html("")
    rule = "All prompts of the callback BeforeAfter. No judge has scored these answers."
    return tag("section", tag("h2", TITLE), tag("p", rule, class_="note"), *parts)


def _column(title: str, answer: str, kind: str = "") -> Html:
    return tag("div", tag("dt", title), tag("dd", answer or "(empty)", dir="auto"), class_=kind)


def _card(prompt: str, kind: str, columns: Sequence[Html]) -> Html:
    of_kind = tag("span", f" ({kind})", class_="note") if kind else Html("")
    return tag("article", tag("p", prompt, of_kind, dir="auto"), tag("dl", *columns, class_="columns"), class_="sample")
