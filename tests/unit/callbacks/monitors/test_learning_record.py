"""Losses of documents over a training: each compared with the model alone, and the same file after a kill."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from lion_lightning import (
    InfillDataModule,
    PolicySpec,
    PreferenceDataModule,
    SFTDataModule,
    SFTModule,
    Source,
    TokenizerSpec,
)
from lion_lightning.callbacks import LearningRecord
from lion_lightning.data.formats.sft import recognize
from lion_lightning.data.infill import FillInMiddle
from lion_lightning.data.learning import LatestLearnt
from lion_lightning.data.learning.record import RecordedLosses
from lion_lightning.data.packing.collate import collate
from lion_lightning.data.store.digests import content_digest
from lion_lightning.models.lora import LoRASpec
from tests import tiny
from tests.marks import exhaustive
from tests.unit.data.letters import byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(8)]
LONG = {"text": "a text that is longer than a row of so many tokens, and so is split"}


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved after it."""


class Kill(Callback):
    """Kills the run before this batch, counted over epochs of four."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if 4 * trainer.current_epoch + batch_idx == self.batch:
            raise KilledError


class Runs:
    """Makes equal runs of two epochs of four steps, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        byte_tokenizer().save_pretrained(folder / "tokenizer")
        self.tokenizer = TokenizerSpec(str(folder / "tokenizer"))

    def source(self, name: str, *rows: dict[str, Any], **options: Any) -> Source:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Source(str(path), name=name, **options)

    def data(self, *sources: Source, **options: Any) -> SFTDataModule:
        given: dict[str, Any] = {"max_length": 32, "batch_size": 2, "cache_dir": self.folder / "cache"} | options
        return SFTDataModule([*sources] or [self.source("sums", *ROWS)], self.tokenizer, **given)

    def module(self, lora: LoRASpec | None = None, seed: int = 0) -> SFTModule:
        torch.manual_seed(seed)
        spec = PolicySpec(config=tiny.shallow(vocab_size=258, max_position_embeddings=128), lora=lora)
        return SFTModule(spec, tokenizer=self.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2))

    def fit(self, name: str, data: Any = None, *callbacks: Callback, module: Any = None, **options: Any) -> Trainer:
        module = module or self.module()
        settings = {"max_epochs": 2, "default_root_dir": self.folder / name, "enable_checkpointing": True}
        path = options.pop("ckpt_path", None)
        saver = ModelCheckpoint(self.folder / name, save_last=True, every_n_train_steps=1)
        trainer = tiny.trainer(callbacks=[LearningRecord(), saver, *callbacks], **(settings | options))
        with suppress(KilledError):
            trainer.fit(module, datamodule=data or self.data(), ckpt_path=path)
        return trainer

    def file(self, name: str) -> Path:
        return self.folder / name / "learning.arrow"


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def alone(module: Any, data: SFTDataModule) -> dict[int, float]:
    """NLL of each example by its number: of each of its documents alone, from whole logits of the plain model."""
    found: dict[int, float] = {}
    documents = data.train_mixture.documents.once()  # type: ignore[union-attr]
    for position in range(len(documents)):
        batch = collate([documents[position]], 48)
        with torch.no_grad():
            nll = -tiny.alone(module.policy_model.causal_lm, batch).double().sum()
        found[documents[position].index] = found.get(documents[position].index, 0.0) + float(nll)
    return found


