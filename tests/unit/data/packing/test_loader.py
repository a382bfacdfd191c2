"""The loader alone: nothing lost or repeated, the same steps however rows are split, and a place to resume at."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from lion_lightning.data.packing.best_fit import Integers, PackedRows, Unpacked, Wrapped
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.types import PackedBatch, Sample, SampleSegment
from tests.marks import exhaustive

LENGTHS = np.random.default_rng(5).integers(1, 12, 61)


class Documents:
    """Documents of given lengths; token ``t`` of document ``d`` is ``100 * d + t``, and all are supervised."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, position: int, /) -> Sample:
        ids = np.arange(self.lengths[position], dtype=np.int32) + 100 * position
        return Sample((SampleSegment(ids, np.ones(len(ids), dtype=np.bool_)),), index=position)


def loader(lengths: Sequence[int] = LENGTHS.tolist(), **options: Any) -> PackedLoader:
    settings: dict[str, Any] = {"capacity": 12, "shuffle": True, "seed": 3} | options
    return PackedLoader(Documents(lengths), np.array(lengths), **settings)


def tokens(batches: Iterable[PackedBatch]) -> list[int]:
    return [token for batch in batches for token in batch.input_ids.tolist()]


def worked(batches: Iterable[PackedBatch]) -> list[PackedBatch]:
    """Batches but for those that a rank without rows runs: they have tokens and no targets."""
    return [batch for batch in batches if len(batch.targets)]


def epochs(loader: PackedLoader, count: int) -> list[list[int]]:
    """Tokens of each epoch, in order."""
    orders = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        orders.append(tokens(loader))
    return orders


EVERYTHING = [100 * document + place for document, length in enumerate(LENGTHS) for place in range(length)]


@pytest.mark.parametrize("packing", [None, Unpacked(), Wrapped()], ids=["best", "none", "wrapped"])
@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_an_epoch_holds_every_token_once_and_its_tail_is_not_dropped(packing: Any, batch_size: int) -> None:
    made = loader(packing=packing, batch_size=batch_size)
    assert sorted(tokens(made)) == EVERYTHING
    assert len(list(made)) == len(made)


def test_a_set_shorter_than_a_row_gives_one_batch() -> None:
    (batch,) = loader([3, 4], capacity=100, batch_size=8)
    assert sorted(batch.sample_indices) == [0, 1]
    assert batch.capacity == 100  # of the one row that there is, not of eight


def test_capacity_counts_the_rows_that_a_batch_has() -> None:
    batches = list(loader([12] * 5, batch_size=2))
    assert [batch.capacity for batch in batches] == [24, 24, 12]


def test_epochs_differ_and_seeds_repeat() -> None:
    first, again, other = epochs(loader(), 3), epochs(loader(), 3), epochs(loader(seed=4), 3)
    assert first == again
    assert len({tuple(order) for order in first + other}) == 6


def test_the_order_of_an_epoch_does_not_depend_on_the_epochs_before() -> None:
    jumped = loader()
    jumped.set_epoch(2)
    assert tokens(jumped) == epochs(loader(), 3)[2]


def test_unshuffled_rows_keep_the_order_of_the_documents_when_nothing_is_packed() -> None:
    made = loader(packing=Unpacked(), shuffle=False)
    assert [epoch == EVERYTHING for epoch in epochs(made, 2)] == [True, True]


def test_a_part_of_a_cut_document_is_a_document_of_its_own() -> None:
    first, second = loader([7], capacity=4, packing=Wrapped(), shuffle=False)
    assert (first.input_ids.tolist(), second.input_ids.tolist()) == ([0, 1, 2, 3], [4, 5, 6])
    assert second.position_ids.tolist() == [0, 1, 2]
    assert (first.targets.tolist(), second.targets.tolist()) == ([1, 2, 3], [5, 6])


