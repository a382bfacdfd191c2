"""From files to packed batches, in plain Python and under a Trainer."""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.types import PackedBatch
from tests.unit.data.letters import byte_tokenizer


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Source]:
    def write(name: str, pairs: Iterable[tuple[str, str]], **options: Any) -> Source:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
        return Source(str(path), name=name, **options)

    return write


Write = Callable[..., Source]


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., SFTDataModule]:
    def module(sources: list[Source], **options: Any) -> SFTDataModule:
        settings: dict[str, Any] = {"max_length": 128, "cache_dir": tmp_path / "cache"} | options
        return SFTDataModule(sources, byte_tokenizer(), **settings)

    return module


Module = Callable[..., SFTDataModule]


def sums(count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f"{n} + {n}?", str(2 * n)) for n in range(start, start + count)]


def ready(data: SFTDataModule) -> SFTDataModule:
    data.prepare_data()
    data.setup()
    return data


def indices(batches: Any) -> list[int]:
    """Examples of all batches but those that a rank without work runs, which have no targets."""
    return [
        index for batch in cast(Iterable[PackedBatch], batches) if len(batch.targets) for index in batch.sample_indices
    ]


def trained_text(batches: Any) -> list[str]:
    """What each segment of each batch is trained to say."""
    texts = []
    for batch in cast(Iterable[PackedBatch], batches):
        for number in range(len(batch.segments)):
            texts.append(str(byte_tokenizer().decode(batch.targets[batch.target_segments == number].tolist())))
    return texts


def test_every_answer_is_trained_once_an_epoch_and_nothing_else(write: Write, module: Module) -> None:
    data = ready(module([write("sums", sums(50))]))
    assert sorted(trained_text(data.train_dataloader())) == sorted(f"{2 * n}<|im_end|>" for n in range(50))
    assert sorted(indices(data.train_dataloader())) == list(range(50))
    assert data.val_dataloader() == []


def test_rows_are_packed_and_never_longer_than_max_length(write: Write, module: Module) -> None:
    data = ready(module([write("sums", sums(50))], max_length=200))
    batches = list(cast(Iterable[PackedBatch], data.train_dataloader()))
    assert all(len(batch.input_ids) <= batch.capacity == 200 for batch in batches)
    assert any(len(batch.segments) > 1 for batch in batches)


def test_a_share_held_out_is_not_trained(write: Write, module: Module) -> None:
    data = ready(module([write("sums", sums(200))], validation_share=0.2))
    trained, validated = indices(data.train_dataloader()), indices(data.val_dataloader())
    assert sorted(trained + validated) == list(range(200))
    assert 20 < len(validated) < 60


def test_validation_sources_are_taken_out_of_training(write: Write, module: Module) -> None:
    data = ready(module([write("sums", sums(20))], validation=[write("held", sums(10, start=15))]))
    assert len(indices(data.train_dataloader())) == 15
    assert len(indices(data.val_dataloader())) == 10
    assert data.train_mixture is not None
    assert data.train_mixture.reports[0].left_out["in a validation source"].documents == 5


def test_training_is_shuffled_by_the_seed_and_validation_is_not(write: Write, module: Module) -> None:
    source = write("sums", sums(60))
    orders = [indices(ready(module([source], seed=seed)).train_dataloader()) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    held = ready(module([source], validation_share=0.5))
    assert indices(held.val_dataloader()) == indices(held.val_dataloader())


def test_ranks_share_the_rows_of_one_epoch(write: Write, module: Module) -> None:
    data = ready(module([write("sums", sums(64))], max_length=64))
    alone = sorted(indices(data.train_dataloader()))
    parts = []
    for rank in (0, 1):
        strategy = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 2, "rank": rank})
        data.trainer = cast(Trainer, SimpleNamespace(strategy=strategy))
        parts.append(set(indices(data.train_dataloader())))
    assert not parts[0] & parts[1]
    assert sorted(parts[0] | parts[1]) == alone


