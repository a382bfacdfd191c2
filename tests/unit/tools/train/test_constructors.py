"""Constructors that pass ``**kwargs`` on: inherited options have types, docs and checks like all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lion_lightning import (
    AlignmentModule,
    DPOModule,
    NoReference,
    OnlineDPOModule,
    PolicySpec,
    SFTDataModule,
    SFTModule,
    Source,
    TokenizerSpec,
    losses,
)
from lion_lightning.cli import main
from tests import tiny

INHERITED: dict[str, tuple[str, list[str]]] = {
    "lion_lightning.SFTModule": ("model", ["reduction", "tokenizer", "optimizer", "lr_scheduler"]),
    "lion_lightning.DPOModule": ("model", ["reference", "tokenizer", "optimizer", "lr_scheduler"]),
    "lion_lightning.OnlineDPOModule": ("model", ["kl_batches", "loss", "reference", "tokenizer", "optimizer"]),
    "lion_lightning.KTOModule": ("model", ["loss", "reference", "tokenizer", "optimizer", "lr_scheduler"]),
    "lion_lightning.GroupModule": ("model", ["loss", "reference", "tokenizer", "optimizer", "lr_scheduler"]),
    "lion_lightning.RewardModule": ("model", ["margin_per_score", "center_rewards_coefficient", "tokenizer"]),
    "lion_lightning.OnlineGroupModule": ("model", ["kl_batches", "loss", "reference", "tokenizer", "optimizer"]),
    "lion_lightning.SFTDataModule": ("data", ["mask", "validation_share", "packing", "batch_size", "cache_dir"]),
    "lion_lightning.InfillDataModule": ("data", ["corruption", "share", "overlong", "validation_share", "packing"]),
    "lion_lightning.PreferenceDataModule": ("data", ["pairing", "validation_share", "batch_size", "num_workers"]),
    "lion_lightning.UnpairedDataModule": ("data", ["mismatched", "max_length", "keep", "row_length", "batch_size"]),
    "lion_lightning.GroupDataModule": ("data", ["keep_equal", "max_length", "max_prompt_length", "packing"]),
    "lion_lightning.OnPolicyDataModule": ("data", ["pairing", "min_margin", "keep", "validation_share", "seed"]),
    "lion_lightning.OnPolicyGroupDataModule": ("data", ["keep_equal", "keep", "row_length", "seed"]),
    "lion_lightning.experimental.meta_sft.MetaSFTModule": ("model", ["loss", "reduction", "tokenizer", "optimizer"]),
}
SET_BY_SUBCLASSES = {"filters", "validation_filters", "make_filters", "make_validation_filters"}


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", INHERITED)
def test_help_has_inherited_options_with_their_docs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    section, options = INHERITED[name]
    text = shown(["fit", f"--{section}.help", name], capsys)
    entries = {entry.split()[0]: " ".join(entry.split()) for entry in text.split(f"\n  --{section}.")[1:]}
    for option in options:
        assert "(type: " in entries[option]
        assert len(entries[option].partition("(type: ")[0].split()) > 4, f"no docs: {entries[option]}"
    assert not {*SET_BY_SUBCLASSES, "kwargs"} & {*entries}


BASE = {"policy", "tokenizer", "optimizer", "lr_scheduler", "router_aux_loss_coef"}
OPTIONS = {"kl_batches", "loss", "reference", *BASE}
"""Of ``OnlineDPOModule`` and the classes that it derives from."""


def test_print_config_has_the_options_of_all_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config: dict[str, Any] = {
        "model": {"class_path": "lion_lightning.OnlineDPOModule", "init_args": {"policy": "p", "kl_batches": 3}},
        "data": {"class_path": "lion_lightning.OnPolicyDataModule", "init_args": {"prompts": [{"path": "a.jsonl"}]}},
    }
    config["model"]["init_args"]["lr_scheduler"] = {
        "class_path": "lion_lightning.modules.LinearWithWarmup",
        "init_args": {"warmup": 0.1},
    }
    config["data"]["init_args"]["max_length"] = 77
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    found = yaml.safe_load(shown(["fit", "-c", str(tmp_path / "c.yaml"), "--print_config"], capsys))
    model, data = found["model"]["init_args"], found["data"]["init_args"]
    assert (model["kl_batches"], model["lr_scheduler"]["init_args"]["warmup"]) == (3, 0.1)
    assert {*model} == OPTIONS
    assert (data["max_length"], data["batch_size"]) == (77, 1)
    assert not SET_BY_SUBCLASSES & {*data}


@pytest.mark.parametrize(
    ("section", "name", "typo", "option"),
    [
        ("model", "lion_lightning.OnlineDPOModule", "referense", "reference"),
        ("model", "lion_lightning.SFTModule", "optimiser", "optimizer"),
        ("data", "lion_lightning.SFTDataModule", "batch_szie", "batch_size"),
        ("data", "lion_lightning.OnPolicyDataModule", "pairng", "pairing"),
        ("data", "lion_lightning.OnPolicyGroupDataModule", "keep_equals", "keep_equal"),
        ("data", "lion_lightning.UnpairedDataModule", "mismatch", "mismatched"),
    ],
)
def test_a_typo_in_an_inherited_option_is_rejected(
    section: str, name: str, typo: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config: dict[str, Any] = {
        "model": {"class_path": "lion_lightning.SFTModule", "init_args": {"policy": "p"}},
        "data": {"class_path": "lion_lightning.SFTDataModule", "init_args": {"sources": [{"path": "a.jsonl"}]}},
    }
    config[section]["class_path"] = name
    config[section]["init_args"][typo] = 1
    if "OnPolicy" in name:
        config[section]["init_args"]["prompts"] = [{"path": "a.jsonl"}]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", str(tmp_path / "c.yaml")]) == 2
    wanted = f"{section}: {name.rpartition('.')[2]} has no setting {typo!r}; did you mean {option!r}?"
    assert wanted in capsys.readouterr().err


def test_arguments_of_all_levels_are_hyperparameters() -> None:
    given: dict[str, Any] = {"kl_batches": 2, "loss": losses.SimPOLoss(), "tokenizer": TokenizerSpec("none")}
    module = OnlineDPOModule(PolicySpec(config=tiny.config()), **given)
    assert {*module.hparams} == OPTIONS
    assert module.hparams["kl_batches"] == 2


DOCUMENTS, PAIRS = [tiny.row()], [tiny.pairs((4, 5, 6))]


@pytest.mark.parametrize(
    ("kind", "options", "given", "batches"),
    [
        (SFTModule, {"reduction": "sum"}, {}, DOCUMENTS),
        (DPOModule, {}, {"loss": losses.SimPOLoss(), "reference": NoReference()}, PAIRS),
    ],
)
def test_a_checkpoint_brings_the_arguments_of_all_levels(
    kind: type[AlignmentModule], options: dict[str, Any], given: dict[str, Any], batches: list[Any], tmp_path: Path
) -> None:
    tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(tmp_path / "tokenizer")))
    module = kind(PolicySpec(config=tiny.shallow()), tokenizer=tokenizer, **options, **given)
    trainer = tiny.trainer(max_steps=1, default_root_dir=tmp_path)
    trainer.fit(module, tiny.Rows(batches))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "c.ckpt", **given)
    assert loaded.tokenizer_spec == tokenizer
    assert {*loaded.hparams} == {*module.hparams}
    assert all(getattr(loaded, name) == value for name, value in options.items())
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), loaded.parameters(), strict=True))


def test_data_modules_take_sources_and_tokenizer_by_position() -> None:
    data = SFTDataModule([Source("a.jsonl")], TokenizerSpec("none"), max_length=9, batch_size=3, seed=4)
    assert (data.row_length, data.batch_size, data.seed) == (9, 3, 4)