def test_a_part_of_a_document_has_its_weights_and_other_weights_are_another_fingerprint() -> None:
    def weighted(*weights: float) -> PackedLoader:
        array = np.array(weights, np.float32)
        sample = Sample((SampleSegment(np.arange(5, dtype=np.int32), np.ones(5, np.bool_), weights=array),), 0)
        return PackedLoader([sample], np.array([5]), capacity=3, packing=Wrapped(), shuffle=False)

    first, second = weighted(1, 1, 1, 0.5, 2)
    assert first.target_weights is None
    assert second.target_weights is not None
    assert second.target_weights.tolist() == [2]  # token 3 begins the part
    assert weighted(1, 1, 1, 0.5, 2).fingerprint() != weighted(1, 1, 1, 0.5, 3).fingerprint()


def test_a_sample_of_several_parts_cannot_be_cut() -> None:
    pair = Sample(
        tuple(SampleSegment(np.arange(3, dtype=np.int32), np.ones(3, dtype=np.bool_), p) for p in (-1, 0, 0)), 0
    )
    with pytest.raises(ValueError, match="use BestFit"):
        list(PackedLoader([pair], np.array([9]), capacity=5, packing=Wrapped()))


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        loader([])


def test_a_packing_whose_number_of_rows_depends_on_chance_is_refused() -> None:
    """Lightning asks for the length once; rows beyond it would be dropped in silence."""

    class Fickle(Unpacked):
        def rows(self, lengths: Integers, capacity: int, rng: np.random.Generator) -> PackedRows:
            return super().rows(lengths[: int(rng.integers(1, len(lengths)))], capacity, rng)

    with pytest.raises(ValueError, match=r"Fickle made .* rows in one epoch and .* in another"):
        epochs(loader(packing=Fickle()), 4)


# --- ranks and accumulation -------------------------------------------------------------------------------------------

Split = tuple[int, int, int]
"""PackedRows of a micro-batch, micro-batches a step and rank, ranks."""
SPLITS: list[Split] = [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)]


