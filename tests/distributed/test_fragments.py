"""The fragments of configs/strategy on two CPU processes: train, resume, export; and the command line starts both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from lion_lightning.cli import main
from lion_lightning.models.checkpoints.files import read_checkpoint
from tests.demo import copy_demo
from tests.distributed.ranks import run_ranks
from tests.marks import exhaustive

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
ON_CPU = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.precision=32-true"]
SAVES = {"ddp": Path.is_file, "fsdp2": Path.is_dir}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task where the configs look for it."""
    copy_demo(tmp_path / "runs" / "demo", train=64)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(name: str, *more: str) -> list[str]:
    configs = ["-c", str(ROOT / "configs" / "sft.yaml"), "-c", str(ROOT / "configs" / "strategy" / f"{name}.yaml")]
    return ["fit", *configs, *ON_CPU, "--trainer.enable_progress_bar=false", *more]


def ranks(rank: int, world: int, arguments: list[str]) -> int:
    return main(arguments)


@pytest.mark.parametrize("name", ["fsdp2", *exhaustive("ddp")])
def test_a_fragment_trains_resumes_and_its_checkpoint_is_exported(name: str, folder: Path) -> None:
    last = folder / "runs" / "sft" / "checkpoints" / "last.ckpt"
    for steps in (1, 2):  # the schedule follows max_steps, which is of no matter here
        arguments = command(name, f"--trainer.max_steps={steps}", *["--ckpt_path=last"] * (steps - 1))
        assert run_ranks(ranks, folder, arguments) == [0, 0]
        assert SAVES[name](last)
        assert read_checkpoint(last)["global_step"] == steps
    assert main(["export", str(last), "by hand"]) == 0
    ids = torch.arange(3, 20)[None]
    at_end, by_hand = (
        AutoModelForCausalLM.from_pretrained(made)(ids).logits for made in ("runs/sft/export", "by hand")
    )
    assert torch.equal(at_end, by_hand)


@pytest.mark.exhaustive  # as test_stopping.py has it start
def test_the_command_line_starts_the_second_process(folder: Path) -> None:
    lion = [sys.executable, "-m", "lion_lightning", *command("ddp", "--trainer.max_steps=1")]
    started = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(lion, env=started, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert read_checkpoint(folder / "runs" / "sft" / "checkpoints" / "last.ckpt")["global_step"] == 1


def test_fsdp_is_for_gpus_and_says_so_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("fsdp")) == 2
    said = capsys.readouterr().err
    assert "requires a GPU accelerator" in said
    assert "Traceback" not in said
    with pytest.raises(SystemExit):
        main(command("fsdp", "--print_config"))
    strategy = yaml.safe_load(capsys.readouterr().out)["trainer"]["strategy"]
    assert strategy["init_args"]["auto_wrap_policy"]["class_path"] == "lion_lightning.strategies.WrapLayers"
