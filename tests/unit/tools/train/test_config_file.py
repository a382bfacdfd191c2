"""Config files that are wrong are named, with the line or the key, before anything is parsed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lion_lightning.tools.train.config_file import check_config_files, read_config_file, with_files_read
from lion_lightning.tools.train.lightning_cli import CONFIG_KEYS, LionCLI, build_cli

WRONG = {
    "empty": (b"", "the file is empty"),
    "comments alone": (b"# nothing\n", "the file is empty"),
    "a list": (b"- a\n- b\n", "but this is a list"),
    "a text": (b"hello", "but this is a str"),
    "binary": (bytes(range(256)), "not UTF-8 text (byte 128)"),
    "UTF-16": ("model: x\n".encode("utf-16"), "not UTF-8 text (byte 0)"),
    "a tab": (b"model:\n\tpolicy: x\n", "cannot start any token, line 2"),
    "a tag": (b"a: 1\nmodel: !!python/object/apply:os.system ['true']\n", "python/object/apply:os.system', line 2"),
    "a key twice": (b"seed_everything: 1\nmodel: {}\nseed_everything: 2\n", "'seed_everything' is given twice, line 3"),
    "a nested key twice": (b"trainer:\n  max_steps: 1\n  max_steps: 2\n", "'max_steps' is given twice, line 3"),
    "an impossible date": (b"a: 2026-99-99\n", "not valid YAML"),
    "half a character": (b'a: 1\nb: "\\ud800"\n', "not a character, line 2"),
    "aliases that multiply": (
        b"a: &a [1, 1, 1, 1, 1, 1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 6)) for n in range(98, 108)),
        "more than 100,000 values",
    ),
    "merge keys that multiply": (
        b"a: &a {x: 1}\n"
        + b"".join(b"%c: &%c {<<: [%s]}\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 9)) for n in range(98, 108)),
        "merge keys multiply",
    ),
    "an alias of itself": (b"a: &a [*a]\n", "more than 100,000 values"),
    "too deep": (b"[" * 2_000, "nested too deep"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_no_config_is_named_with_what_is_wrong(case: str, tmp_path: Path) -> None:
    content, said = WRONG[case]
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: ") as caught:
        read_config_file(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ValueError, match=f"{path}: .*; give a config file"):
            read_config_file(path)


def test_anchors_merge_keys_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_config_file(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modell: {}\n", "unknown key 'modell'; did you mean 'model'?"),
        ("trainer: {max_step: {}}\n", "unknown key 'trainer.max_step'; did you mean 'trainer.max_steps'?"),
        ("stages: {}\n", "run it with `lion run"),
        ("1: 2\n", "unknown key '1'; known are"),
    ],
)
@pytest.mark.parametrize("option", ["-c {}", "--config {}", "-c={}", "--config={}"])
def test_a_key_that_nothing_reads_is_refused_even_where_it_is_empty(
    text: str, said: str, option: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    arguments = option.format(tmp_path / "c.yaml").split(" ")
    with pytest.raises(ValueError, match=re.escape(said)):
        check_config_files(arguments, CONFIG_KEYS)


def test_a_list_may_be_added_to(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("trainer: {callbacks+: [{class_path: lion_lightning.callbacks.PeakMemory}]}\n")
    check_config_files(["-c", str(path)], CONFIG_KEYS)


def test_the_known_keys_are_those_that_a_saved_config_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_cli(["fit", "--model=lion_lightning.SFTModule", "--print_config"])
    saved = yaml.safe_load(capsys.readouterr().out)
    assert set(saved) <= set(CONFIG_KEYS)
    assert set(saved["trainer"]) == set(CONFIG_KEYS["trainer"] or ())
    assert issubclass(LionCLI, LightningCLI)


def test_a_file_stands_for_its_values_and_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "all.yaml").write_text("judges: [one.yaml, more/two.yaml]\n")
    (tmp_path / "judges" / "one.yaml").write_text("class_path: One\n")
    given = {
        "judge": "judges/all.yaml",
        "path": "rows.yaml",
        "one": "one.yaml",
    }  # none but the first is a file from here
    read = {"judge": {"judges": [{"class_path": "One"}, "more/two.yaml"]}, "path": "rows.yaml", "one": "one.yaml"}
    assert with_files_read(given, tmp_path) == read


def test_files_that_name_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: b.yaml\n")
    (tmp_path / "b.yaml").write_text("x: [a.yaml]\n")
    with pytest.raises(ValueError, match=r"a\.yaml: this file leads back to itself; write its values out"):
        with_files_read({"judge": "a.yaml"}, tmp_path)