def steps(split: Split, lengths: Sequence[int]) -> list[Counter[int]]:
    """Tokens of each optimizer step, over its micro-batches and ranks."""
    batch_size, accumulate, world = split
    ranks = [list(loader(lengths, batch_size=batch_size, rank=rank, world_size=world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    starts = range(0, len(ranks[0]), accumulate)
    return [Counter(tokens(worked(b for rank in ranks for b in rank[at : at + accumulate]))) for at in starts]


@pytest.mark.parametrize("documents", [61, 16, 15, 9, 4, 3, 1])
@pytest.mark.parametrize("split", SPLITS[1:])
def test_a_step_has_the_same_rows_however_they_are_split(split: Split, documents: int) -> None:
    lengths = [int(n) + 1 for n in LENGTHS[:documents]]  # no single tokens: those have no target to be recognized by
    assert steps(split, lengths) == steps(SPLITS[0], lengths)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("documents", [1, 2, 5, 17])
def test_ranks_have_equally_many_batches_and_nothing_is_counted_twice(world: int, documents: int) -> None:
    lengths = [7] * documents  # a row each
    ranks = [list(loader(lengths, rank=rank, world_size=world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {-(-documents // world)}
    assert all(len(loader(lengths, rank=rank, world_size=world)) == len(batches) for rank, batches in enumerate(ranks))
    counted = Counter(index for batches in ranks for batch in worked(batches) for index in batch.sample_indices)
    assert counted == Counter(range(documents))


def test_a_rank_without_rows_still_has_tokens_to_run() -> None:
    """A forward over nothing would leave out the collectives that the other ranks wait in."""
    batches = [list(loader([7], rank=rank, world_size=3)) for rank in range(3)]
    assert [len(batch[0].input_ids) for batch in batches] == [7, 7, 7]
    assert [len(batch[0].targets) for batch in batches] == [6, 0, 0]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_other_values_or_pairs_are_another_fingerprint() -> None:
    part = SampleSegment(np.arange(2, dtype=np.int32), np.ones(2, np.bool_))
    segments = (part, part._replace(parent=0), part._replace(parent=0))

    def mark(values: tuple[float, ...], *pairs: tuple[int, int]) -> str:
        return PackedLoader([Sample(segments, 0, values=values, pairs=pairs)], np.array([6]), capacity=6).fingerprint()

    marks = [mark((1.0, 0.0), (0, 1)), mark((1.0, 0.0), (1, 0)), mark((1.0, 0.5), (0, 1)), mark((1.0, 0.0)), mark(())]
    segments = (part._replace(bidirectional=True), *segments[1:])
    assert len({*marks, mark(())}) == 6
    assert mark((1.0, float("nan")), (0, 1)) == mark((1.0, float("nan")), (0, 1))


def fingerprints(batches: Iterable[PackedBatch]) -> list[Any]:
    return [(b.input_ids.tolist(), b.targets.tolist(), b.segments, b.sample_indices, b.capacity) for b in batches]


def test_workers_read_the_same_batches() -> None:
    assert fingerprints(loader(batch_size=2, num_workers=2)) == fingerprints(loader(batch_size=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_generators_alone(workers: int) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    list(loader(num_workers=workers))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.random.random() == np.random.RandomState(0).random()


def test_the_global_seed_does_not_change_the_order() -> None:
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        orders.append(tokens(loader()))
    assert orders[0] == orders[1]


# --- resuming ---------------------------------------------------------------------------------------------------------


def state_after(made: PackedLoader, batches: int, epoch: int = 0) -> dict[str, Any]:
    made.set_epoch(epoch)
    list(islice(made, batches))
    return made.state_dict()


def resumed(state: dict[str, Any], **options: Any) -> PackedLoader:
    made = loader(**options)
    made.load_state_dict(state)
    made.set_epoch(state["epoch"])
    return made


@pytest.mark.parametrize(("workers", "epoch"), [(0, 0), (0, 2), (2, 2), *exhaustive((2, 0))])
def test_a_resumed_loader_goes_on_with_the_next_batch(workers: int, epoch: int) -> None:
    whole = fingerprints(resumed(state_after(loader(), 0, epoch)))
    for consumed in (1, 7, len(whole) - 1, len(whole)):
        state = state_after(loader(num_workers=workers), consumed, epoch)
        assert fingerprints(resumed(state, num_workers=workers)) == whole[consumed:]


def test_what_workers_have_read_ahead_is_not_counted_as_consumed() -> None:
    made = loader(num_workers=2)
    batches = iter(made)
    next(batches)
    assert made.state_dict()["batches"] == 1


def test_each_rank_resumes_from_the_one_state_that_is_saved() -> None:
    whole = [fingerprints(loader(rank=rank, world_size=2)) for rank in range(2)]
    state = state_after(loader(rank=0, world_size=2), 3)
    assert [fingerprints(resumed(state, rank=rank, world_size=2)) for rank in range(2)] == [w[3:] for w in whole]


def test_a_place_is_restored_once() -> None:
    made = resumed(state_after(loader(), 5))
    assert len(list(made)) == len(made) - 5
    assert len(list(made)) == len(made)
    made.set_epoch(1)
    assert tokens(made) == epochs(loader(), 2)[1]


def test_a_state_saved_before_the_first_batch_after_a_resume_is_the_state_that_was_loaded() -> None:
    state = state_after(loader(), 5, epoch=1)
    assert resumed(state).state_dict() == state
    fresh = loader()
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state


def test_a_new_epoch_starts_at_its_first_batch_whatever_was_restored() -> None:
    made = loader()
    made.load_state_dict(state_after(loader(), 5))
    made.set_epoch(1)
    assert tokens(made) == epochs(loader(), 2)[1]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "one more document": ({"lengths": [*LENGTHS.tolist(), 4]}, "documents was 61, is 62"),
    "same lengths, other documents": ({"lengths": LENGTHS[::-1].tolist()}, "content of the documents was"),
    "seed": ({"seed": 4}, "seed was 3, is 4"),
    "no shuffling": ({"shuffle": False}, "shuffled was True, is False"),
    "batch size": ({"batch_size": 2}, "batch_size was 1, is 2"),
    "length": ({"capacity": 13}, "tokens of a row was 12, is 13"),
    "packing": ({"packing": Unpacked()}, "packing was BestFit, is Unpacked"),
    "ranks": ({"world_size": 2}, "number of ranks was 1, is 2"),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
def test_other_batches_are_refused_in_the_middle_of_an_epoch(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"after batch 5 of \d+ of epoch 0, .*{named}"):
        resumed(state_after(loader(), 5), **change)


class Changed(Documents):
    """The same but for one token, or one target, of one document."""

    def __init__(self, lengths: Sequence[int], position: int, what: str) -> None:
        super().__init__(lengths)
        self.position, self.what = position, what

    def __getitem__(self, position: int, /) -> Sample:
        (piece,) = super().__getitem__(position).segments
        if position == self.position and self.what == "token":
            piece.input_ids[-1] += 1
        elif position == self.position:
            piece.supervised[-1] = False
        return Sample((piece,), index=position)


def changed(position: int, what: str) -> PackedLoader:
    return PackedLoader(Changed(LENGTHS.tolist(), position, what), LENGTHS, capacity=12, shuffle=True, seed=3)


@pytest.mark.parametrize("what", ["token", "target"])
@pytest.mark.parametrize("position", [0, 1, 7, 30, 59])  # and not only every fourth
def test_one_other_token_or_target_of_documents_as_long_as_before_is_found(position: int, what: str) -> None:
    with pytest.raises(ValueError, match=r"epoch's batches have changed \(content of the documents was"):
        changed(position, what).load_state_dict(state_after(loader(), 5))


def test_other_data_after_an_epoch_is_said_once_and_gone_on_with(caplog: pytest.LogCaptureFixture) -> None:
    made = changed(7, "token")
    state = state_after(loader(batch_size=2), len(loader(batch_size=2)))
    for _ in range(2):
        made.load_state_dict(state)
    (line,) = [record.message for record in caplog.records if "goes on with" in record.message]
    assert "batch_size was 2, is 1; content of the documents was " in line
    made.set_epoch(1)
    assert len(list(made)) == len(made)


def test_a_setting_that_changed_no_batch_is_gone_on_with_and_said(caplog: pytest.LogCaptureFixture) -> None:
    first, other = (loader(packing=Unpacked(), capacity=capacity) for capacity in (12, 13))
    other.load_state_dict(state_after(first, 5))
    assert "tokens of a row was 12, is 13" in caplog.text
    assert len(list(other)) == len(other) - 5


def test_the_same_data_is_gone_on_with_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    loader().load_state_dict(state_after(loader(), len(loader())))
    loader().load_state_dict(state_after(loader(), 5))
    assert not caplog.records


def test_settings_that_the_data_follows_from_are_named() -> None:
    made = loader(settings={"data.mask": "completion"}, lengths=LENGTHS[::-1].tolist())
    with pytest.raises(ValueError, match=r"data\.mask was assistant, is completion"):
        made.load_state_dict(state_after(loader(settings={"data.mask": "assistant"}), 5))


def test_samples_that_know_their_digest_are_not_read_for_it() -> None:
    class Known(Documents):
        digest = "of all tokens"

        def __getitem__(self, position: int, /) -> Sample:
            raise AssertionError(position)

    made = PackedLoader(Known(LENGTHS.tolist()), LENGTHS, capacity=12)
    assert made.state_dict()["settings"]["content of the documents"] == "of all token"


@pytest.mark.parametrize("change", [change for change, _ in CHANGES.values()], ids=CHANGES)
def test_other_data_may_begin_with_an_epoch(change: dict[str, Any]) -> None:
    first = resumed(state_after(loader(), 0), **change)
    assert fingerprints(first) == fingerprints(loader(**change))
    made = loader(**change)
    made.load_state_dict(state_after(loader(), len(loader())))
    made.set_epoch(1)
    assert len(list(made)) == len(made)


def test_the_number_of_workers_may_change_in_the_middle_of_an_epoch() -> None:
    assert fingerprints(resumed(state_after(loader(), 5), num_workers=2)) == fingerprints(loader())[5:]


def test_the_state_is_plain_data() -> None:
    """Lightning's checkpoints load with ``weights_only``."""
    state = state_after(loader(), 2)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == state
