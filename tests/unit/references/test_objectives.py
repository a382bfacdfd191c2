"""One cache for every objective: the data of pairs, groups and single answers, from one set, have the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lion_lightning import DPOModule, GroupModule, KTOModule, PolicySpec, TokenizerSpec
from lion_lightning.data.formats.pairing import AllPairs
from lion_lightning.data.groups import GroupDataModule
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.data.unpaired import UnpairedDataModule
from lion_lightning.references.store import answer_keys
from lion_lightning.types import PackedBatch
from tests.tiny import shallow, tokenizer_folder, trainer
from tests.unit.data.letters import byte_tokenizer

ANSWERS = ("w20", "w21 w22", "w23", "w24 w25 w26")
KINDS: dict[str, Callable[..., Any]] = {
    "pairs": PreferenceDataModule,
    "groups": GroupDataModule,
    "labels": lambda *arguments, **options: UnpairedDataModule(*arguments, mismatched=False, **options),
    "labels and mismatched answers": UnpairedDataModule,
}


class Forwards(Callback):
    """Tokens of each forward of the policy before training."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        configure = pl_module.configure_model

        def configure_model() -> None:
            configure()
            pl_module.policy_model.register_forward_pre_hook(lambda _, rows: self.note(trainer, rows[0]))

        pl_module.configure_model = configure_model

    def note(self, trainer: Trainer, batch: PackedBatch) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.total.ready:
            self.tokens.append(len(batch.input_ids))


def test_stages_of_pairs_answers_and_groups_score_an_answer_once(ranked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LION_CACHE", str(ranked / "cache"))
    tokenizer = TokenizerSpec(str(tokenizer_folder(ranked / "tokenizer")))
    tokens = {}
    stages = {"pairs": (DPOModule, "pairs"), "labels and mismatched answers": (KTOModule, "pairs")}
    for kind, (make, file) in (stages | {"groups": (GroupModule, "ranked")}).items():
        torch.manual_seed(0)
        data = KINDS[kind]([Source(str(ranked / f"{file}.jsonl"))], tokenizer, max_length=64, row_length=64)
        module: Any = make(PolicySpec(config=shallow()), tokenizer=tokenizer)
        counted = Forwards()
        trainer(max_steps=2, callbacks=[counted]).fit(module, datamodule=data)
        tokens[kind] = counted.tokens
    assert sum(tokens["pairs"]) > 0
    assert 0 < sum(tokens["labels and mismatched answers"]) < sum(tokens["pairs"])
    assert tokens["groups"] == []


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    """Five prompts with four ranked answers each, and all of their pairs as rows of their own."""
    ranked, pairs = [], []
    for number in range(5):
        answers = [f"{answer} w3{number}" for answer in ANSWERS]
        ranked.append({"question": f"w10 w1{number}", "answers": answers, "scores": [4, 3, 2, 1]})
        for place, chosen in enumerate(answers):
            for rejected in answers[place + 1 :]:
                pairs.append({"question": f"w10 w1{number}", "chosen": chosen, "rejected": rejected})
    for name, rows in (("ranked", ranked), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def keys(folder: Path, kind: str, file: str, **options: Any) -> set[bytes]:
    settings: dict[str, Any] = {"max_length": 64, "cache_dir": folder / "cache"} | options
    if kind == "pairs":
        settings["pairing"] = AllPairs()
    data = KINDS[kind]([Source(str(folder / f"{file}.jsonl"))], byte_tokenizer(), **settings)
    data.prepare_data()
    data.setup()
    return {key.tobytes() for batch in data.train_dataloader() for key in answer_keys(batch)}


def test_every_kind_of_data_asks_for_the_same_answers(ranked: Path) -> None:
    expected = keys(ranked, "pairs", "ranked")
    assert len(expected) == 5 * len(ANSWERS)
    assert keys(ranked, "pairs", "pairs") == expected
    assert keys(ranked, "groups", "ranked") == expected
    assert keys(ranked, "labels", "pairs") == expected
    mismatched = keys(ranked, "labels and mismatched answers", "pairs")
    assert expected < mismatched
    assert len(mismatched) == len(expected) + 5  # a tree, that is a prompt, gets one more answer


def test_trees_that_are_cut_ask_for_the_same_answers(ranked: Path) -> None:
    # 74 tokens: three trees of 3, 2 and 3 of the four answers
    assert keys(ranked, "pairs", "ranked", row_length=64) == keys(ranked, "pairs", "ranked")
