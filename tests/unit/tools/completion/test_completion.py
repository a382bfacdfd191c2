"""`lion completion`: what bash completes, without importing torch; the keys of a config as options."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.cli import COMMANDS, TRAINING, main
from lion_lightning.tools.completion import main as completion
from lion_lightning.tools.completion.words import keys

ROOT = Path(__file__).parents[4]


def write_script(folder: Path) -> Path:
    """A folder with the script, and `lion` next to it."""
    (folder / "lion").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lion_lightning "$@"\n')
    (folder / "lion").chmod(0o755)
    (folder / "lion.bash").write_text(completion.script("bash"))
    return folder


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that need no command's help, which imports torch."""
    words = "lion_lightning.tools.completion.words."
    monkeypatch.setattr(f"{words}options", lambda: {name: ["--out", "--from"] for name in (*COMMANDS, *TRAINING)})
    monkeypatch.setattr(f"{words}choices", lambda: {"init": ["sft", "dpo"]})


def completed(folder: Path, *words: str) -> set[str]:
    """Words that Tab offers behind a command line, whose last word may be empty."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    line = " ".join(f"'{word}'" for word in words)
    asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _lion"
    program = f"source lion.bash; {asked}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    options: Any = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    run = subprocess.run(["bash", "-c", program], check=True, **options)
    assert run.stderr == ""
    return set(run.stdout.split())


@pytest.mark.usefixtures("few_words")
def test_bash_completes_commands_options_and_keys_of_files(tmp_path: Path) -> None:
    bash = write_script(tmp_path)
    assert completed(bash, "lion", "") == {*COMMANDS, *TRAINING}
    assert completed(bash, "lion", "in") == {"init", "inspect"}
    assert completed(bash, "lion", "init", "d") == {"dpo"}
    assert completed(bash, "lion", "import", "--f") == {"--from"}
    assert completed(bash, "lion", "fit", "-c", "") == set()  # files, by the shell itself
    (bash / "my.yaml").write_text(
        "model: {class_path: a.B, init_args: {loss: {class_path: a.C, init_args: {beta: 1}}}}"
    )
    assert completed(bash, "lion", "fit", "-c", "my.yaml", "--model.lo") == {"--model.loss", "--model.loss.beta"}
    (bash / "my pipeline.yaml").write_text("stages: {dpo: {trainer: {max_steps: 1}}}")
    assert completed(bash, "lion", "run", "my pipeline.yaml", "--dpo.trainer.") == {"--dpo.trainer.max_steps"}


@pytest.mark.slow
def test_options_are_those_that_the_commands_have_now(tmp_path: Path) -> None:
    bash = write_script(tmp_path)
    assert completed(bash, "lion", "import", "--") == {"--from", "--help", "--out", "--stage"}
    assert completed(bash, "lion", "fit", "--trainer.max_e") == {"--trainer.max_epochs"}
    assert completed(bash, "lion", "inspect", "--model.policy.rec") == {"--model.policy.recompute"}
    assert completed(bash, "lion", "fit", "--model.reduc") == {"--model.reduction"}
    assert completed(bash, "lion", "init", "k") == {"kto"}
    assert completed(bash, "lion", "import", "f", "--stage", "") == set()


def test_keys_of_a_pipeline_are_options_of_its_stages() -> None:
    found = keys(yaml.safe_load((ROOT / "configs" / "own.yaml").read_text()))
    assert "--dpo.model.loss.beta" in found
    assert "--sft.trainer.max_epochs" in found
    assert not any("init_args" in key or "class_path" in key for key in found)


def test_a_hostile_key_is_no_word_of_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text('"$(touch canary)": 1\n"`ls`": {a: 1}\nfine: {"b;c": 1}\n')
    assert main(["completion", "keys", str(tmp_path / "c.yaml")]) == 0
    assert capsys.readouterr().out.split() == ["--fine"]


def test_the_parser_s_own_option_says_where_completion_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print_shtab=bash"]) == 2
    assert "completion is printed by `lion completion bash`" in capsys.readouterr().err


def test_keys_are_found_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from lion_lightning.cli import main; "
        f"main(['completion', 'keys', {str(ROOT / 'configs' / 'dpo.yaml')!r}]); "
        "assert not {'torch', 'lightning', 'transformers'} & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, cwd=tmp_path)


@pytest.mark.usefixtures("few_words")
def test_other_shells_get_the_same_words() -> None:
    zsh, fish = completion.script("zsh"), completion.script("fish")
    assert zsh.startswith("#compdef lion\n")
    assert 'init:2:*) words="sft dpo" ;;' in zsh
    assert "complete -c lion -n '__fish_seen_subcommand_from init' -a 'sft dpo'" in fish.splitlines()
    assert "complete -c lion -n '__fish_seen_subcommand_from fit' -l out" in fish.splitlines()
