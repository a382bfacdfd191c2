"""Optimizers and schedules that a config gives a module of the user's."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import Namespace

from lion_lightning.modules.optimization.limits import made


@pytest.mark.parametrize(
    ("name", "kind"), [("model.optimizer", "OptimizerCallable"), ("model.lr_scheduler", "LRSchedulerCallable")]
)
def test_an_argument_without_a_type_is_told_with_the_type(name: str, kind: str) -> None:
    given: Any = Namespace(class_path="torch.optim.AdamW")  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=f"{name} is a Namespace and no function: .*: {kind} | None = None`"):
        made(name, given, [])
