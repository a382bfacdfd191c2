"""`lion import`: what becomes of the keys of other programs' configs; the result is a config of `lion fit`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.cli import main
from lion_lightning.tools.importing.compose import compose
from lion_lightning.tools.importing.reading import read_imported

CONFIGS = Path(__file__).parent / "configs"
PAGE = Path(__file__).parents[4] / "docs" / "importing.md"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def composed(given: dict[str, Any], folder: Path, name: str = "config.yaml", **options: Any) -> dict[str, Any]:
    """The config of lion that becomes of another's."""
    path = folder / name
    path.write_text(yaml.safe_dump(given))
    return compose(read_imported(path, **options).recipe)


def outcome(key: str, given: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Kind and reason of the outcome of a key."""
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump(given))
    return next((kind, reason) for name, kind, reason in read_imported(path).outcomes if name == key)


AXOLOTL = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "chat_template"}]}
TRL = {"model_name_or_path": "m", "dataset_name": "d"}


# --- shares


@pytest.mark.parametrize("name", NAMES)
def test_the_page_counts_the_keys_of_each_config(name: str) -> None:
    imported = read_imported(CONFIGS / f"{name}.yaml")
    kinds = Counter(one.kind for one in imported.outcomes)
    carried = kinds["carried"] + kinds["check"]
    counts = [len(imported.outcomes), carried, kinds["no effect"], kinds["not supported"], kinds["unknown"]]
    row = next(line for line in PAGE.read_text("utf-8").splitlines() if f"[{name}]" in line)
    assert [int(cell) for cell in row.split("|")[3:8]] == counts
    assert f"| {imported.dialect.title}, {imported.recipe.objective} |" in row


def test_each_key_of_a_config_has_one_outcome() -> None:
    given = yaml.safe_load((CONFIGS / "axolotl_reward.yaml").read_text())
    outcomes = [one.key for one in read_imported(CONFIGS / "axolotl_reward.yaml").outcomes]
    assert sorted(outcomes) == sorted({*given, "datasets.path", "datasets.type"} - {"datasets"})


# --- values


def test_a_config_says_the_same_in_our_words() -> None:
    config = compose(read_imported(CONFIGS / "axolotl_dpo.yaml").recipe)
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert config["model"]["class_path"] == "lion_lightning.DPOModule"
    loss = model["loss"]["init_args"]  # -log sigmoid(m), and rpo_alpha times the chosen answer's mean log-likelihood
    assert [part["class_path"].rpartition(".")[2] for part in loss["losses"]] == ["SigmoidLoss", "ChosenNLLLoss"]
    assert loss["losses"][0]["init_args"] == {"beta": 0.05}
    assert loss["weights"] == [1.0, 0.5]
    assert model["optimizer"]["init_args"]["betas"] == [0.9, 0.95]
    assert data["batch_size"] * trainer["accumulate_grad_batches"] == 1 * 16
    assert data["packing"]["class_path"].endswith(".Unpacked")  # a pair a row: 16 pairs a step, as there
    assert data["sources"][1]["columns"] == {"messages": "conversation", "chosen": "better", "rejected": "worse"}
    assert trainer["callbacks"][0]["init_args"]["every_n_train_steps"] == 200
    assert trainer["strategy"]["class_path"] == "lion_lightning.strategies.FSDP2Strategy"


def test_llama_factory_s_data_sets_are_found_in_the_file_that_explains_them() -> None:
    data = compose(read_imported(CONFIGS / "llama_factory_sft.yaml").recipe)["data"]["init_args"]
    chats, notes = data["sources"]
    assert chats == {
        "path": "someone/travel-chats",
        "split": "train[:2000]",
        "columns": {"messages": "dialogue", "system": "persona"},
    }
    assert notes["path"] == str(CONFIGS / "alpaca_notes.json")
    assert notes["columns"] == {"instruction": "task", "input": "details", "output": "result"}


def test_a_data_set_that_no_file_explains_is_to_be_filled_in(tmp_path: Path) -> None:
    given = {"model_name_or_path": "m", "stage": "sft", "dataset": "mine", "template": "llama3", "cutoff_len": 8}
    kind, reason = outcome("dataset", given, tmp_path)
    assert kind == "check"
    assert "mine: no dataset_info.json was found; fill in its path" in reason
    assert composed(given, tmp_path)["data"]["init_args"]["sources"] == [{"path": "mine"}]


def test_defaults_of_the_other_program_are_written_out(tmp_path: Path) -> None:
    config = composed(TRL, tmp_path, "dpo.yaml")  # TRL 1.16: DPOConfig()
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert model["optimizer"]["init_args"]["lr"] == 1e-6
    assert model["loss"] == {"class_path": "lion_lightning.losses.SigmoidLoss", "init_args": {"beta": 0.1}}
    assert model["lr_scheduler"]["class_path"] == "lion_lightning.modules.LinearWithWarmup"
    assert model["lr_scheduler"]["init_args"] == {"warmup": 0.0}
    assert (data["batch_size"], data["max_length"]) == (8, 1024)
    assert (trainer["max_epochs"], trainer["accumulate_grad_batches"], trainer["precision"]) == (3, 1, "bf16-mixed")
    assert model["policy"]["recompute"] == "full"
    assert config["seed_everything"] == 42


LOSSES: dict[str, tuple[dict[str, Any], str]] = {
    "hinge": ({"loss_type": "hinge"}, "HingeLoss"),
    "smoothed": ({"loss_type": "robust", "label_smoothing": 0.2}, "RobustLoss"),
    "weights of WPO": ({"use_weighting": True, "loss_type": "sigmoid"}, "WPOLoss"),
    "several": ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}, "WeightedSum"),
    "length": ({"ld_alpha": 0.3}, "LDDPOLoss"),
    "SimPO": ({"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.5, "beta": 2.0}, "SimPOLoss"),
    "CPO": ({"cpo_alpha": 0.7}, "CPOLoss"),
}


@pytest.mark.parametrize(("given", "name"), LOSSES.values(), ids=LOSSES)
def test_losses_are_named_by_class(given: dict[str, Any], name: str, tmp_path: Path) -> None:
    model = composed({**TRL, **given}, tmp_path, "dpo.yaml")["model"]["init_args"]
    assert model["loss"]["class_path"] == f"lion_lightning.losses.{name}"
    assert ("reference" in model) == (name not in ("SimPOLoss", "CPOLoss"))


def test_trl_s_divergence_has_one_minus_our_alpha(tmp_path: Path) -> None:
    given = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.8}
    loss = composed({**TRL, **given}, tmp_path)["model"]["init_args"]["loss"]["init_args"]
    assert loss["divergence"]["init_args"]["alpha"] == pytest.approx(0.2)


def test_rank_stabilized_adapters_have_their_scale(tmp_path: Path) -> None:
    given = {**AXOLOTL, "adapter": "lora", "lora_r": 16, "lora_alpha": 8, "peft_use_rslora": True}
    lora = composed(given, tmp_path)["model"]["init_args"]["policy"]["lora"]
    assert lora["alpha"] / lora["r"] == pytest.approx(8 / 16**0.5)


def test_a_reference_that_follows_the_policy_is_mixed(tmp_path: Path) -> None:
    given = {"sync_ref_model": True, "ref_model_mixup_alpha": 0.3, "ref_model_sync_steps": 64, "beta": 0.1}
    reference = composed({**TRL, **given}, tmp_path, "dpo.yaml")["model"]["init_args"]["reference"]
    assert reference["init_args"] == {"alpha": 0.3, "every_n_steps": 64}


def test_half_an_epoch_and_packed_rows(tmp_path: Path) -> None:
    given = {**AXOLOTL, "num_epochs": 0.5, "sample_packing": True, "warmup_steps": 10, "val_set_size": 0.1}
    config = composed({**given, "eval_steps": 20, "gradient_accumulation_steps": 4}, tmp_path)
    assert config["trainer"]["max_epochs"] == 1
    assert config["trainer"]["limit_train_batches"] == 0.5
    assert config["trainer"]["val_check_interval"] == 80  # micro-batches, as Lightning counts
    assert "packing" not in config["data"]["init_args"]
    assert config["model"]["init_args"]["lr_scheduler"]["init_args"] == {"warmup": 10}


def test_epochs_that_are_not_whole_have_as_many_steps(tmp_path: Path) -> None:
    trainer = composed({**AXOLOTL, "num_epochs": 2.5}, tmp_path)["trainer"]
    assert trainer["max_epochs"] * trainer["limit_train_batches"] == pytest.approx(2.5)
    kind, reason = outcome("num_epochs", {**AXOLOTL, "num_epochs": 2.5}, tmp_path)
    assert (kind, reason.partition(",")[0]) == ("check", "2.5: 3 epochs of 83% of the rows each")
    assert outcome("num_epochs", {**AXOLOTL, "num_epochs": 2.5, "max_steps": 9}, tmp_path)[0] == "carried"


def test_a_share_of_the_run_is_one_of_its_steps(tmp_path: Path) -> None:
    given = {**TRL, "max_steps": 25, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.5}
    trainer = composed({**given, "gradient_accumulation_steps": 4}, tmp_path, "sft.yaml")["trainer"]
    assert trainer["val_check_interval"] == 3 * 4  # a tenth of 25 steps, rounded up, in micro-batches
    assert trainer["callbacks"][0]["init_args"]["every_n_train_steps"] == 13
    assert outcome("save_steps", {**TRL, "save_steps": 0.5}, tmp_path)[0] == "check"  # of a length that nobody says


def test_no_steps_of_warmup_are_none_in_axolotl_and_unset_in_transformers(tmp_path: Path) -> None:
    def warmup(given: dict[str, Any]) -> Any:
        return composed(given, tmp_path, "sft.yaml")["model"]["init_args"]["lr_scheduler"]["init_args"]["warmup"]

    assert warmup(AXOLOTL) == 0.03  # axolotl's default
    assert warmup({**AXOLOTL, "warmup_steps": 0}) == 0
    assert warmup({**AXOLOTL, "warmup_steps": 0, "warmup_ratio": 0.1}) == 0
    assert warmup({**TRL, "warmup_steps": 0, "warmup_ratio": 0.1}) == 0.1


def test_what_is_off_there_is_off_here(tmp_path: Path) -> None:
    given = {**AXOLOTL, "val_set_size": 0.1, "eval_strategy": "no"}
    assert composed(given, tmp_path)["trainer"]["limit_val_batches"] == 0
    given = {**AXOLOTL, "val_set_size": 0.0, "test_datasets": [{"path": "t.jsonl"}]}
    assert "limit_val_batches" not in composed(given, tmp_path)["trainer"]  # other rows are validated on
    llama_factory = {"model_name_or_path": "m", "dataset": "d", "val_size": 0.1, "eval_strategy": "no"}
    assert composed(llama_factory, tmp_path)["trainer"]["limit_val_batches"] == 0
    for off in ("", False, None):
        assert "strategy" not in composed({**AXOLOTL, "deepspeed": off}, tmp_path)["trainer"]


# --- keys that are lost


def test_what_is_lost_is_named_with_the_reason(tmp_path: Path) -> None:
    given = {**AXOLOTL, "neftune_noise_alpha": 5, "lr_scheduler": "rex", "spelled_wrongly": 1, "tf32": True}
    assert outcome("neftune_noise_alpha", given, tmp_path)[0] == "not supported"
    assert outcome("spelled_wrongly", given, tmp_path) == ("unknown", "")
    assert outcome("tf32", given, tmp_path)[0] == "no effect"
    kind, reason = outcome("lr_scheduler", given, tmp_path)
    assert kind == "not supported"
    assert "half a cosine is in its place" in reason
    assert composed(given, tmp_path)["model"]["init_args"]["lr_scheduler"]["class_path"].endswith(".CosineWithWarmup")


def test_a_rate_that_is_missing_is_to_be_chosen(tmp_path: Path) -> None:
    given = {key: value for key, value in AXOLOTL.items() if key != "learning_rate"}
    assert outcome("learning_rate", given, tmp_path)[0] == "check"


def test_rows_that_are_never_cut_in_trl_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "dpo.yaml"
    path.write_text(yaml.safe_dump({**TRL, "max_length": None}))
    assert read_imported(path).notes == ["max_length: null cuts no row in TRL; here data.max_length is 1024: set it"]
    path.write_text(yaml.safe_dump(TRL))
    assert read_imported(path).notes == []


def test_names_of_roles_that_are_not_known_are_named(tmp_path: Path) -> None:
    def roles(**names: list[str]) -> dict[str, Any]:
        return {**AXOLOTL, "datasets": [{"path": "d.jsonl", "type": "chat_template", "roles": names}]}

    assert outcome("datasets.roles", roles(user=["human"], assistant=["gpt", "model"]), tmp_path)[0] == "no effect"
    kind, reason = outcome("datasets.roles", roles(user=["Kunde"], assistant=["gpt"]), tmp_path)
    assert (kind, reason.partition(":")[0]) == ("not supported", "Kunde")


def test_code_and_secrets_of_a_config_are_not_carried_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {**TRL, "trust_remote_code": True, "hub_token": "hf_" + "a1" * 12, "packing": True}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
    assert main(["import", str(tmp_path / "c.yaml"), "-o", str(tmp_path / "out.yaml")]) == 0
    printed = capsys.readouterr()
    written = (tmp_path / "out.yaml").read_text()
    assert "a1a1" not in printed.err + printed.out + written
    assert "trust_remote_code: true yourself" in " ".join(written.replace("#", "").split())
    assert "trust_remote_code" not in yaml.safe_load(written)["model"]["init_args"]["policy"]


# --- the command


def test_the_report_is_on_stderr_and_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "dpo.yaml"
    assert main(["import", str(CONFIGS / "axolotl_dpo.yaml"), "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "axolotl, dpo: 34 of 42 keys carried over" in printed.err
    assert "a step: 1 x 16 = 16 pairs on each device" in printed.err
    assert "# axolotl, dpo: 34 of 42 keys carried over" in out.read_text()
    assert main(["import", str(CONFIGS / "axolotl_dpo.yaml"), "-o", str(out)]) == 2
    assert "exists already, and is not overwritten" in capsys.readouterr().err


WRONG: dict[str, tuple[Any, str]] = {
    "neither": ({"name": "ci", "on": "push"}, "no config of axolotl, LLaMA-Factory, TRL or alignment-handbook"),
    "ours": ({"model": {}, "data": {}}, "this looks like a config of lion already; run it with `lion fit -c"),
    "a list": ([1, 2], "a config is a mapping"),
    "another trainer": ({**AXOLOTL, "rl": "grpo"}, "rl is 'grpo'; of axolotl's trainers SFT, dpo"),
    "no trainer": (TRL, "does not say what is trained; add --stage sft|dpo|kto|reward"),
    "no number": ({**AXOLOTL, "learning_rate": "fast"}, "learning_rate is 'fast', not a number"),
    "a huge number": ({**AXOLOTL, "micro_batch_size": 10**400}, "micro_batch_size is 1000000"),
    "no data": ({"base_model": "m", "learning_rate": 1}, "there are no data sets"),
    "datasets that are none": ({**AXOLOTL, "datasets": "d"}, "datasets is not a list of mappings"),
    "a list for a word": ({**AXOLOTL, "rl": ["dpo"]}, "rl is ['dpo']; of axolotl's trainers"),
    "another stage": ({"model_name_or_path": "m", "dataset": "d", "stage": ["sft"]}, "stage is ['sft']; of"),
    "a key within": ({**AXOLOTL, "datasets": [{"path": "d", "split": 3}]}, "c.yaml: datasets.split is 3, not a text"),
    "no share": ({**AXOLOTL, "warmup_ratio": 5}, "warmup_ratio is 5; give at most 1"),
    "a number for a list": ({**AXOLOTL, "rl": "dpo", "dpo_loss_weights": 3}, "dpo_loss_weights is 3, not a list of"),
    "a negative size": ({**AXOLOTL, "micro_batch_size": 0}, "micro_batch_size is 0; give at least 1"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line(
    given: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps(given))  # JSON is read too
    assert main(["import", str(tmp_path / "c.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path / "c.yaml") in error
    assert len(error.splitlines()) == 1
