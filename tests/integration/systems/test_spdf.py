"""Sparse pre-training from a config, and its demonstration in a small size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from examples.spdf.markov_chain import main as markov_chain
from lion_lightning.cli import main
from tests.demo import copy_demo, copy_start
from tests.integration.killed_runs import weights

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CONFIG = Path(__file__).parents[3] / "configs" / "sft.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_demo(tmp_path / "runs" / "demo", train=300)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(run: str, steps: int, *options: str, **settings: Any) -> int:
    saver = {"dirpath": f"{run}/checkpoints", "every_n_train_steps": 1, "save_last": True}
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver},
        {
            "class_path": "lion_lightning.experimental.static_sparsity.StaticSparsity",
            "init_args": {"sparsity": 0.75} | settings,
        },
    ]
    given = {"max_steps": steps, "default_root_dir": run, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    options = (*options, *(f"--trainer.{name}={value}" for name, value in given.items()))
    return main(["fit", "-c", str(CONFIG), *options, f"--trainer.callbacks={json.dumps(callbacks)}"])


def test_a_config_prunes_resumes_within_an_epoch_and_keeps_its_masks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = "--model.lr_scheduler=null"  # a run that ends sooner would have another schedule
    assert fit("whole", 4, constant) == 0
    assert fit("stopped", 2, constant) == 0
    assert fit("stopped", 4, constant, "--ckpt_path=last", seed=1) == 2
    assert "a run keeps its masks" in capsys.readouterr().err
    assert fit("stopped", 4, constant, "--ckpt_path=last") == 0
    whole, resumed = (weights(Path(run, "checkpoints", "last.ckpt")) for run in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    matrix = whole["policy.model.model.layers.0.mlp.up_proj.weight"]
    assert int((matrix == 0).sum()) == 320 * 128 * 3 // 4
    assert main(["export", "whole/checkpoints/last.ckpt", "exported"]) == 0
    assert torch.equal(load_file("exported/model.safetensors")["model.layers.0.mlp.up_proj.weight"], matrix)


def test_loaded_weights_need_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_start(folder / "runs" / "sft" / "export")
    loaded = "--model.policy={path: runs/sft/export, config: null}"
    assert fit("refused", 1, loaded) == 2
    assert "set allow_pretrained: true" in capsys.readouterr().err


def test_the_demonstration(capsys: pytest.CaptureFixture[str]) -> None:
    [[plain, half, sparse]] = markov_chain(["--seeds=1", "--steps=20", "--tuning-steps=10"])
    assert plain.dense == plain.kept
    assert (plain.zeros, half.zeros, sparse.zeros) == (0.0, 0.5, 0.75)
    assert (half.zeros_left, sparse.zeros_left) == (0.0, 0.0)
    # a layer: 4 64^2 + 3 64 256 = 65,536 weights; attention 4 L T h, the head 2 h V
    rest = 4 * 2 * 64 * 64 + 2 * 64 * 367
    assert sparse.flops == pytest.approx((4 * 65_536 + rest) / (65_536 + rest))
    assert sparse.dense < sparse.kept
    assert "| 75% | 1/" in capsys.readouterr().out
