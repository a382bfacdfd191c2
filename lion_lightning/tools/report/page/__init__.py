"""The page of a report: one HTML file with all plots in it, which needs no network and runs no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256

from lion_lightning.tools.report.logs import ChainLogs, Launch
from lion_lightning.tools.report.page import details, summary
from lion_lightning.tools.report.page.html import Html, tag
from lion_lightning.tools.report.page.samples import samples
from lion_lightning.tools.report.page.style import STYLE
from lion_lightning.tools.report.rules import Advice
from lion_lightning.tools.report.scores import Scores

__all__ = ["page"]


def page(
    folder: str, chains: Sequence[ChainLogs], scores: Scores | None, found: Sequence[Advice], launch: Launch
) -> str:
    """The page as HTML.

    Args:
        folder: Name of the run's folder.
        chains: The run.
        scores: Held-out scores; None if the stages were not evaluated.
        found: What to do next.
        launch: How the run was started.
    """
    parts = [
        summary.header(folder, chains),
        tag(
            "main",
            summary.stopped(chains, launch),
            summary.gains(scores, chains),
            summary.worse(scores),
            summary.wrong(chains),
            summary.next_steps(found),
            samples(scores, chains),
            summary.cost(chains),
            details.settings(chains),
            details.slices(scores),
            details.curves(chains),
            details.rewards(chains),
            details.validation(chains),
            details.origin(chains),
        ),
    ]
    return f'<!doctype html>\n<html lang="en">{_head(folder)}{tag("body", *parts)}</html>\n'


def _head(folder: str) -> Html:
    # Nothing may be loaded or run, whatever stands in the page; the one style sheet is known by its hash.
    digest = b64encode(sha256(STYLE.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    metas = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
    )
    title = tag("title", f"lion report: {folder}")
    return tag("head", Html(metas), title, Html(f"<style>{STYLE}</style>"))
