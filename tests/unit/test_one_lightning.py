"""One clear line where lightning.pytorch and pytorch_lightning meet."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel

from lion_lightning import PolicySpec, SFTDataModule, SFTModule, Source, TokenizerSpec
from lion_lightning.callbacks import LionProgressBar, StartupSummary, TokenThroughput
from lion_lightning.one_lightning import LionCallback, require_one_lightning, warn_of_other_lightning
from lion_lightning.strategies import FSDP2Strategy
from tests import tiny

QUIET: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "fast_dev_run": True}


# A class of the other package and a user's subclass; in a list, since this file is not to import one by name.
OTHER: list[Any] = [type("Other", (), {"__module__": "pytorch_lightning.trainer.trainer"})]
OTHER.append(type("Derived", (OTHER[0],), {}))


@pytest.mark.parametrize("other", [kind() for kind in OTHER])
def test_an_object_of_the_other_package_is_refused_with_both_names_and_the_fix(other: Any) -> None:
    with pytest.raises(MisconfigurationException) as error:
        require_one_lightning(TokenThroughput(), None, BoringModel(), other)
    assert str(error.value) == (
        f"TokenThroughput is built on lightning.pytorch, and {type(other).__name__} on pytorch_lightning, two packages "
        "that do not know each other's classes: import Lightning as lightning.pytorch everywhere (`import "
        "lightning.pytorch as pl`)"
    )


def test_data_is_not_attached_to_the_other_trainer(tmp_path: Path) -> None:
    data = SFTDataModule([Source("rows.jsonl")], TokenizerSpec(str(tiny.tokenizer_folder(tmp_path))))
    with pytest.raises(MisconfigurationException, match="and Other on pytorch_lightning"):
        data.trainer = OTHER[0]()


@pytest.mark.parametrize("callback", [LionProgressBar(), StartupSummary(), TokenThroughput()])
def test_callbacks_refuse_the_other_trainer_in_setup(callback: LionCallback) -> None:
    with pytest.raises(MisconfigurationException, match="and Other on pytorch_lightning"):
        callback.setup(OTHER[0](), BoringModel(), "fit")


def made_in(namespace: dict[str, Any]) -> list[str]:
    """Warnings of what a file with these names makes."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        names = {"__name__": "theirs", "warn": warn_of_other_lightning} | namespace
        exec(compile("warn(object())", "theirs.py", "exec"), names)
    return [str(each.message) for each in found]


def test_a_file_that_imports_the_other_package_is_warned_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made_in({"Trainer": OTHER[0]}) == []  # it is not imported at all
    monkeypatch.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))  # by some library
    assert made_in({}) == []
    [message] = made_in({"Trainer": OTHER[0]})
    assert message.startswith("theirs.py imports pytorch_lightning, whose Trainer and modules do not take object")
    assert "(`import lightning.pytorch as pl`)" in message


def test_the_real_package_is_met_with_one_line(tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")
    boring = pytest.importorskip("pytorch_lightning.demos.boring_classes")
    theirs = boring.BoringModel()
    data = SFTDataModule([Source("rows.jsonl")], TokenizerSpec(str(tiny.tokenizer_folder(tmp_path))))
    for options in ({"datamodule": data}, {}):
        trainer = other.Trainer(callbacks=[] if options else [TokenThroughput()], **QUIET)
        with pytest.raises(MisconfigurationException, match="on pytorch_lightning, two packages"):
            trainer.fit(theirs, **options)
    module = SFTModule(PolicySpec(config=tiny.shallow()), tokenizer=TokenizerSpec(str(tiny.tokenizer_folder(tmp_path))))
    trainer = tiny.trainer(callbacks=[other.callbacks.EarlyStopping("val/loss")])
    with pytest.raises(MisconfigurationException, match="and EarlyStopping on pytorch_lightning"):
        trainer.fit(module, tiny.Rows([tiny.row()]))
    with pytest.raises(MisconfigurationException, match="and BoringDataModule on pytorch_lightning"):
        tiny.trainer().fit(module, datamodule=boring.BoringDataModule())
    with pytest.warns(UserWarning, match="whose Trainer and modules do not take FSDP2Strategy"):
        exec("pl; FSDP2Strategy()", {"__name__": "theirs", "pl": other, "FSDP2Strategy": FSDP2Strategy})
