"""Which cases of a matrix run by default, which with ``make slow``, and which with ``make exhaustive`` alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Cases of a kind that only they show, too long for the default run."""
    return _marked(pytest.mark.slow, cases)


def exhaustive(*cases: Any) -> list[Any]:
    """Cases that are more of the same: the other runs keep one of each kind.

    A tuple is a case's arguments; a single argument that is a tuple stands in one: ``exhaustive(((1, 0),))``.
    """
    return _marked(pytest.mark.exhaustive, cases)


def slow_but(cases: Iterable[str], *quick: str) -> list[Any]:
    """Names of cases of which only some run by default; the others are slow.

    Args:
        cases: All names.
        quick: Those that run by default: one of each place that raises.
    """
    names = [*cases]
    assert {*quick} <= {*names}
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def _marked(mark: pytest.MarkDecorator, cases: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark) for case in cases]
