"""From preference files to packed batches of pairs, in plain Python, under a Trainer and from YAML."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lion_lightning.data.formats.pairing import AllPairs
from lion_lightning.data.packing.best_fit import Unpacked, Wrapped
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.types import PackedBatch
from tests.unit.data.letters import byte_tokenizer

Row = dict[str, Any]
Write = Callable[..., Source]
Module = Callable[..., PreferenceDataModule]
FIXED = len("<user\n>\n<assistant\n") + 2 * len(">\n")
"""Tokens of a pair besides the texts: ChatML markers are single tokens, all else is bytes."""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, rows: Iterable[Row], **options: Any) -> Source:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Source(str(path), name=name, **options)

    return write


@pytest.fixture
def module(tmp_path: Path) -> Module:
    def module(sources: list[Source], **options: Any) -> PreferenceDataModule:
        settings: Row = {"max_length": 64, "cache_dir": tmp_path / "cache"} | options
        return PreferenceDataModule(sources, byte_tokenizer(), **settings)

    return module


def sums(count: int, start: int = 0) -> list[Row]:
    return [
        {"question": f"{n} + {n}?", "chosen": str(2 * n), "rejected": f"{n} or so"} for n in range(start, start + count)
    ]


def ready(data: PreferenceDataModule) -> PreferenceDataModule:
    data.prepare_data()
    data.setup()
    return data


def batches(loader: Any) -> list[PackedBatch]:
    return list(cast(Iterable[PackedBatch], loader))


def pairs(loader: Any) -> list[tuple[str, str, str]]:
    """Prompt, and what is trained of chosen and rejected, of every pair of every batch."""
    tokenizer, found = byte_tokenizer(), []
    for batch in batches(loader):
        for pair in batch.pairs:
            chosen, rejected = (batch.answers[answer] for answer in pair)
            prompt = batch.segments[chosen].parent
            span = batch.segments[prompt]
            ids = [batch.input_ids[span.start : span.stop]]
            ids += [batch.targets[batch.target_segments == number] for number in (chosen, rejected)]
            assert not (batch.target_segments == prompt).any()
            found.append(tuple(str(tokenizer.decode(part.tolist())) for part in ids))
    return cast(list[tuple[str, str, str]], found)


def prompt(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_every_pair_is_trained_once_an_epoch_both_sides_masked_alike(write: Write, module: Module) -> None:
    data = ready(module([write("sums", sums(30))]))
    assert sorted(pairs(data.train_dataloader())) == sorted(
        (prompt(f"{n} + {n}?"), f"{2 * n}<|im_end|>", f"{n} or so<|im_end|>") for n in range(30)
    )
    assert data.val_dataloader() == []


def test_rows_hold_whole_pairs_and_twice_max_length_by_default(write: Write, module: Module) -> None:
    loaded = batches(ready(module([write("sums", sums(30))])).train_dataloader())
    assert all(len(batch.input_ids) <= batch.capacity == 128 for batch in loaded)
    assert all(len(batch.segments) % 3 == 0 for batch in loaded)
    assert any(len(batch.segments) > 3 for batch in loaded)
    positions = [int(batch.position_ids.max()) + 1 for batch in loaded]
    assert max(positions) <= 64


def test_positions_of_both_answers_go_on_from_the_prompt(write: Write, module: Module) -> None:
    (batch,) = batches(ready(module([write("sums", sums(1))], packing=Unpacked())).train_dataloader())
    before, chosen, rejected = batch.segments
    starts = [int(batch.position_ids[segment.start]) for segment in batch.segments]
    assert starts == [0, before.length, before.length]
    assert [chosen.parent, rejected.parent] == [0, 0]
    first = [int((batch.target_segments == number).int().argmax()) for number in (1, 2)]
    assert [int(batch.logit_positions[place]) for place in first] == [before.stop - 1] * 2


def test_a_row_may_be_longer_than_the_models_positions_a_sequence_may_not(write: Write, module: Module) -> None:
    source = write("sums", sums(5))
    trainer = cast(Trainer, SimpleNamespace(lightning_module=SimpleNamespace(max_positions=64)))
    fits, too_long = module([source], row_length=4096), module([source], max_length=65)
    fits.trainer = too_long.trainer = trainer
    assert len(batches(ready(fits).train_dataloader())) == 1
    with pytest.raises(ValueError, match=r"data\.max_length is 65, but the model has positions for 64 tokens"):
        too_long.prepare_data()


def test_a_pair_longer_than_a_row_is_refused_with_its_place_and_the_fix(write: Write, module: Module) -> None:
    source = write("sums", [*sums(3), {"question": "?", "chosen": "x" * 30, "rejected": "y"}])
    longest = FIXED + 1 + 30 + 1
    assert len(pairs(ready(module([source], row_length=longest)).train_dataloader())) == 4
    message = rf"sums\.jsonl:4: the prompt and its two answers have {longest} tokens.*set data\.row_length to {longest}"
    with pytest.raises(ValueError, match=message):
        ready(module([source], row_length=longest - 1))


def ranked(count: int) -> list[Row]:
    return [{"question": f"{n}?", "answers": ["good", "fair", "bad"], "scores": [2, 1, 0]} for n in range(count)]


def test_all_pairs_of_a_prompt_land_on_one_side(write: Write, module: Module) -> None:
    data = ready(module([write("ranked", ranked(60))], pairing=AllPairs(), validation_share=0.3))
    sides = [{pair[0] for pair in pairs(loader)} for loader in (data.train_dataloader(), data.val_dataloader())]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 60
    assert len(pairs(data.train_dataloader())) == 3 * len(sides[0])
    assert 6 < len(sides[1]) < 36


def test_the_default_pairing_is_best_against_worst(write: Write, module: Module) -> None:
    assert set(pairs(ready(module([write("ranked", ranked(2))])).train_dataloader())) == {
        (prompt(f"{n}?"), "good<|im_end|>", "bad<|im_end|>") for n in range(2)
    }


def test_another_pairing_is_another_store(write: Write, module: Module) -> None:
    source = write("ranked", ranked(4))
    assert len(pairs(ready(module([source])).train_dataloader())) == 4
    assert len(pairs(ready(module([source], pairing=AllPairs())).train_dataloader())) == 12


def test_a_prompt_of_a_validation_source_is_not_trained_on(write: Write, module: Module) -> None:
    held = [{"question": f"{n} + {n}?", "chosen": "other", "rejected": "answers"} for n in range(15, 25)]
    data = ready(module([write("sums", sums(20))], validation=[write("held", held)]))
    assert len(pairs(data.train_dataloader())) == 15
    assert len(pairs(data.val_dataloader())) == 10


def test_filters_are_for_training_alone_and_pairs_that_say_nothing_never_validate(write: Write, module: Module) -> None:
    scored: list[Row] = [
        {"question": "a", "chosen": "good", "rejected": "bad", "score_chosen": 5, "score_rejected": 1},
        {"question": "b", "chosen": "good", "rejected": "bad", "score_chosen": 2, "score_rejected": 1},
        {"question": "c", "chosen": "good", "rejected": "bad", "score_chosen": 1, "score_rejected": 1},
        {"question": "d", "chosen": "good" * 5, "rejected": "bad", "score_chosen": 5, "score_rejected": 1},
    ]
    train, held = write("train", scored), write("held", [{**row, "question": "v" + row["question"]} for row in scored])
    data = ready(module([train], validation=[held], min_margin=2.0, max_length_ratio=2.0))
    assert [pair[0] for pair in pairs(data.train_dataloader())] == [prompt("a")]
    assert {pair[0] for pair in pairs(data.val_dataloader())} == {prompt("va"), prompt("vb"), prompt("vd")}


def test_the_prompt_keeps_the_end_that_is_asked_for(write: Write, module: Module) -> None:
    source = write("long", [{"question": "abcdefghij" * 4, "chosen": "yes", "rejected": "no"}])
    sides: dict[str, str] = {}
    for keep in ("start", "end"):
        ((sides[keep], chosen, rejected),) = pairs(
            ready(module([source], max_prompt_length=20, keep=keep)).train_dataloader()
        )
        assert (chosen, rejected) == ("yes<|im_end|>", "no<|im_end|>")
    # 20 tokens each: a marker and 19 bytes, two markers and 18 bytes
    assert sides == {
        "start": "<|im_start|>user\nabcdefghijabcd",
        "end": "defghij<|im_end|>\n<|im_start|>assistant\n",
    }


def test_a_system_message_stands_before_both_answers(write: Write, module: Module) -> None:
    ((before, *_),) = pairs(ready(module([write("sums", sums(1), system="Short.")])).train_dataloader())
    assert before == "<|im_start|>system\nShort.<|im_end|>\n" + prompt("0 + 0?")


def test_training_is_shuffled_by_the_seed_and_validation_is_not(write: Write, module: Module) -> None:
    source = write("sums", sums(40))
    orders = [pairs(ready(module([source], seed=seed)).train_dataloader()) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    held = ready(module([source], validation_share=0.5))
    assert pairs(held.val_dataloader()) == pairs(held.val_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, r"^data\.sources is empty"),
        ({"packing": Wrapped()}, r"^data\.packing: Wrapped splits .* use BestFit"),
        ({"max_length": 1}, r"^data\.max_length is 1"),
        ({"max_length": 512, "max_prompt_length": 512}, r"^data\.max_prompt_length is 512"),
        ({"keep": "middle"}, r"^data\.keep: 'middle'"),
        ({"min_margin": -1.0}, r"^data\.min_margin is -1\.0"),
        ({"max_length_ratio": 0.9}, r"^data\.max_length_ratio is 0\.9"),
        ({"row_length": 2}, r"^data\.row_length is 2"),
        ({"batch_size": 0}, r"^data\.batch_size is 0"),
        ({"num_workers": -1}, r"^data\.num_workers is -1"),
        ({"seed": -1}, r"^data\.seed is -1"),
        ({"validation_share": 1.0}, r"^data\.validation_share is 1\.0"),
    ],
)
def test_arguments_that_make_no_sense(options: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceDataModule(**Row({"sources": [Source("a.jsonl")], "tokenizer": byte_tokenizer()} | options))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "chosen": "a"}, r"bad\.jsonl:2: .*rejected"),
        ({"messages": []}, r"bad\.jsonl:2: the row has one answer, and pairs need two"),
    ],
)
def test_a_bad_row_is_named_by_its_place(write: Write, module: Module, row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(module([write("bad", [*sums(1), row])]))


def test_the_description_is_plain_data(write: Write, module: Module) -> None:
    data = module([write("sums", sums(10))], pairing=AllPairs(), max_prompt_length=32)
    assert data.description()["train"] == []
    described = json.loads(json.dumps(ready(data).description()))
    assert described["train"][0]["kept"]["pairs"] == 10
    wanted = {
        "pairing": "AllPairs",
        "max_length": 64,
        "max_prompt_length": 32,
        "keep": "end",
        "min_margin": 0.0,
        "max_length_ratio": None,
        "row_length": 128,
        "packing": "BestFit",
    }
    assert {name: described[name] for name in wanted} == wanted


class Recorder(LightningModule):
    """Learns nothing; writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def training_step(self, batch: PackedBatch, batch_idx: int) -> torch.Tensor:
        self.seen += batch.sample_indices
        return self.weight * len(batch.pairs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_trainer_sees_every_pair_once_an_epoch(write: Write, module: Module, tmp_path: Path, workers: int) -> None:
    data, recorder = module([write("sums", sums(20))], num_workers=workers), Recorder()
    quiet: Row = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(recorder, data)
    assert sorted(recorder.seen) == list(range(20))


def test_yaml_builds_the_same_as_python(write: Write, tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PreferenceDataModule, "data")
    byte_tokenizer().save_pretrained(str(tmp_path / "tokenizer"))
    yaml = f"""
data:
  class_path: lion_lightning.data.preference.PreferenceDataModule
  init_args:
    sources:
      - path: {write("ranked", ranked(3)).path}
    tokenizer: {{path: {tmp_path}/tokenizer}}
    pairing: {{class_path: lion_lightning.data.formats.pairing.AllPairs}}
    keep: start
    max_prompt_length: 40
    max_length: 64
    cache_dir: {tmp_path}/cache
"""
    data = parser.instantiate(parser.parse_string(yaml)).data
    assert len(pairs(ready(data).train_dataloader())) == 9
    assert data.keep == "start"
