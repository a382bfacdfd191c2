"""Exports on disk: all of one, or none; what an earlier one left is gone; changed weights are found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lion_lightning import PolicySpec
from lion_lightning.models.checkpoints import export_files
from lion_lightning.models.checkpoints.export_files import MANIFEST, missing_of, new_export, require_intact


def write(folder: Path, number: float, shards: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    with new_export(folder) as temporary:
        for shard in range(shards):
            save_file({"weight": torch.full((8,), number)}, temporary / f"model-{shard}-of-{shards}.safetensors")
        (temporary / "config.json").write_text(json.dumps({"number": number}))
        (temporary / "tokenizer").mkdir()
        (temporary / "tokenizer" / "vocab").write_text("a")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_export_takes_the_place_of_another_and_other_files_stay(tmp_path: Path) -> None:
    write(tmp_path, 1, shards=3)
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, 2)
    assert names(tmp_path) == [
        "config.json",
        MANIFEST,
        "model-0-of-1.safetensors",
        "notes.txt",
        "tokenizer/vocab",
    ]
    assert missing_of(tmp_path) is None
    require_intact(tmp_path)


@pytest.mark.parametrize("calls", range(8))
def test_killed_at_any_file_it_is_the_old_one_or_says_that_it_is_not_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Neither a reader of ours nor one that knows no manifest takes a mixture for a model."""
    write(tmp_path, 1, shards=2)
    left = calls
    replace, unlink = Path.replace, Path.unlink

    def counted(method: Any) -> Any:
        def call(path: Path, *rest: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return method(path, *rest, **options)

        return call

    monkeypatch.setattr(Path, "replace", counted(replace))
    monkeypatch.setattr(Path, "unlink", counted(unlink))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2, shards=1)
    monkeypatch.undo()
    if calls == 0:
        assert missing_of(tmp_path) is None
        assert json.loads((tmp_path / "config.json").read_text()) == {"number": 1}
        return
    assert missing_of(tmp_path) == f"there is no {MANIFEST}, which is written last"
    weights = list(tmp_path.glob("*.safetensors"))
    if (tmp_path / "config.json").exists() and weights:
        number = json.loads((tmp_path / "config.json").read_text())["number"]
        assert [path.name for path in weights] == ["model-0-of-1.safetensors"] or number == 1
    write(tmp_path, 2, shards=1)
    require_intact(tmp_path)


def test_a_first_export_that_was_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / f".host.{'0' * 32}.export").mkdir()
    assert missing_of(tmp_path) is not None
    with pytest.raises(ValueError, match="an incomplete export, its writing was cut short; export it again"):
        require_intact(tmp_path)


@pytest.mark.parametrize("raised", ["safetensors", "system"])
def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path: Path, raised: str) -> None:
    write(tmp_path, 1)
    full: Exception = OSError(28, "No space left on device")
    if raised == "safetensors":
        full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def half() -> None:
        with new_export(tmp_path) as temporary:
            (temporary / "config.json").write_text("half")
            raise full

    with pytest.raises(ValueError, match=r"cannot write to .*: No space left on device; give another") as caught:
        half()
    assert str(tmp_path) in str(caught.value)
    require_intact(tmp_path)
    assert not any(tmp_path.glob(".*"))


def test_changed_and_missing_files_are_named(tmp_path: Path) -> None:
    weights = write(tmp_path, 1) / "model-0-of-1.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.write_bytes(raw)
    export_files._checksum.cache_clear()
    with pytest.raises(ValueError, match=r"model-0-of-1\.safetensors: not the weights that were exported.*lion_export"):
        require_intact(tmp_path)
    os.truncate(weights, 20)
    with pytest.raises(ValueError, match=r"model-0-of-1\.safetensors has 20 bytes, and had"):
        require_intact(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"not the model that was exported: model-0-of-1\.safetensors is gone"):
        require_intact(tmp_path)
    (tmp_path / MANIFEST).unlink()
    require_intact(tmp_path)  # the user's own folder


def test_a_card_or_template_may_be_edited(tmp_path: Path) -> None:
    (write(tmp_path, 1) / "config.json").write_text("{}")
    require_intact(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"../a": {"bytes": 1, "crc32": "0"}}}']
)
def test_a_list_that_is_other_json_is_one_line(tmp_path: Path, text: str) -> None:
    (write(tmp_path, 1) / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"lion_export\.json: .*export it again") as caught:
        require_intact(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_policy_is_not_built_from_changed_weights(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model-0-of-1.safetensors").unlink()
    save_file({"weight": torch.full((8,), 3.0)}, tmp_path / "model-0-of-1.safetensors")
    with pytest.raises(ValueError, match=r"not the model that was exported"):
        PolicySpec(path=str(tmp_path)).build()
