"""Report of a run from its files: one HTML page, and one image."""

from __future__ import annotations

from pathlib import Path

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.tools.report.advice import advice_of
from lion_lightning.tools.report.logs import read_launch, read_run
from lion_lightning.tools.report.page import page
from lion_lightning.tools.report.plots.overview import overview
from lion_lightning.tools.report.scores import scores_of
from lion_lightning.tools.report.terminal import show

__all__ = ["write_report"]


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html``, with all plots in it, and ``report.png``, an overview; print the headline figures.

    Args:
        folder: Of ``lion run``, or a trainer's ``default_root_dir``.
        out: Where to write; None for the same folder.

    Returns:
        The page.

    Raises:
        ValueError: If nothing was logged there, or the report cannot be written.
    """
    folder, out = Path(folder), Path(out or folder)
    chains = read_run(folder)
    launch, scores = read_launch(folder, chains), scores_of(chains)
    advice = advice_of(chains, scores, launch)
    show(chains, scores, advice)
    if image := overview(chains, scores):
        _write(out / "report.png", image)
    path = out / "report.html"
    _write(path, page(str(folder), chains, scores, advice, launch).encode("utf-8", "replace"))
    return path


def _write(path: Path, content: bytes) -> None:
    with explain_write_errors(path, "the report", "give another folder in --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
