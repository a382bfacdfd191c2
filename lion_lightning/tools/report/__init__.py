"""Report of a run from its logs on disk: one HTML page, and one image."""

from __future__ import annotations

from pathlib import Path

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.tools.report import plots
from lion_lightning.tools.report.accuracy import accuracy_of
from lion_lightning.tools.report.logs import read_run
from lion_lightning.tools.report.page import page
from lion_lightning.tools.report.terminal import show

__all__ = ["write_report"]


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html``, with all plots in it, and ``report.png``, an overview; print accuracies.

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
    accuracy = accuracy_of(chains)
    images = [
        ("By kind of prompt", plots.accuracies(accuracy), ""),
        ("Learning curves", plots.curves(chains), "thin lines: a running mean of each seed"),
        ("Policy gradients", plots.policy_gradients(chains), "running means of each seed, but for the steps"),
        ("Rounds of on-policy sampling", plots.rounds(chains), "a line for each seed"),
    ]
    if accuracy:
        show(accuracy)
    if overview := plots.overview(chains, accuracy):
        _write(out / "report.png", overview)
    path = out / "report.html"
    _write(path, page(f"lion_lightning: {folder}", chains, accuracy, images).encode())
    return path


def _write(path: Path, content: bytes) -> None:
    with explain_write_errors(path, "the report", "give another folder in --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
