"""Findings of detectors, and the file that keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lion_lightning.cache import atomic_write


class Finding(NamedTuple):
    """A symptom that was seen.

    Attributes:
        symptom: Its name in a few words.
        step: Optimizer steps made when it was seen; 0 before the first.
        value: The number that was measured.
        limit: The limit that it is beyond.
        seen: What was measured, in words, with the number.
        advice: What it usually means, and what to do.
        severity: How far it is beyond the limit: 1 at the limit, twice as bad at 2. A symptom is reported again only
            where it is twice as bad as before.
        rows: Places of the data that it was seen in, as far as they are known.
    """

    symptom: str
    step: int
    value: float
    limit: float
    seen: str
    advice: str
    severity: float = 1.0
    rows: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """All of it in one line."""
        rows = f" Rows: {', '.join(self.rows)}." if self.rows else ""
        return f"{self.symptom} at step {self.step}: {self.seen}.{rows} {self.advice}."

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data; JSON has neither NaN nor infinity, which are null."""
        found = self._asdict() | {"rows": list(self.rows)}
        unknown = [name for name, value in found.items() if isinstance(value, float) and not math.isfinite(value)]
        return found | dict.fromkeys(unknown)


def write_findings(path: Path, findings: Iterable[Finding]) -> None:
    """Write a file of findings, a line each, in place of what was there."""
    lines = [json.dumps(finding.to_dict(), ensure_ascii=False) + "\n" for finding in findings]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), "utf-8", "replace")  # names of files may hold bytes that are no text


def read_findings(path: Path) -> list[Finding]:
    """The findings of a file, in order.

    Args:
        path: ``health.jsonl`` of a run. An empty one is of a run that was watched and in which nothing was found.

    Raises:
        ValueError: If it is not such a file.
    """
    found = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(_finding(json.loads(line)))
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not a finding of HealthMonitor; remove the file") from error
    return found


def _finding(content: dict[str, Any]) -> Finding:
    value, limit, severity = (
        math.nan if content[name] is None else float(content[name]) for name in ("value", "limit", "severity")
    )
    symptom, seen, advice = (str(content[name]) for name in ("symptom", "seen", "advice"))
    return Finding(
        symptom, int(content["step"]), value, limit, seen, advice, severity, tuple(map(str, content["rows"]))
    )