def test_losses_are_those_of_each_document_alone_before_and_after(runs: Runs) -> None:
    """With a duplicate, a split document, a source that is repeated, and an example without any target."""
    answer = {"role": "assistant", "content": "x", "weight": 0}
    untrained = {"messages": [{"role": "user", "content": "no answer"}, answer]}
    sources = [runs.source("a", *ROWS[:4], ROWS[1], LONG, untrained), runs.source("b", *ROWS[2:6], fraction=2.5)]
    data, start = runs.data(*sources, overlong="split", max_length=48), runs.module()
    start.configure_model()
    trainer = runs.fit("run", data)
    assert len(data.train_mixture.documents) == 4 + 2 + 5  # type: ignore[union-attr]
    losses = RecordedLosses.read(runs.file("run"))
    rows = ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "a.jsonl:4", "a.jsonl:6", "b.jsonl:3", "b.jsonl:4", "a.jsonl:7"]
    assert [Path(place).name for place in losses.places] == rows
    wanted: list[Any] = [*ROWS[:4], LONG, *ROWS[4:6], untrained]
    assert losses.digests.tobytes() == b"".join(content_digest(recognize(row)) for row in wanted)
    # a digit or two and the end of the turn; of a text all bytes but each part's first
    assert losses.targets.tolist() == [2, 2, 2, 2, len(LONG["text"]) + 1 - 2, 2, 3, 0]
    for moment, module in ((0, start), (2, trainer.lightning_module)):
        expected = [*alone(module, data).values(), 0.0]
        np.testing.assert_allclose(losses.nll[moment], expected, atol=1e-5)
    steps = len(data.loader(data.train_mixture, shuffle=True))  # type: ignore[arg-type]
    assert losses.moments == ((0, 0.0), (steps, 1.0), (2 * steps, 1.0))


def test_training_is_the_same_with_it_as_without(runs: Runs) -> None:
    lora = LoRASpec(dropout=0.1)
    watched = runs.fit("watched", module=runs.module(lora)).lightning_module.state_dict()
    plain = tiny.trainer(max_epochs=2)
    plain.fit(runs.module(lora), datamodule=runs.data())
    assert all(torch.equal(value, watched[name]) for name, value in plain.lightning_module.state_dict().items())


@pytest.mark.parametrize("kill", [*exhaustive(2, 4), 6])  # within the first epoch, behind its end, within the second
def test_a_killed_run_ends_with_the_same_file(kill: int, runs: Runs) -> None:
    runs.fit("whole", runs.data())
    runs.fit("killed", runs.data(), Kill(kill))
    assert RecordedLosses.read(runs.file("killed")).epochs == kill // 4
    runs.fit("killed", runs.data(), ckpt_path="last")
    assert RecordedLosses.read(runs.file("whole")).epochs == 2
    assert runs.file("killed").read_bytes() == runs.file("whole").read_bytes()


@pytest.mark.slow
def test_a_finished_run_goes_on_from_any_of_its_checkpoints(runs: Runs) -> None:
    runs.fit("longer", max_epochs=3)
    runs.fit("run")
    runs.fit("run", ckpt_path="last")  # nothing is left to do
    runs.fit("run", max_epochs=3, ckpt_path="last")
    assert runs.file("run").read_bytes() == runs.file("longer").read_bytes()


def test_an_epoch_that_was_cut_short_and_goes_on_is_recorded_at_its_end(runs: Runs) -> None:
    cut = runs.data()
    with pytest.warns(UserWarning, match=r"epoch 2 ended after 50% of its batches, .* max_epochs"):
        runs.fit("run", cut, max_steps=6)
    assert RecordedLosses.read(runs.file("run")).moments[-1] == (6, 0.5)
    runs.fit("run", runs.data(), ckpt_path="last")
    assert RecordedLosses.read(runs.file("run")).moments[1:] == ((4, 1.0), (8, 1.0))


def test_limits_leave_no_document_out(runs: Runs) -> None:
    with pytest.warns(UserWarning, match=r"epoch 1 ended after 25% of its batches"):
        runs.fit("run", runs.data(), limit_train_batches=1)
    losses = RecordedLosses.read(runs.file("run"))
    assert (losses.nll > 0).all()
    assert len(losses.places) == len(ROWS)


def test_a_run_that_was_begun_without_it_is_refused(runs: Runs) -> None:
    saver = ModelCheckpoint(runs.folder, save_last=True)
    begun = tiny.trainer(max_epochs=1, enable_checkpointing=True, callbacks=[saver])
    begun.fit(runs.module(), datamodule=runs.data())
    with pytest.raises(MisconfigurationException, match="a part of the run was trained without it"):
        runs.fit("run", ckpt_path=runs.folder / "last.ckpt")
    assert not runs.file("run").exists()


