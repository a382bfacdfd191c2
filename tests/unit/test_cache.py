"""Atomic writes, and temporary files of killed writers."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lion_lightning import cache
from lion_lightning.cache import atomic_folder, atomic_write, checksum, read_object, remove_stale_files

# A writer that is killed in the middle of a temporary file.
KILLED = """
import os, signal, sys
from pathlib import Path
from lion_lightning.cache import atomic_write, atomic_folder
with atomic_write(Path(sys.argv[1])) as temporary, atomic_folder(Path(sys.argv[2])) as folder:
    temporary.write_text("half")
    (folder / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_writer_leaves_what_was_there_and_its_temporary_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("before")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("before")
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "file", tmp_path / "folder"], check=False)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "before"
    assert len(names(tmp_path)) == 4
    remove_stale_files(tmp_path)
    assert len(names(tmp_path)) == 4  # too young: its writer may be about to lock it
    monkeypatch.setattr(cache, "_GRACE", -1.0)
    remove_stale_files(tmp_path)
    assert names(tmp_path) == ["file", "folder"]


def test_temporary_files_of_living_writers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_GRACE", -1.0)
    with atomic_write(tmp_path / "file") as temporary, atomic_folder(tmp_path / "folder") as folder:
        temporary.write_text("new")
        (folder / "a").write_text("new")
        remove_stale_files(tmp_path)
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "new"


def test_temporary_files_of_other_machines_stay_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their locks may not be seen from here."""
    monkeypatch.setattr(cache, "_GRACE", -1.0)
    young, old = tmp_path / f".other.{'0' * 32}.x", tmp_path / f".other.{'1' * 32}.x"
    for temporary in (young, old):
        temporary.write_text("")
    os.utime(old, (time.time() - 90_000,) * 2)
    (tmp_path / ".keep.this").write_text("")  # hidden, and not a temporary file
    remove_stale_files(tmp_path, tmp_path / "nowhere")
    assert names(tmp_path) == [".keep.this", young.name]


def test_a_folder_takes_the_place_of_a_folder_a_file_and_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "stale").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("there")
    for name in ("file", "link", "there", "new"):
        with atomic_folder(tmp_path / name) as folder:
            (folder / "a").write_text("new")
        assert names(tmp_path / name) == ["a"]
    assert names(tmp_path) == ["file", "link", "new", "there"]


@pytest.mark.parametrize("kind", [atomic_write, atomic_folder])
def test_a_full_disk_names_the_file_and_not_its_temporary_name(tmp_path: Path, kind: object) -> None:
    for error in (OSError(errno.ENOSPC, "No space left on device"), None):
        with pytest.raises(OSError, match=re.escape(f"device: '{tmp_path}/x'")), kind(tmp_path / "x") as temporary:  # type: ignore[operator]
            raise error or OSError(errno.ENOSPC, "No space left on device", str(temporary))
    assert names(tmp_path) == []


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), atomic_write(tmp_path / "x"):
        (tmp_path / "other").read_text()


def test_the_checksum_is_crc_32_and_every_flipped_bit_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"123456789")
    assert checksum(path) == "cbf43926"  # the check value of CRC-32
    for bit in range(72):
        content = bytearray(b"123456789")
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert checksum(path) != "cbf43926"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"[" * 100_000])
def test_other_json_than_an_object_is_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json: .*not a thing.*; fix it") as caught:
        read_object(path, "a thing", "fix it")
    assert "\n" not in str(caught.value)
