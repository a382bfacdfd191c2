"""Checkpoints on disk: every flipped bit is found, and the newest whole one goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from lion_lightning.cache import checksum
from lion_lightning.models.checkpoints import files as checkpoint_files
from lion_lightning.models.checkpoints.files import SEAL, damage, newest_checkpoint, require_checkpoint


def content(step: int = 0) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.arange(64.0) + step}, "lion": {"written": float(step)}, "odd": [1, "x"]}


def a_file(path: Path, step: int = 0) -> Path:
    torch.save(content(step), path)
    return path


def a_folder(path: Path, step: int = 0) -> Path:
    """As one rank writes it, an optimizer's step count among what is no tensor."""
    state = {"state_dict": {"weight": torch.arange(64.0)}, "optimizer_0": {"groups": [1, 2], "step": torch.ones(3)}}
    save(state, checkpoint_id=path, no_dist=True)
    torch.save({"lion": {"written": float(step)}}, path / "meta.pt")
    (path / SEAL).write_text(checksum(path / ".metadata"))
    return path


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


@pytest.fixture(autouse=True)
def forget() -> None:
    checkpoint_files._file_damage.cache_clear()  # a test writes faster than the file's time of change has steps


def assert_harmless(path: Path) -> None:
    """A flipped bit of the archive's own padding and dates changes nothing that is read, or torch itself refuses it."""
    try:
        read = torch.load(path, weights_only=True)
    except RuntimeError:
        return
    assert read.keys() == content().keys()
    assert torch.equal(read["state_dict"]["weight"], content()["state_dict"]["weight"])
    assert (read["lion"], read["odd"]) == (content()["lion"], content()["odd"])


def test_every_flipped_bit_of_a_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    whole = a_file(tmp_path / "whole.ckpt")
    assert damage(whole) is None
    found = 0
    for bit in range(0, 8 * whole.stat().st_size, 61):
        path = tmp_path / f"{bit}.ckpt"
        shutil.copy(whole, path)
        flip(path, bit)
        if damage(path) is None:
            assert_harmless(path)
        else:
            found += 1
    assert found > 50


def test_a_flipped_weight_names_the_file(tmp_path: Path) -> None:
    path = a_file(tmp_path / "some.ckpt")
    place = path.read_bytes().index(torch.arange(64.0).numpy().tobytes())
    flip(path, 8 * (place + 100))
    with pytest.raises(
        ValueError, match=r"some\.ckpt: not a readable checkpoint \(its record .*data/0 is not what was"
    ):
        require_checkpoint(path)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "meta.pt"])
def test_every_flipped_byte_of_a_folder_is_found_or_changes_nothing(tmp_path: Path, name: str) -> None:
    whole = a_folder(tmp_path / "whole.ckpt")
    assert damage(whole) is None
    found, step = 0, 509 if name != ".metadata" else 997
    for bit in range(0, 8 * (whole / name).stat().st_size, step):
        path = tmp_path / f"{bit}.ckpt"
        shutil.copytree(whole, path)
        flip(path / name, bit)
        found += damage(path) is not None
        shutil.rmtree(path)
    assert found > 3


