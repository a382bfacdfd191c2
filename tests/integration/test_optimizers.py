"""The fragments with other optimizers: they parse over a stage, step where they can, and resume."""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch.optim import SGD

from lion_lightning import PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.callbacks import FusedBackward, Provenance
from lion_lightning.cli import main
from lion_lightning.optim import AdaLomo
from lion_lightning.tools.train.lightning_cli import build_cli
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
FRAGMENTS = {"adamw8bit": "AdamW8bit", "paged_adamw8bit": "PagedAdamW8bit"}
real = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: lion-lightning[qlora]")


def stage(folder: Path) -> list[str]:
    """Arguments of a stage with an optimizer of its own, whose settings the fragment must not take over."""
    tokenizer = str(tiny.tokenizer_folder(folder / "tokenizer"))
    (folder / "rows.jsonl").write_text('{"instruction": "w3", "output": "w4"}\n')
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-3, "weight_decay": 0.3}}
    model = {"policy": {"config": tiny.shallow()}, "tokenizer": {"path": tokenizer}, "optimizer": optimizer}
    config = {
        "model": {"class_path": "lion_lightning.SFTModule", "init_args": model},
        "data": {
            "class_path": "lion_lightning.SFTDataModule",
            "init_args": {"sources": [{"path": str(folder / "rows.jsonl")}], "max_length": 32},
        },
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "default_root_dir": str(folder),
            "gradient_clip_val": 1.0,
            "callbacks": [{"class_path": "lion_lightning.callbacks.Provenance"}],
        },
    }
    (folder / "stage.yaml").write_text(yaml.safe_dump(config))
    return ["-c", str(folder / "stage.yaml")]


def fragment(name: str) -> list[str]:
    return ["-c", str(ROOT / "configs" / "optimizer" / f"{name}.yaml")]


class Stub(torch.optim.AdamW):
    """Stands for an optimizer of bitsandbytes."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 1e-2) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    package.optim = optim  # type: ignore[attr-defined]
    for kind in FRAGMENTS.values():
        made = type(kind, (Stub,), {"__module__": "bitsandbytes.optim"})
        setattr(optim, kind, made)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)


def made(module: Any) -> torch.optim.Optimizer:
    module.configure_model()
    optimizer: torch.optim.Optimizer = module.configure_optimizers()
    return optimizer


@pytest.mark.parametrize("name", FRAGMENTS)
@pytest.mark.usefixtures("stubbed")
def test_a_fragment_replaces_the_stages_optimizer_with_its_settings(name: str, tmp_path: Path) -> None:
    optimizer = made(build_cli([*stage(tmp_path), *fragment(name)], run=False).model)
    assert type(optimizer).__name__ == FRAGMENTS[name]
    assert [group["lr"] for group in optimizer.param_groups] == [2e-5, 2e-5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_bitsandbytes_is_one_line_with_the_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *stage(tmp_path), *fragment("adamw8bit")]) == 2
    error = capsys.readouterr().err.strip()
    assert "pip install 'lion-lightning[qlora]'" in error
    assert "\n" not in error


@real
@pytest.mark.parametrize("name", FRAGMENTS)
def test_the_real_optimizers_parse_over_a_stage(name: str, tmp_path: Path) -> None:
    optimizer = made(build_cli([*stage(tmp_path), *fragment(name)], run=False).model)
    assert type(optimizer).__name__ == FRAGMENTS[name]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


@real
@pytest.mark.parametrize("name", FRAGMENTS.values())
def test_training_resumes_bit_for_bit_from_moments_in_eight_bits(name: str, tmp_path: Path) -> None:
    import bitsandbytes

    tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(tmp_path / "tokenizer")))
    wide = tiny.shallow(hidden_size=128, intermediate_size=128)  # matrices of 4,096 elements and more are quantized

    def fit(steps: int, resume: Path | None) -> tuple[Path, SFTModule, Any]:
        torch.manual_seed(0)
        optimizer = partial(getattr(bitsandbytes.optim, name), lr=1e-2)
        module = SFTModule(PolicySpec(config=wide), tokenizer=tokenizer, optimizer=optimizer)
        trainer = tiny.trainer(max_steps=steps, max_epochs=-1)
        trainer.fit(module, tiny.Rows([tiny.row()]), ckpt_path=resume)
        path = tmp_path / f"{steps}-{resume is None}.ckpt"
        trainer.save_checkpoint(path)
        return path, module, trainer.optimizers[0]

    start, _, optimizer = fit(2, None)
    states = optimizer.state.values()
    assert {state["state1"].dtype for state in states} == {torch.uint8, torch.float32}  # small ones stay whole
    assert all((state["state1"].dtype == torch.uint8) == (state["state1"].numel() >= 4096) for state in states)
    saved = torch.load(start, weights_only=True)["optimizer_states"][0]["state"]
    assert any("uint8" in str(part.dtype) for part in saved[0]["__bnb_optimizer_quant_state__"].values())
    _, whole, _ = fit(4, None)
    _, resumed, _ = fit(4, start)
    for (label, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), label


# --- within the backward pass


@pytest.mark.parametrize(("name", "kind", "rate", "clip"), [("lomo", SGD, 0.03, 1.0), ("adalomo", AdaLomo, 5e-4, None)])
def test_a_fragment_steps_within_the_backward_pass_beside_the_stages_callbacks(
    name: str, kind: Any, rate: float, clip: float | None, tmp_path: Path
) -> None:
    cli = build_cli([*stage(tmp_path), *fragment(name)], run=False)
    optimizer = made(cli.model)
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {rate}
    callbacks: list[Any] = cli.trainer.callbacks  # type: ignore[attr-defined]
    (fused,) = (one for one in callbacks if isinstance(one, FusedBackward))
    assert (fused.clip_norm, fused.clip_value, cli.trainer.gradient_clip_val) == (clip, None, None)
    assert any(isinstance(one, Provenance) for one in callbacks)


def test_what_it_does_not_go_with_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*stage(tmp_path), *fragment("lomo"), "--trainer.accumulate_grad_batches=2"]
    assert main(["fit", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "FusedBackward: trainer.accumulate_grad_batches is 2" in error
