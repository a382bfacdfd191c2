"""`lion export`: what it says of a path that is no checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from lion_lightning.cli import main


def test_a_folder_of_checkpoints_is_answered_with_the_one_to_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "epoch=0-step=2.ckpt").touch()
    (tmp_path / "last.ckpt").symlink_to("epoch=0-step=2.ckpt")
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    error = f"lion: error: {tmp_path}: a folder of checkpoints; name one of them, e.g. {tmp_path / 'last.ckpt'}\n"
    assert capsys.readouterr().err == error
