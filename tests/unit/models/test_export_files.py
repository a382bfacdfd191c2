"""An export is there whole or is not taken for one, whenever it is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lion_lightning.models.export_files import drafted, is_export

FILES = ("README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json")


class KilledError(BaseException):
    """Stands for SIGKILL."""


def export(folder: Path, text: str, files: tuple[str, ...] = FILES) -> None:
    folder.mkdir(exist_ok=True)
    with drafted(folder) as draft:
        for name in files:
            (draft / name).write_text(text)
        (draft / "chat_templates").mkdir()
        (draft / "chat_templates" / "rag.jinja").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


def test_an_export_replaces_an_earlier_one_and_takes_its_other_files_away(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export(folder, "old", (*FILES, "model-00001.safetensors", "generation_config.json"))
    (folder / "mine.txt").write_text("kept")
    export(folder, "new")
    assert contents(folder) == dict.fromkeys(FILES, "new") | {"mine.txt": "kept"}
    assert (folder / "chat_templates" / "rag.jinja").read_text() == "new"
    assert is_export(folder)


@pytest.mark.parametrize("moved", range(len(FILES) + 1))
@pytest.mark.parametrize("over_another", [False, True])
def test_killed_between_any_two_files_it_is_no_export_and_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int, over_another: bool
) -> None:
    folder, count = tmp_path / "export", 0
    if over_another:
        export(folder, "old")
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > moved:
            raise KilledError
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KilledError):
        export(folder, "half")
    monkeypatch.undo()
    assert not is_export(folder)
    export(folder, "new")
    assert is_export(folder)
    assert set(contents(folder).values()) == {"new"}


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "export" / ".draft-1"
    left.mkdir(parents=True)
    export(left.parent, "new")
    assert not left.exists()
