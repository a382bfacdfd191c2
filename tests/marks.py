"""Which cases of a matrix run by default, and which with ``make slow``."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Cases of a parametrised test that are more of the same: the default run keeps one of each kind."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
