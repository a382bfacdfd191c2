"""Results of the cases: a table, and a file with every step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.oracle.cases.case import Case
from benchmarks.oracle.comparison import TOLERANCE, Comparison, Step

HEADER = (
    "| objective | other side | steps | largest difference of losses | of gradient norms | |",
    "|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        objective: In words.
        other: The other side in words.
        why: Why they differ; None where they are to agree.
        place: File and number of the line that makes them differ.
        ours: Loss and gradient norm of our steps.
        theirs: The other side's.
    """

    objective: str
    other: str
    why: str | None
    place: str | None
    ours: Sequence[Step]
    theirs: Sequence[Step]

    @staticmethod
    def of(case: Case, ours: Sequence[Step], theirs: Sequence[Step]) -> Row:
        """The line of a case.

        Args:
            case: The case.
            ours: Our steps.
            theirs: The other side's.
        """
        why, place = (case.difference.why, case.difference.place) if case.difference else (None, None)
        return Row(case.objective, case.other, why, place, ours, theirs)

    @property
    def found(self) -> Comparison:
        """The comparison of both sides."""
        return Comparison(self.ours, self.theirs)

    @property
    def expected(self) -> bool:
        """True if they differ where a difference is named, or agree where none is."""
        return self.found.agrees == (self.why is None)

    def line(self) -> str:
        """The line in Markdown."""
        verdict = "agrees" if self.why is None else f"differs: {self.why} (`{self.place}`)"
        if not self.expected:
            verdict = "**DIFFERS, and nothing says why**" if self.why is None else f"**AGREES**, though: {self.why}"
        numbers = f"{len(self.ours)} | {self.found.loss:.0e} | {self.found.norm:.0e}"
        return f"| {self.objective} | {self.other} | {numbers} | {verdict} |"


def table(rows: Iterable[Row]) -> list[str]:
    """Lines of Markdown.

    Args:
        rows: Rows in the order of the table.
    """
    return [*HEADER, *(row.line() for row in rows)]


def read(path: Path) -> list[Row]:
    """The rows of a file; none where it is not there.

    Args:
        path: What :func:`save` wrote.
    """
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    steps = ("ours", "theirs")
    return [Row(**row | {side: [Step(*step) for step in row[side]] for side in steps}) for row in rows]


def save(path: Path, rows: Iterable[Row], **more: Any) -> None:
    """Write every step of every case, a case a line.

    Args:
        path: File to write.
        rows: Rows in the order of the cases.
        **more: Further values for the head of the file.
    """
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    head = json.dumps({"tolerance": TOLERANCE, **more}, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def merged(known: Iterable[Row], new: Iterable[Row], order: Sequence[tuple[str, str]]) -> list[Row]:
    """Rows that are known, renewed by others, in the order of the cases; those that are no case any more are left out.

    Args:
        known: Rows of a file.
        new: Rows of this run.
        order: Objective and other side of all cases.
    """
    by_name = {(row.objective, row.other): row for row in (*known, *new)}
    return [by_name[name] for name in order if name in by_name]
