"""Data prepared by two processes: shared work, the store and the batches of one, and one error for all."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.sft import Example
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store import tokenize as tokenizing
from lion_lightning.distributed import rendezvous as workers
from lion_lightning.distributed.rendezvous import WorkerGroup
from lion_lightning.types import SampleSegment
from tests.distributed.ranks import run_ranks
from tests.processes import start
from tests.unit.data.letters import byte_tokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

ROWS = 90


class Recording(ChatEncoder):
    """Knows how many rows it has encoded, and may fail at that."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(byte_tokenizer(), "assistant")
        self.error, self.rows = error, 0

    def encode_samples(self, examples: Sequence[Example], where: Sequence[str]) -> list[tuple[SampleSegment]]:
        if self.error is not None:
            raise self.error
        self.rows += len(examples)
        return super().encode_samples(examples, where)


class Data(SFTDataModule):
    """Encodes with an encoder that is at hand."""

    encoder: Recording

    def make_encoder(self) -> Recording:
        return self.encoder


def write(folder: Path, bad: Sequence[int] = ()) -> None:
    rows: list[dict[str, Any]] = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(ROWS)]
    for number in bad:
        rows[number] = {"nonsense": number}
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(
    rank: int, world: int, folder: Path, cache: str, errors: Sequence[Exception | None], seeds: Sequence[int]
) -> Any:
    """Prepare data under a Trainer; what this rank has encoded, and the samples of its batches, or its error."""
    tokenizing._MIN_SHARD_ROWS = 8
    data = Data(
        [Source(str(folder / "sums.jsonl"))],
        byte_tokenizer(),
        validation_share=0.2,
        max_length=128,
        seed=seeds[rank],
        cache_dir=folder / cache,
    )
    data.encoder = Recording(errors[rank])
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    settings: dict[str, Any] = {"strategy": "ddp", "devices": world} if world > 1 else {}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=0,
        limit_val_batches=0,
        default_root_dir=folder,
        **quiet,
        **settings,
    )
    try:
        trainer.fit(BoringModel(), data)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return data.encoder.rows, [batch.sample_indices for batch in data.train_dataloader() if len(batch.targets)]


def run(folder: Path, cache: str, errors: Sequence[Exception | None] = (None, None), seeds: Any = (0, 0)) -> list[Any]:
    results = run_ranks(prepare, folder, folder, cache, errors, seeds)
    assert not [*(folder / cache / "groups").iterdir()]  # nothing is left behind
    return results


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "tokens").glob("*/*"))}


def test_two_ranks_share_the_rows_and_make_the_store_of_one(tmp_path: Path) -> None:
    write(tmp_path)
    encoded, batches = prepare(0, 1, tmp_path, "one", [None], [0])
    assert encoded == ROWS
    first, second = run(tmp_path, "two")
    assert first[0] + second[0] == ROWS
    assert min(first[0], second[0]) > ROWS // 3
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    dealt = [batch for turn in zip(first[1], [*second[1], None], strict=False) for batch in turn if batch]
    assert dealt == batches
    again = run(tmp_path, "two")
    assert [rank[0] for rank in again] == [0, 0]


def test_both_ranks_name_the_wrong_row_that_one_process_names(tmp_path: Path) -> None:
    write(tmp_path, bad=[30, 80])
    alone = prepare(0, 1, tmp_path, "one", [None], [0])
    assert alone.startswith(f"ValueError: {tmp_path}/sums.jsonl:31: ")
    assert run(tmp_path, "two") == [alone, alone]


def test_a_rank_that_fails_stops_the_other(tmp_path: Path) -> None:
    write(tmp_path)
    said = run(tmp_path, "two", errors=(None, KeyError("no luck here")))
    assert said == ["RuntimeError: rank 1 failed: KeyError: 'no luck here'", "KeyError: 'no luck here'"]


def test_ranks_with_other_settings_are_all_refused(tmp_path: Path) -> None:
    write(tmp_path)
    said = run_ranks(prepare, tmp_path, tmp_path, "two", (None, None), (0, 7))
    message = (
        "ValueError: rank 1 was started with other settings than rank 0: data.seed "
        "(data.seed is 7 there, 0 on rank 0); start them with one config"
    )
    assert said == [message, message]
    assert not os.path.exists(tmp_path / "two")


class Dying(Recording):
    def encode_samples(self, examples: Sequence[Example], where: Sequence[str]) -> list[tuple[SampleSegment]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


def share(rank: int, folder: Path) -> None:
    tokenizing._MIN_SHARD_ROWS, workers.PATIENCE_SECONDS = 8, 2.0
    place = WorkerGroup(folder, rank, 2, "now")
    encoder = Dying(None) if rank else Recording(None)
    try:
        with place.heartbeat():
            tokenizing.tokenize(Source(str(folder / "sums.jsonl")), encoder, folder, place)
    except RuntimeError as error:
        (folder / "said").write_text(str(error))


def test_a_rank_that_is_killed_stops_the_other(tmp_path: Path) -> None:
    write(tmp_path)
    processes = [start(share, rank, tmp_path) for rank in range(2)]
    for process in processes:
        process.join()
    assert processes[1].exitcode == -signal.SIGKILL
    assert (tmp_path / "said").read_text().startswith("rank 1 was lost: no heartbeat for 2 seconds")