def test_rows_longer_than_the_models_positions_are_refused_before_reading(module: Module) -> None:
    data = module([Source("missing.jsonl")], max_length=4096)
    data.trainer = cast(Trainer, SimpleNamespace(lightning_module=SimpleNamespace(max_positions=1024)))
    with pytest.raises(ValueError, match=r"data\.max_length is 4096, but the model has positions for 1024 tokens"):
        data.prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, r"^data\.sources is empty"),
        ({"sources": [Source("a/x.jsonl"), Source("b/a/x.jsonl")]}, r"^2 sources are called 'a/x'"),
        ({"validation_share": 1.0}, r"^data\.validation_share is 1\.0"),
        ({"validation_share": -0.1}, r"^data\.validation_share is -0\.1"),
        ({"validation_share": 0.1, "validation": [Source("v.jsonl")]}, "are both set"),
        ({"max_length": 1}, r"^data\.max_length is 1"),
        ({"batch_size": 0}, r"^data\.batch_size is 0"),
        ({"seed": -1}, r"^data\.seed is -1"),
        ({"num_workers": -1}, r"^data\.num_workers is -1"),
        ({"overlong": "wrap"}, r"^data\.overlong: 'wrap' is unknown"),
        ({"min_supervised_share": 1.5}, r"^data\.min_supervised_share is 1\.5"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SFTDataModule(**{"sources": [Source("a.jsonl")], "tokenizer": byte_tokenizer()} | options)


def test_a_share_drawn_by_hash_holds_out_one_prompt_at_least(write: Write, module: Module) -> None:
    data = ready(module([write("sums", sums(5))], validation_share=1e-6))
    assert data.train_mixture is not None
    assert data.validation_mixture is not None
    assert (len(data.train_mixture.documents), len(data.validation_mixture.documents)) == (4, 1)


def test_a_share_that_leaves_nothing_to_train_on_is_refused(write: Write, module: Module) -> None:
    with pytest.raises(ValueError, match=r"^data\.validation_share 0\.1 leaves nothing to train on of 1 different"):
        ready(module([write("sums", sums(1))], validation_share=0.1))


def double(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "answer": row["answer"] * 2}


def test_the_description_is_plain_data_before_and_after_reading(write: Write, module: Module) -> None:
    source = write("sums", sums(10), transform=double, fraction=2)
    data = module([source])
    assert data.description()["train"] == []
    described = json.loads(json.dumps(ready(data).description()))
    assert re.fullmatch("[0-9a-f]{32}", described["sources"][0].pop("digest"))
    assert described["sources"] == [
        {"path": source.path, "split": "train", "name": "sums", "fraction": 2, "transform": f"{__name__}.double"}
    ]
    assert described["train"][0]["kept"]["documents"] == 20
    assert (described["mask"], described["max_length"], described["packing"]) == ("assistant", 128, "BestFit")


def test_min_supervised_share_is_for_training_alone(write: Write, module: Module) -> None:
    """What validation measures does not change with a filter of the training set."""
    long = [("a long question without end, on and on and on and on " + str(n), "y") for n in range(3)]
    data = ready(module([write("a", sums(3) + long)], validation=[write("b", long[:1])], min_supervised_share=0.05))
    assert data.train_mixture is not None
    assert data.train_mixture.reports[0].kept.documents == 3
    assert len(indices(data.val_dataloader())) == 1


class Recorder(LightningModule):
    """Learns nothing; writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[int] = []
        self.validated: list[int] = []

    def training_step(self, batch: PackedBatch, batch_idx: int) -> torch.Tensor:
        self.trained += batch.sample_indices
        return self.weight * len(batch.targets)

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        self.validated += batch.sample_indices

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_trainer_sees_every_document_once_an_epoch(
    write: Write, module: Module, tmp_path: Path, share: float
) -> None:
    data, recorder = module([write("sums", sums(40))], validation_share=share), Recorder()
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(recorder, data)
    assert sorted(recorder.trained + recorder.validated) == list(range(40))
    assert bool(recorder.validated) == (share > 0)


def test_yaml_builds_the_same_as_python(write: Write, tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SFTDataModule, "data")
    byte_tokenizer().save_pretrained(str(tmp_path / "tokenizer"))
    yaml = f"""
data:
  class_path: lion_lightning.SFTDataModule
  init_args:
    sources:
      - path: {write("sums", sums(8)).path}
        fraction: 0.5
    tokenizer: {{path: {tmp_path}/tokenizer}}
    packing: lion_lightning.BestFit
    max_length: 64
    cache_dir: {tmp_path}/cache
"""
    data = parser.instantiate(parser.parse_string(yaml)).data
    assert len(indices(ready(data).train_dataloader())) == 4


def test_what_is_found_in_rows_is_told_once_and_again_by_a_later_run(
    tmp_path: Path, module: Module, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"question": "1+1?", "answer": "2", "hint": "Count.", "id": 1},
        {"prompt": "2+2=", "completion": "4"},
        {"question": "3+3?", "answer": "6", "image": None},
    ]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [
        "source sums: not used: hint (1 of 3 rows). If a column matters, say with `columns` what it is, or use it in a "
        "`transform`; if not, name it in `ignore`",
        "source sums: 1 of 3 rows are plain text, which is read without the tokenizer's chat template. Set "
        "`format: chat` on the source to make each prompt a user's turn and each answer an assistant's, or "
        "`format: text` if plain text is meant",
    ]
    for _ in range(2):
        caplog.clear()
        data = ready(module([Source(str(path), name="sums")]))
        assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == told
    assert data.row_messages() == {
        "sums": [
            "plain text, without a chat template: 1 rows",
            "not used: hint (1 of 3 rows), id (1 of 3 rows)",
        ]
    }
    caplog.clear()
    ready(module([Source(str(path), name="sums", ignore=["hint"], format="text")]))
    assert not [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_columns_that_no_row_has_are_refused(write: Write, module: Module) -> None:
    source = dataclasses.replace(write("sums", sums(2)), columns={"input": "context"})
    with pytest.raises(ValueError, match=r"^source sums: columns maps input to 'context', which no row has"):
        ready(module([source]))
