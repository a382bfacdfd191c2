"""Configs of other programs train here: the classes, the rows of a step and the rates are theirs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from lightning.pytorch.callbacks import Callback

from lion_lightning.cli import main
from lion_lightning.tools.importing.compose import compose
from lion_lightning.tools.importing.reading import read_imported
from tests.demo import copy_demo, copy_start
from tests.marks import slow_but

CONFIGS = Path(__file__).parents[1] / "unit/tools/importing/configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))

ROW = {"question": "Spell tako.", "chosen": "t a k o", "rejected": "t a k"}
CHAT = {
    "messages": [{"role": "user", "content": "Spell tako."}, {"role": "assistant", "content": "t a k o"}],
}


class Steps(Callback):
    """Keeps what a run did."""

    seen: ClassVar[list[tuple[int, Any]]] = []

    def __init__(self) -> None:
        self.items = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.items += len(batch.sample_indices)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        Steps.seen.append((self.items, optimizer.param_groups[0]["lr"]))
        self.items = 0


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    for name in ("rows.jsonl", "held.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with another prompt."""
    text = json.dumps(row).replace("tako", f"{'aeiou'[number % 5]}tak{'aeiou'[number // 5]}")
    found: dict[str, Any] = json.loads(text)
    return found


def fit(folder: Path, given: dict[str, Any], name: str) -> dict[str, Any]:
    """Import a config and train two steps of it; what the run made."""
    (folder / name).write_text(yaml.safe_dump(given))
    assert main(["import", str(folder / name), "-o", "lion.yaml"]) == 0
    Steps.seen = []
    callbacks = json.dumps([{"class_path": f"{__name__}.Steps"}])
    small = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    assert (
        main(["fit", "-c", "lion.yaml", "--trainer.accelerator=cpu", f"--trainer.callbacks={callbacks}", *small]) == 0
    )
    config: dict[str, Any] = yaml.safe_load(Path("lion.yaml").read_text())
    return config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_demo(tmp_path / "demo", train=16, validation=4)
    copy_start(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_axolotl_s_dpo(folder: Path) -> None:
    write_rows(folder, [numbered(ROW, number) for number in range(12)])
    given = {
        "base_model": "model",
        "rl": "dpo",
        "rl_beta": 0.2,
        "datasets": [{"path": "json", "data_files": ["rows.jsonl"], "type": "chatml.intel"}],
        "chat_template": "tokenizer_default",
        "sequence_len": 64,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "num_epochs": 1,
        "learning_rate": "1e-4",
        "lr_scheduler": "linear",
        "warmup_steps": 1,
        "bf16": False,
        "output_dir": "out",
    }
    config = fit(folder, given, "axolotl.yaml")
    assert config["model"]["init_args"]["loss"]["init_args"] == {"beta": 0.2}
    # 12 pairs are 2 steps of 2 x 3; a warmup of one step has half the peak, and the next all of it
    assert Steps.seen == [(6, pytest.approx(0.5e-4)), (6, pytest.approx(1e-4))]


@pytest.mark.slow
def test_llama_factory_s_kto(folder: Path) -> None:
    turns = [{"from": "human", "value": "Spell tako."}, {"from": "gpt", "value": "t a k o"}]
    rows = [numbered({"conversations": turns, "liked": True}, number) for number in range(8)]
    for number in range(0, 8, 2):
        rows[number]["liked"] = False
    write_rows(folder, rows)
    columns = {"messages": "conversations", "kto_tag": "liked"}
    info = {"thumbs": {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    given = {
        "model_name_or_path": "model",
        "stage": "kto",
        "finetuning_type": "full",
        "dataset": "thumbs",
        "dataset_dir": ".",
        "cutoff_len": 64,
        "kto_rejected_weight": 2.0,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1.0,
        "output_dir": "out",
    }
    config = fit(folder, given, "kto.yaml")
    loss = config["model"]["init_args"]["loss"]
    assert loss["class_path"] == "lion_lightning.losses.KTOLoss"
    assert loss["init_args"]["undesirable_weight"] == 2.0
    assert Steps.seen == [(4, pytest.approx(2e-4)), (4, pytest.approx(2e-4))]


@pytest.mark.slow
def test_trl_s_reward_model(folder: Path) -> None:
    pair = {"prompt": CHAT["messages"][:1], "chosen": CHAT["messages"][1:]}
    rejected = [{"role": "assistant", "content": "t a k"}]
    write_rows(folder, [numbered({**pair, "rejected": rejected}, number) for number in range(8)])
    given = {
        "model_name_or_path": "model",
        "dataset_name": "rows.jsonl",
        "center_rewards_coefficient": 0.05,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "max_length": 64,
        "lr_scheduler_type": "linear",
        "bf16": False,
        "output_dir": "out",
    }
    config = fit(folder, given, "reward.yaml")
    assert config["model"]["class_path"] == "lion_lightning.RewardModule"
    assert config["model"]["init_args"]["center_rewards_coefficient"] == 0.05
    # TRL's rate for reward models; without warmup the line begins at the peak, and is at half of it after one of two
    assert Steps.seen == [(4, pytest.approx(1e-4)), (4, pytest.approx(0.5e-4))]


@pytest.mark.slow
def test_alignment_handbook_s_sft(folder: Path) -> None:
    write_rows(folder, [numbered(CHAT, number) for number in range(8)])
    mixture = {"datasets": [{"id": "rows.jsonl", "columns": ["messages"], "weight": 1.0}]}
    given = {
        "model_name_or_path": "model",
        "dataset_mixture": mixture,
        "assistant_only_loss": True,
        "max_seq_length": 64,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "num_train_epochs": 1,
        "bf16": False,
        "output_dir": "out",
    }
    config = fit(folder, given, "sft.yaml")
    assert config["data"]["init_args"]["mask"] == "assistant"
    # half a cosine from 1 to 0.1: after one of two steps it is in the middle, at 0.55
    assert Steps.seen == [(4, pytest.approx(1e-3)), (4, pytest.approx(0.55e-3))]


@pytest.mark.parametrize("name", slow_but(NAMES, "alignment_handbook_dpo", "llama_factory_kto", "axolotl_reward"))
def test_what_is_imported_is_a_config_of_lion_fit(name: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(compose(read_imported(CONFIGS / f"{name}.yaml").recipe)))
    with suppress(SystemExit):  # --print_config parses all of it, prints it and leaves
        assert main(["fit", "-c", str(path), "--print_config"]) == 0
