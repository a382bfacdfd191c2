"""A checkpoint decides about no code and about nobody's files, whatever it says of how its module was made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lion_lightning import SFTModule
from lion_lightning.losses import DFTLoss, TokenLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore")

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


class OwnLoss(TokenLoss):
    """Of the test's module, as a user's loss is of the module's."""

    def forward(self, logps: Any) -> Any:
        raise NotImplementedError


class OwnModule(SFTModule):
    """As a user subclasses it."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    """Writes a checkpoint as the command line leaves it, with other arguments."""
    tokenizer = tiny.tokenizer_folder(tmp_path / "tok")
    own = {"policy": {"config": tiny.shallow()}, "tokenizer": {"path": str(tokenizer)}}
    module = SFTModule(policy=PolicySpec(config=tiny.shallow()), tokenizer=TokenizerSpec(str(tokenizer)))
    module.configure_model()

    def write(key: str = "hyper_parameters", **changes: Any) -> Path:
        stored = {
            "state_dict": module.state_dict(),
            "pytorch-lightning_version": "2.6.0",
            "global_step": 1,
            "epoch": 0,
            "hyper_parameters": {**own, "_class_path": "lion_lightning.SFTModule", "_instantiator": INSTANTIATOR},
        }
        stored[key] = {**stored.get(key, {}), **changes}  # type: ignore[dict-item]
        torch.save(stored, tmp_path / "x.ckpt")
        return tmp_path / "x.ckpt"

    return write


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on Python's path that makes the canary when it is imported."""
    (tmp_path / "evil_module.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\nclass Loss: pass\ndef optimizer(parameters): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    return tmp_path / "canary"


def test_arguments_of_known_classes_are_made_as_before(checkpoint: Any) -> None:
    path = checkpoint(
        loss={"class_path": "lion_lightning.losses.DFTLoss"},
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
    )
    loaded = SFTModule.load_from_checkpoint(path, map_location="cpu")
    assert isinstance(loaded.loss, DFTLoss)
    assert loaded.optimizer_factory is not None
    made = loaded.optimizer_factory([nn.Parameter(torch.ones(1))])
    assert (type(made).__name__, made.defaults["lr"]) == ("SGD", 0.5)


def test_classes_beside_the_module_s_own_are_known(checkpoint: Any) -> None:
    names = {"_class_path": f"{__name__}.OwnModule", "loss": {"class_path": f"{__name__}.OwnLoss"}}
    assert isinstance(OwnModule.load_from_checkpoint(checkpoint(**names), map_location="cpu").loss, OwnLoss)


@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": {"class_path": "evil_module.Loss"}}, "loss"),
        ({"optimizer": "evil_module.optimizer"}, "optimizer"),
        (
            {"lr_scheduler": {"class_path": "lion_lightning.x", "init_args": {"y": ["evil_module.Loss"]}}},
            "lr_scheduler",
        ),
        ({"_class_path": "evil_module.Loss"}, "_class_path"),
        ({"_instantiator": "evil_module.optimizer"}, "to be run"),
        ({"_instantiator": "os.system"}, "to be run"),
    ],
)
def test_what_a_checkpoint_names_is_not_imported(
    key: str, changes: dict[str, Any], named: str, checkpoint: Any, evil: Path
) -> None:
    with pytest.raises(ValueError, match=named) as error:
        SFTModule.load_from_checkpoint(checkpoint(key, **changes))
    assert "\n" not in str(error.value)
    assert "evil_module" not in sys.modules
    assert not evil.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": {"path": "m", "trust_remote_code": True}},
        {"tokenizer": {"path": "m", "trust_remote_code": True}},
        {
            "reference": {
                "class_path": "lion_lightning.R",
                "init_args": {"model": {"path": "m", "trust_remote_code": 1}},
            }
        },
    ],
)
def test_a_checkpoint_allows_no_code_of_a_model(changes: dict[str, Any], checkpoint: Any) -> None:
    with pytest.raises(ValueError, match=r"trust_remote_code\), and a file is not believed; give "):
        SFTModule.load_from_checkpoint(checkpoint(**changes))


def test_an_argument_that_is_given_is_not_the_checkpoint_s(checkpoint: Any, evil: Path) -> None:
    path = checkpoint(loss={"class_path": "evil_module.Loss"})
    loaded = SFTModule.load_from_checkpoint(path, loss=DFTLoss(), map_location="cpu")
    assert isinstance(loaded.loss, DFTLoss)
    assert not evil.exists()


# --- files that a checkpoint takes for the run's


@pytest.mark.parametrize("name", ["best_model_path", "kth_best_model_path", "last_model_path", "best_k_models"])
@pytest.mark.parametrize("path", ["{folder}/../precious", "/x/../precious", "memory://precious", "s3://b/precious"])
def test_a_checkpoint_takes_no_file_elsewhere_for_the_run_s(name: str, path: str, tmp_path: Path) -> None:
    """Lightning removes what it takes for an older checkpoint of the run: a folder with all in it."""
    module = SFTModule(policy=PolicySpec(config=tiny.shallow()), tokenizer=TokenizerSpec("none"))
    module.trainer = tiny.trainer(callbacks=[ModelCheckpoint(dirpath=tmp_path / "ck")], enable_checkpointing=True)
    given = path.format(folder=tmp_path / "ck")
    state = {name: {given: torch.tensor(1.0)} if name == "best_k_models" else given}
    with pytest.raises(ValueError, match="which Lightning would remove in time"):
        module.on_load_checkpoint({"callbacks": {"ModelCheckpoint{}": state}})
    own = str(tmp_path / "ck" / "epoch=0.ckpt")
    module.on_load_checkpoint({"callbacks": {"ModelCheckpoint{}": {"best_model_path": own, "last_model_path": ""}}})
