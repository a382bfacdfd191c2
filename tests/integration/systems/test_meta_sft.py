"""Meta-learned training from a config, and its demonstration in a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.meta_sft.languages import main as languages
from lion_lightning.cli import main
from tests.demo import copy_demo
from tests.integration.killed_runs import weights

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CONFIG = Path(__file__).parents[3] / "configs" / "sft.yaml"


def fit(run: str, steps: int, *options: str, window: int = 2) -> int:
    saver = {"dirpath": f"{run}/checkpoints", "every_n_train_steps": 1, "save_last": True}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}]
    given = {"max_steps": steps, "default_root_dir": run, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    given |= {"accumulate_grad_batches": window, "callbacks": json.dumps(callbacks)}
    model = ["--model=lion_lightning.experimental.meta_sft.MetaSFTModule", "--model.inner_lr=0.1"]
    constant = "--model.lr_scheduler=null"
    return main(
        ["fit", "-c", str(CONFIG), *model, constant, *(f"--trainer.{k}={v}" for k, v in given.items()), *options]
    )


def test_a_config_trains_resumes_within_an_epoch_and_names_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_demo(tmp_path / "runs" / "demo", train=300)
    monkeypatch.chdir(tmp_path)
    assert fit("whole", 4) == 0
    assert fit("stopped", 2) == 0
    assert fit("stopped", 4, "--ckpt_path=last") == 0
    whole, resumed = (weights(Path(run, "checkpoints", "last.ckpt")) for run in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert main(["export", "whole/checkpoints/last.ckpt", "exported"]) == 0
    exported = load_file("exported/model.safetensors")
    assert torch.equal(exported["model.norm.weight"], whole["policy.model.model.norm.weight"])
    capsys.readouterr()
    assert fit("refused", 4, window=1) == 2
    assert "set trainer.accumulate_grad_batches to the number of inner steps plus one" in capsys.readouterr().err
    assert fit("refused", 4, "--model.inner_lr=-1") == 2
    assert "model.inner_lr is -1.0" in capsys.readouterr().err


def test_the_demonstration(capsys: pytest.CaptureFixture[str]) -> None:
    found = languages(["--seeds=1", "--steps=60"])
    [[plain, plain_adapted, _]], [[start, adapted, _]] = found[0], found[1]
    assert adapted < plain_adapted
    assert start > plain
    assert "| trained for k steps | after 0 steps |" in capsys.readouterr().out
