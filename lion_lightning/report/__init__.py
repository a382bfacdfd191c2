"""What a run did, drawn from its logs on disk: one HTML page, and one picture."""

from __future__ import annotations

from pathlib import Path

from lion_lightning.report import figures
from lion_lightning.report.accuracy import accuracy_of
from lion_lightning.report.logs import read_run
from lion_lightning.report.page import Picture, page
from lion_lightning.report.terminal import show

__all__ = ["write_report"]


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html``, with all pictures in it, and ``report.png``, an overview; print accuracies.

    Args:
        folder: Of ``lion run``, or a trainer's ``default_root_dir``.
        out: Where to write; None for the same folder.

    Returns:
        The page.

    Raises:
        ValueError: If nothing was logged there.
        ModuleNotFoundError: If matplotlib is missing.
    """
    folder, out = Path(folder), Path(out or folder)
    chains = read_run(folder)
    accuracy = accuracy_of(chains)
    pictures = [Picture("Learning curves", figures.curves(chains), "thin lines: a running mean of each seed")]
    if accuracy:
        pictures.insert(0, Picture("By kind of prompt", figures.accuracies(accuracy), "lines: 95% over the seeds"))
    if drawn := figures.rounds(chains):
        pictures.append(Picture("Rounds of on-policy sampling", drawn, "a line for each seed"))
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.png").write_bytes(figures.overview(chains, accuracy))
    path = out / "report.html"
    if accuracy:
        show(accuracy)
    path.write_text(page(f"lion_lightning: {folder}", chains, accuracy, pictures), encoding="utf-8")
    return path
