"""Infilling trained from end to end: killed and resumed, through `lion fit`, and its demonstration."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from examples.codegen2 import copy_task
from lion_lightning import InfillDataModule, PolicySpec, SFTModule, Source
from lion_lightning.cli import main
from lion_lightning.data.infill import SpanInfill
from lion_lightning.models.lora import LoRASpec
from tests import tiny
from tests.marks import slow

pytestmark = pytest.mark.filterwarnings("ignore")


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved after it."""


class Record(Callback):
    """Keeps the tokens of each batch, and kills the run before the batch of this number."""

    def __init__(self, kill: int | None = None) -> None:
        self.kill, self.tokens = kill, list[list[int]]()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.kill:
            raise KilledError
        self.tokens.append(batch.input_ids.tolist())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Texts of the words of the tiny tokenizer."""
    rng, path = np.random.default_rng(0), tmp_path / "texts.jsonl"
    rows = [" ".join(f"w{word}" for word in rng.integers(3, tiny.VOCABULARY, 10)) for _ in range(24)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def fit(texts: Path, folder: Path, record: Record, lora: LoRASpec | None = None, workers: int = 0) -> Trainer:
    """Three epochs of six steps, from the folder's last checkpoint if there is one."""
    torch.manual_seed(0)
    tokenizer = {"path": str(tiny.tokenizer_folder(folder / "tokenizer")), "special_tokens": [*SpanInfill(2).tokens]}
    module = SFTModule(
        PolicySpec(config=tiny.config(num_hidden_layers=1), lora=lora),
        tokenizer=tokenizer,
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
    )
    data = InfillDataModule(
        [Source(str(texts))],
        module.tokenizer_spec,
        SpanInfill(2),
        max_length=64,
        batch_size=2,
        num_workers=workers,
        cache_dir=folder / "cache",
    )
    saving = ModelCheckpoint(folder / "saved", save_last=True, every_n_train_steps=1)
    trainer = tiny.trainer(callbacks=[saving, record], max_epochs=3, enable_checkpointing=True)
    try:
        trainer.fit(module, data, ckpt_path="last")
    except KilledError:
        assert record.kill is not None
    return trainer


@pytest.mark.parametrize("lora", [None, *slow(LoRASpec(r=2))])
def test_a_run_killed_within_an_epoch_goes_on_with_the_same_infills(
    texts: Path, tmp_path: Path, lora: LoRASpec | None
) -> None:
    uninterrupted, begun, resumed = Record(), Record(kill=7), Record()
    whole = fit(texts, tmp_path / "whole", uninterrupted, lora)
    steps = whole.global_step
    assert len({str(tokens) for tokens in uninterrupted.tokens}) == steps > 9  # other infills in each epoch
    fit(texts, tmp_path / "killed", begun, lora)
    ended = fit(texts, tmp_path / "killed", resumed, lora, workers=1)
    assert begun.tokens + resumed.tokens == uninterrupted.tokens
    mine, other = (dict(trainer.lightning_module.state_dict()) for trainer in (ended, whole))
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


CONFIG = """
model:
  class_path: lion_lightning.SFTModule
  init_args:
    policy: {{config: {model}}}
    tokenizer: {{path: {folder}, special_tokens: [<sep>, <eom>, <mask_1>]}}
data:
  class_path: lion_lightning.InfillDataModule
  init_args:
    sources: [{{path: {texts}}}]
    cache_dir: {folder}/cache
    max_length: 64
    share: {share}
    corruption:
      class_path: lion_lightning.data.infill.PrefixLM
      init_args:
        infill: {{class_path: lion_lightning.data.infill.SpanInfill, init_args: {{spans: 1}}}}
trainer: {{max_steps: 2, accelerator: cpu, logger: false, default_root_dir: {folder}}}
"""


def config(texts: Path, folder: Path, share: float = 1.0) -> str:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(tiny.config(num_hidden_layers=1)))
    tiny.tokenizer_folder(folder)
    path = folder / "infill.yaml"
    path.write_text(CONFIG.format(model=model, folder=folder, texts=texts, share=share))
    return str(path)


@pytest.mark.slow
def test_a_config_names_corruptions_by_class_path(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(texts, tmp_path)
    assert main(["fit", "-c", path, "--trainer.callbacks+=lion_lightning.callbacks.StartupSummary"]) == 0
    assert main(["inspect", "-c", path, "--rows", "1"]) == 0
    said = capsys.readouterr()
    assert "infills by PrefixLM: 100% of the documents" in said.out + said.err
    (prefix,) = [line for line in said.out.splitlines() if line.endswith("<|im_end|> <sep>")]
    assert prefix.count("<mask_1>") == 1
    _, answer = said.out.split("--- behind the prefix, ")
    assert "[[<mask_1>" in answer
    assert "<eom>]]" in answer


@pytest.mark.slow
def test_a_wrong_setting_is_one_line(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", config(texts, tmp_path, share=2.0)]) == 2
    assert "data.share is 2.0; give a share of the documents from 0 to 1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demonstration_in_little(capsys: pytest.CaptureFixture[str]) -> None:
    made = copy_task.main(["--steps", "12", "--files", "256", "--holes", "8", "--forms", "psm+spm", "prefix"])
    assert [*made] == ["psm+spm PSM", "psm+spm SPM", "prefix span"]
    assert all(nats < math.log(16) + 0.2 for _, nats in made.values())  # no worse than a guess
    assert capsys.readouterr().out.count("\n") == 4


@pytest.mark.parametrize(("name", "stop"), [("spans", "<eom>"), ("psm+spm", "<|endoftext|>")])
def test_the_demonstration_counts_exact_infills(name: str, stop: str) -> None:
    files, tokenizer = ["abcdefabcdef", "ghijklghijkl", "mnopabmnopab"], copy_task.make_tokenizer()
    answers = [hole + stop for _, hole, _ in copy_task.holes(files)]
    answers[1] = answers[1][:2] + "a"  # goes on

    def generate(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        assert options["eos_token_id"] == tokenizer.convert_tokens_to_ids(stop)
        return torch.cat([input_ids, torch.tensor([tokenizer.encode(answer) for answer in answers])], dim=1)

    model: Any = SimpleNamespace(policy_model=SimpleNamespace(causal_lm=SimpleNamespace(generate=generate)))
    form = copy_task.FORMS[name]
    assert [copy_task.exact_infills(model, form, prompt, files) for prompt in form.prompts.values()] in ([2], [2, 2])


def test_holes_of_the_demonstration() -> None:
    file = "abcdefabcdef"
    (hole,) = copy_task.holes([file])
    assert hole in [(file[:start], file[start : start + 2], file[start + 2 :]) for start in range(5)]
