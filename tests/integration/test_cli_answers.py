"""Single answers and groups from the command line: shipped configs run and export; bad input gets one line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_lightning.cli import main
from tests.demo import copy_demo, copy_start
from tests.integration.killed_runs import assert_a_killed_run_ends_equal
from tests.marks import exhaustive, slow

ROOT = Path(__file__).parents[2]
KTO, RANKED = ROOT / "configs" / "kto.yaml", ROOT / "configs" / "ranked.yaml"
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"]
BARE = [*SMALL, "--trainer.callbacks=[]", "--trainer.enable_checkpointing=false"]
ONE_STEP = [*BARE, "--trainer.max_steps=1", "--trainer.logger=false", "--trainer.limit_val_batches=0"]
CSV = '--trainer.logger={"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}'
LOSSES = "--model.loss=lion_lightning.losses."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task, and random weights where the configs expect those of stage 1."""
    copy_demo(tmp_path / "runs" / "demo", preferences=60, ranked=60)
    copy_start(tmp_path / "runs" / "sft" / "export")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logged(folder: Path) -> list[dict[str, float]]:
    """What the run logged, a row a step."""
    (path,) = (folder / "logs").glob("lightning_logs/*/metrics.csv")
    names, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return [{name: float(cell) for name, cell in zip(names, row, strict=True) if cell} for row in rows]


@pytest.mark.slow
def test_the_shipped_config_trains_and_exports(folder: Path) -> None:
    assert main(["fit", "-c", str(RANKED), *SMALL, CSV, "--trainer.max_epochs=3"]) == 0
    steps = [row for row in logged(folder) if "train/loss" in row]
    assert steps[0]["train/loss"] == pytest.approx(math.log(6), rel=1e-5)  # any of the 3! orders
    assert [row["val/rewards/kendall"] for row in logged(folder) if "val/loss" in row][-1] > 0.05
    export = folder / "runs/ranked/export"
    ids = AutoTokenizer.from_pretrained(export)("Spell tako.", return_tensors="pt").input_ids
    made, before = (AutoModelForCausalLM.from_pretrained(path) for path in (export, folder / "runs/sft/export"))
    assert not torch.equal(made(ids).logits, before(ids).logits)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        *slow(
            (KTO, [LOSSES + "APOZeroUnpairedLoss", "--model.loss.desirable_weight=1.5", "--data.mismatched=false"]),
            (KTO, [LOSSES + "UnlikelihoodLoss", "--model.loss.alpha=0.5", "--model.reference=null"]),
            (KTO, ["--model.reference=lion_lightning.AdapterOffReference", "-c", "configs/model/lora.yaml"]),
            (RANKED, [LOSSES + "LambdaLoss", "--model.loss.lowest=0", "--model.loss.highest=1"]),
        ),
        *exhaustive(
            (KTO, [LOSSES + "BCOLoss", "--model.loss.beta=0.2"]),
            (RANKED, ["--model.reference=lion_lightning.FrozenReference", "--data.keep_equal=true"]),
        ),
        (RANKED, [LOSSES + "AllPairsLoss", "--model.loss.loss=lion_lightning.losses.IPOLoss"]),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else value[0].split(".")[-1],
)
def test_losses_references_and_adapters_are_options(folder: Path, config: Path, options: list[str]) -> None:
    (folder / "configs").symlink_to(ROOT / "configs")
    assert main(["fit", "-c", str(config), *ONE_STEP, *options]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("config", "lora"), [(RANKED, True), *exhaustive((KTO, False), (KTO, True), (RANKED, False))])
def test_a_run_killed_by_the_system_ends_equal_bit_for_bit(folder: Path, config: Path, lora: bool) -> None:
    adapters = ["-c", str(ROOT / "configs/model/lora.yaml")] if lora else []
    options = ["-c", str(config), *adapters, *SMALL, "--trainer.max_epochs=6", "--data.batch_size=1"]
    options += ["--trainer.logger=false", "--data.seed=1"]
    assert_a_killed_run_ends_equal(folder, options, steps=40)


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (KTO, ["--data.mismatched=false"], "data.mismatched is false; set it to true, or choose a loss without"),
        (
            KTO,
            ["--data=lion_lightning.PreferenceDataModule"],
            "KTOModule trains on labeled answers, and the batch",
        ),
        (RANKED, ["--data=lion_lightning.UnpairedDataModule"], "scores"),
        (RANKED, ["--model.loss.beta=0"], "PlackettLuceLoss: beta is 0.0; give a number above 0"),
    ],
    ids=["no mismatched", "pairs", "groups as labels", "beta"],
)
def test_bad_input_gets_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], config: Path, options: list[str], said: str
) -> None:
    assert main(["fit", "-c", str(config), *ONE_STEP, *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last