def test_a_resumed_run_wants_its_own_file_and_data(runs: Runs) -> None:
    runs.fit("other", module=runs.module(seed=1), max_epochs=1)
    runs.fit("run", max_epochs=1)
    again = partial(runs.fit, "run", ckpt_path="last")
    more = runs.data(runs.source("more", *ROWS, LONG))
    with pytest.raises(MisconfigurationException, match=r"learning\.arrow is of other training data than there is now"):
        again(more)
    own = runs.file("run").read_bytes()
    runs.file("other").rename(runs.file("run"))
    with pytest.raises(MisconfigurationException, match=r"is not of the run that is resumed"):
        again(runs.data())
    runs.file("run").unlink()
    with pytest.raises(MisconfigurationException, match=r"learning\.arrow: there is no learning record"):
        again(runs.data())
    runs.file("run").write_bytes(own)
    again(runs.data())
    assert RecordedLosses.read(runs.file("run")).epochs == 2


def test_data_that_has_no_documents_to_record_is_refused(runs: Runs) -> None:
    stream = runs.data(runs.source("a", *ROWS, streaming=True))
    with pytest.raises(MisconfigurationException, match=r"sources stream, and the losses of all documents are taken"):
        runs.fit("run", stream, max_steps=2)
    pairs = runs.source("pairs", {"prompt": "a", "chosen": "yes", "rejected": "no"})
    trees = PreferenceDataModule([pairs], runs.tokenizer, max_length=64, cache_dir=runs.folder / "cache")
    with pytest.raises(
        MisconfigurationException, match=r"PreferenceDataModule gives no documents, .* use SFTDataModule"
    ):
        runs.fit("run", trees)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([*FillInMiddle().tokens], special_tokens=True)
    infills = InfillDataModule([runs.source("text", LONG)], tokenizer, FillInMiddle(), max_length=128)
    with pytest.raises(MisconfigurationException, match=r"InfillDataModule gives other documents in each epoch"):
        runs.fit("run", infills)
    with pytest.raises(MisconfigurationException, match=r"BoringModel is not an AlignmentModule"):
        runs.fit("run", module=BoringModel())
    loader = tiny.trainer(callbacks=[LearningRecord()], max_epochs=1, default_root_dir=runs.folder)
    with pytest.raises(MisconfigurationException, match=r"NoneType gives no documents"):
        loader.fit(runs.module(), tiny.Rows([tiny.row()]))


def test_the_record_that_the_data_is_chosen_by_is_not_written_over(runs: Runs) -> None:
    runs.fit("run")
    before = runs.file("run").read_bytes()
    with pytest.raises(MisconfigurationException, match=r"learning\.arrow would be written over, .* default_root_dir"):
        runs.fit("run", runs.data(document_filters=[LatestLearnt(str(runs.file("run")), 0.5)]))
    assert runs.file("run").read_bytes() == before
    chosen = runs.data(document_filters=[LatestLearnt(str(runs.file("run")), 0.5)])
    runs.fit("next", chosen, max_epochs=1)
    assert len(RecordedLosses.read(runs.file("next")).places) == 4


def test_a_fast_dev_run_records_nothing(runs: Runs) -> None:
    runs.fit("run", fast_dev_run=2)
    assert not runs.file("run").exists()


def test_one_object_records_one_run_after_the_other(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    record = LearningRecord()
    for name in ("a", "b"):
        with caplog.at_level(logging.INFO):
            trainer = tiny.trainer(callbacks=[record], max_epochs=1, default_root_dir=runs.folder / name)
            trainer.fit(runs.module(), datamodule=runs.data())
    assert runs.file("a").read_bytes() == runs.file("b").read_bytes()
    path = runs.file("b")
    said = f"losses of 8 documents before training and after 1 epochs are in {path}; `python -m lion_lightning.data."
    assert said in caplog.text


def test_odd_states_of_checkpoints_are_refused() -> None:
    with pytest.raises(ValueError, match=r"state of LearningRecord is odd \(content: 3\)"):
        LearningRecord().load_state_dict({"content": 3})
