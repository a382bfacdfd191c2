"""Which cases of a matrix run by default, which with ``make slow``, and which with ``make exhaustive`` alone."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Cases of a kind that only they show, too long for the default run."""
    return _marked(pytest.mark.slow, cases)


def exhaustive(*cases: Any) -> list[Any]:
    """Cases that are more of the same: the other runs keep one of each kind."""
    return _marked(pytest.mark.exhaustive, cases)


def _marked(mark: pytest.MarkDecorator, cases: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark) for case in cases]
