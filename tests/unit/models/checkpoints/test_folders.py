"""Checkpoints that are folders: read as plain tensors and data, whoever wrote them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from lion_lightning.models.checkpoints.files import read_checkpoint
from lion_lightning.models.checkpoints.folders import PREFIX
from lion_lightning.strategies import FSDP2Strategy

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHT = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def folder(path: Path, state: str) -> Path:
    """As one rank writes it."""
    save({state: {f"{PREFIX}weight": WEIGHT, "other": torch.ones(2)}}, checkpoint_id=path, no_dist=True)
    torch.save({"lion": {"steps": 3}}, path / "meta.pt")
    return path


@pytest.mark.parametrize("state", ["state_dict", "model"])
def test_a_folder_gives_the_policys_weights_and_the_plain_data(state: str, tmp_path: Path) -> None:
    read = read_checkpoint(folder(tmp_path / "some.ckpt", state))
    assert read["lion"] == {"steps": 3}
    assert list(read["state_dict"]) == [f"{PREFIX}weight"]
    assert torch.equal(read["state_dict"][f"{PREFIX}weight"], WEIGHT)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    path = folder(tmp_path / "some.ckpt", "state_dict")
    (path / ".metadata").write_bytes(pickle.dumps(Code(f"touch {tmp_path / 'ran'}")))
    with pytest.raises(ValueError, match=r"some.ckpt: not a readable checkpoint .*asks for posix.system"):
        read_checkpoint(path)
    strategy = FSDP2Strategy()
    strategy.parallel_devices = [torch.device("cpu")]
    with pytest.raises(ValueError, match=r"some.ckpt: not a readable checkpoint .*asks for posix.system"):
        strategy.load_checkpoint(path)
    assert not (tmp_path / "ran").exists()
