"""Samplers and judges of any class are opened and closed as far as they can be."""

from __future__ import annotations

from typing import Any

import pytest

from lion_lightning.readiness import Opened


class OnlyOpens:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def open(self, argument: Any) -> None:
        self.calls.append(argument)


class OnlyCloses:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def close(self) -> None:
        self.calls.append("closed")


@pytest.mark.parametrize(("part", "calls"), [(OnlyOpens(), ["policy"]), (OnlyCloses(), ["closed"])])
def test_each_of_open_and_close_is_called_once_where_there_is_one(part: Any, calls: list[Any]) -> None:
    with Opened(part, "policy") as opened:
        opened.open()
        opened.open()
    assert part.calls == calls


def test_what_was_never_needed_is_not_closed() -> None:
    part = OnlyCloses()
    with Opened(part, "policy"):
        pass
    assert part.calls == []