def test_the_shares_of_all_ranks_are_the_folder(tmp_path: Path) -> None:
    path = a_folder(tmp_path / "some.ckpt")
    raw = (path / "__0_0.distcp").read_bytes()
    flip(path / "__0_0.distcp", 8 * (raw.index(torch.arange(64.0).numpy().tobytes()) + 9))
    assert sum(damage(path, rank, 3) is not None for rank in range(3)) == 1


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(a_file(path).read_bytes()[:-300]), "it is cut short or changed"),
        (lambda path: path.write_text("a poem"), "or not a checkpoint"),
        (lambda path: path.symlink_to("gone.ckpt"), "no such checkpoint"),
        (lambda path: path.mkdir(), "a folder that holds no checkpoint, or one whose writing was cut short"),
        (lambda path: (a_folder(path) / "meta.pt").unlink(), "whose writing was cut short"),
        (lambda path: os.truncate(a_folder(path) / "__0_0.distcp", 600), "cut short"),
        (lambda path: (a_folder(path) / "__0_0.distcp").unlink(), "No such file"),
        (lambda path: None, "no such checkpoint; give a .ckpt file or folder"),
    ],
)
def test_what_is_no_whole_checkpoint_is_one_line(tmp_path: Path, make: Callable[[Path], Any], problem: str) -> None:
    path = tmp_path / "some.ckpt"
    make(path)
    with pytest.raises(ValueError, match=r"some\.ckpt: ") as caught:
        require_checkpoint(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://x/a.ckpt", "https://x/a.ckpt", "s3://x/a", "simplecache::http://x/a.ckpt"])
def test_addresses_are_refused_before_anything_is_fetched(address: str) -> None:
    with pytest.raises(ValueError, match="an address, and checkpoints are read from disk only"):
        require_checkpoint(address)


def test_the_newest_is_the_last_written_whatever_the_files_times_say(tmp_path: Path) -> None:
    for step in (3, 12, 7):
        os.utime(a_file(tmp_path / f"epoch=0-step={step}.ckpt", step), (1e9 - step,) * 2)
    assert newest_checkpoint(tmp_path) == tmp_path / "epoch=0-step=12.ckpt"


@pytest.mark.parametrize("damaged", ["gone", "dangling", "cut", "empty", "flipped"])
@pytest.mark.filterwarnings("ignore")
def test_without_a_last_one_the_newest_whole_one_goes_on(tmp_path: Path, damaged: str) -> None:
    older, newer = (a_file(tmp_path / f"epoch=0-step={step}.ckpt", step) for step in (3, 7))
    last = tmp_path / "last.ckpt"
    if damaged == "dangling":
        last.symlink_to("epoch=0-step=9.ckpt")
    elif damaged != "gone":
        a_file(last, 9)
    if damaged in ("cut", "empty"):
        os.truncate(last, 0 if damaged == "empty" else 700)
    if damaged == "flipped":
        flip(last, 8 * (last.read_bytes().index((torch.arange(64.0) + 9).numpy().tobytes()) + 3))
    assert newest_checkpoint(tmp_path) == newer
    flip(newer, 8 * (newer.read_bytes().index((torch.arange(64.0) + 7).numpy().tobytes()) + 3))
    checkpoint_files._file_damage.cache_clear()
    with pytest.warns(UserWarning, match=r"Resuming from .*step=3\.ckpt.*step=7\.ckpt: its record .*is not what was"):
        assert newest_checkpoint(tmp_path) == older
    os.truncate(older, 10)
    with pytest.raises(ValueError, match=r"no checkpoint to resume from is intact .*remove them") as caught:
        newest_checkpoint(tmp_path)
    assert f"{newer}: its record" in str(caught.value)
    assert f"{older}: it is cut short" in str(caught.value)


def test_a_link_counts_once_and_drafts_of_killed_writers_do_not_count(tmp_path: Path) -> None:
    path = a_file(tmp_path / "epoch=0-step=3.ckpt", 3)
    (tmp_path / "last.ckpt").symlink_to(path.name)
    a_file(tmp_path / f".host.{'0' * 32}.epoch=0-step=9.ckpt", 9)
    assert newest_checkpoint(tmp_path, tmp_path / "nowhere") == path


def test_a_folder_that_was_about_to_be_renamed_goes_on_where_it_is_all_that_is_left(tmp_path: Path) -> None:
    """Folders cannot be swapped: between two renames a kill leaves the old and the new one under hidden names."""
    assert newest_checkpoint(tmp_path) is None
    a_folder(tmp_path / f".host.{'0' * 32}.last.ckpt", 3)
    newer = a_folder(tmp_path / f".host.{'1' * 32}.last.ckpt", 9)
    assert newest_checkpoint(tmp_path) == newer
    shown = a_folder(tmp_path / "last.ckpt", 6)
    assert newest_checkpoint(tmp_path) == shown
