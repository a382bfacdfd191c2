"""What a run of the suite leaves behind: a JSON file with every round, and a table in a page of the docs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from measurements import Measurement, table

PACKAGES = ("torch", "lightning", "transformers", "trl", "vllm", "flash_attn", "liger_kernel")
BEGIN, END = "<!-- {name} begins -->", "<!-- {name} ends -->"


def machine() -> dict[str, str]:
    """What the measurements are from."""
    cpu = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores",
        "vector instructions": _vectors(cpu.read_text()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def save(path: Path, measurements: Iterable[Measurement], **more: Any) -> None:
    """Write all that was found as JSON.

    Args:
        path: Where to.
        measurements: With all their rounds.
        **more: What else belongs to them, by name.
    """
    rows = [asdict(measurement) | {"ratio": measurement.ratio, "met": measurement.met} for measurement in measurements]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(more | {"measurements": rows}, indent=1) + "\n", encoding="utf-8")


def put_table(page: Path, name: str, measurements: Iterable[Measurement], lines: Iterable[str]) -> None:
    """Renew a table of measurements in a page; see :func:`put_lines`.

    Args:
        page: A Markdown file with the marks.
        name: Of the marks.
        measurements: Lines of the table.
        lines: What is written above it.
    """
    put_lines(page, name, [*lines, "", *table(measurements)])


def put_lines(page: Path, name: str, lines: Iterable[str]) -> None:
    """Renew the part of a page that lies between two marks.

    Args:
        page: A Markdown file with the marks.
        name: Of the marks.
        lines: What is written between them.

    Raises:
        ValueError: If the page lacks the marks.
    """
    begin, end = (mark.format(name=name) for mark in (BEGIN, END))
    text = page.read_text(encoding="utf-8")
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{page}: put the lines {begin} and {end} where the table belongs")
    page.write_text("\n".join([f"{before}{begin}", *lines, f"{end}{after}"]), encoding="utf-8")


def _vectors(flags: str) -> str:
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    return next((name for name in known if f" {name} " in flags), "not known")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
