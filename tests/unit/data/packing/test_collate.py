"""From samples to a flat row: every number here was worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pytest
import torch

from lion_lightning.data.packing.collate import collate
from lion_lightning.types import Sample, SampleSegment, Segment


def piece(ids: Sequence[int], supervised: Sequence[int], parent: int = -1) -> SampleSegment:
    """A piece whose places in ``supervised`` are targets."""
    mask = np.isin(np.arange(len(ids)), supervised)
    return SampleSegment(np.array(ids, dtype=np.int32), mask, parent)


def document(ids: Sequence[int], supervised: Sequence[int], index: int = 0, source: str = "") -> Sample:
    return Sample((piece(ids, supervised),), index, source)


def pair(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], index: int = 0) -> Sample:
    answers = [piece(ids, range(len(ids)), parent=0) for ids in (chosen, rejected)]
    return Sample((piece(prompt, []), *answers), index)


def test_a_document_right_after_another() -> None:
    batch = collate([document([5, 6, 7], [1, 2]), document([8, 9], [1])], capacity=8)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.segments == (Segment(0, 3), Segment(3, 2))
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.logit_positions.tolist() == [0, 1, 3]
    assert batch.target_segments.tolist() == [0, 0, 1]
    assert batch.capacity == 8


def test_the_first_token_of_a_document_is_not_a_target_of_the_one_before() -> None:
    batch = collate([document([5, 6], [0, 1]), document([8, 9, 4], [0, 2])], capacity=5)
    assert batch.targets.tolist() == [6, 4]
    assert batch.logit_positions.tolist() == [0, 3]


def test_both_answers_of_a_pair_start_from_the_end_of_the_prompt() -> None:
    batch = collate([pair([1, 2, 3], [10, 11], [20, 21, 22])], capacity=16)
    assert batch.input_ids.tolist() == [1, 2, 3, 10, 11, 20, 21, 22]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert batch.segments == (Segment(0, 3), Segment(3, 2, 0), Segment(5, 3, 0))
    assert batch.targets.tolist() == [10, 11, 20, 21, 22]
    assert batch.logit_positions.tolist() == [2, 3, 2, 5, 6]
    assert batch.target_segments.tolist() == [1, 1, 2, 2, 2]


def test_parents_of_a_later_sample_are_its_own() -> None:
    batch = collate([document([7, 8], [1]), pair([1], [2], [3]), pair([4, 5], [6], [9])], capacity=16)
    assert [segment.parent for segment in batch.segments] == [-1, -1, 1, 1, -1, 4, 4]
    assert batch.position_ids.tolist() == [0, 1, 0, 1, 1, 0, 1, 2, 2]
    assert batch.targets.tolist() == [8, 2, 3, 6, 9]
    assert batch.logit_positions.tolist() == [0, 2, 2, 6, 6]


def test_a_tree_of_three_levels() -> None:
    """A prompt, two answers, and a second turn after the first of them."""
    tree = Sample((piece([1, 2], []), piece([3, 4, 5], [0, 2], 0), piece([6], [0], 0), piece([7, 8], [0, 1], 1)), 0)
    batch = collate([tree], capacity=8)
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 2, 5, 6]
    assert batch.segments == (Segment(0, 2), Segment(2, 3, 0), Segment(5, 1, 0), Segment(6, 2, 1))
    assert batch.targets.tolist() == [3, 5, 6, 7, 8]
    assert batch.logit_positions.tolist() == [1, 3, 1, 4, 6]  # 7 follows the 5 at flat place 4, not the 6 before it
    assert batch.target_segments.tolist() == [1, 1, 2, 3, 3]


def test_a_masked_document_keeps_its_tokens_and_its_segment() -> None:
    batch = collate([document([5, 6], []), document([7, 8], [1])], capacity=4)
    assert batch.input_ids.tolist() == [5, 6, 7, 8]
    assert batch.targets.tolist() == [8]
    assert batch.target_segments.tolist() == [1]


def test_a_row_without_any_target_has_empty_integer_tensors() -> None:
    batch = collate([document([5, 6], [0])], capacity=4)  # only the first token, which nothing predicts
    for tensor in (batch.targets, batch.logit_positions, batch.target_segments):
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.int64, (0,))


def test_a_single_token_document_trains_nothing_and_harms_nobody() -> None:
    batch = collate([document([5], [0]), document([6, 7], [0, 1])], capacity=4)
    assert batch.position_ids.tolist() == [0, 0, 1]
    assert (batch.targets.tolist(), batch.logit_positions.tolist()) == ([7], [1])


def test_indices_and_sources_follow_their_samples() -> None:
    samples = [document([1, 2], [1], index=42, source="math"), pair([1], [2], [3], index=7), document([3], [], index=0)]
    batch = collate(samples, capacity=8)
    assert batch.sample_indices == (42, 7, 0)
    assert batch.sources == ("math", "", "")
    assert batch.segment_samples == (0, 1, 1, 1, 2)


def test_all_tensors_are_int64_whatever_the_ids_were_stored_in() -> None:
    batch = collate([document([5, 6], [1])], capacity=2)
    tensors = (batch.input_ids, batch.position_ids, batch.logit_positions, batch.targets, batch.target_segments)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


def test_the_batch_does_not_share_memory_with_the_store() -> None:
    """A store may be a read-only memory map; whoever changes a batch must not change the data."""
    ids = np.array([5, 6], dtype=np.int32)
    batch = collate([Sample((SampleSegment(ids, np.array([False, True])),), 0)], capacity=2)
    batch.input_ids[0] = 99
    assert ids.tolist() == [5, 6]


@pytest.mark.parametrize("seed", range(30))
def test_a_target_is_predicted_by_the_token_before_it_on_its_path_from_the_root(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [_random_tree(rng, index) for index in range(int(rng.integers(1, 5)))]
    expected, start = [], 0
    for sample in samples:
        starts = [start + n for n in accumulate((len(part.input_ids) for part in sample.segments), initial=0)]
        for position, part in enumerate(sample.segments):
            owners = _path(sample, position)
            flat = [starts[owner] + place for owner in owners for place in range(len(sample.segments[owner].input_ids))]
            before = len(flat) - len(part.input_ids)
            for place in np.flatnonzero(part.supervised):
                if before + place > 0:
                    expected.append((flat[before + place - 1], int(part.input_ids[place])))
        start = starts[-1]
    batch = collate(samples, capacity=1)
    assert list(zip(batch.logit_positions.tolist(), batch.targets.tolist(), strict=True)) == expected


def _path(sample: Sample, position: int) -> list[int]:
    parent = sample.segments[position].parent
    return [*(_path(sample, parent) if parent >= 0 else []), position]


def _random_tree(rng: np.random.Generator, index: int) -> Sample:
    pieces = []
    for number in range(int(rng.integers(1, 6))):
        length = int(rng.integers(1, 5))
        ids, supervised = rng.integers(0, 99, length).astype(np.int32), rng.random(length) < 0.5
        pieces.append(SampleSegment(ids, supervised, int(rng.integers(-1, number))))
    return Sample(tuple(pieces), index)


# --- weights


def weighted(sample: Sample, *weights: list[float] | None) -> Sample:
    """A sample whose segments have these weights a token."""
    arrays = [None if each is None else np.array(each, np.float32) for each in weights]
    parts = [part._replace(weights=array) for part, array in zip(sample.segments, arrays, strict=True)]
    return Sample(tuple(parts), sample.index)


def test_each_target_has_the_weight_of_its_token() -> None:
    first = weighted(document([5, 6, 7], [0, 2]), [9, 9, 0.5])  # the first token is no target, and 6 is masked
    tree = weighted(pair([1], [2, 3], [4]), None, [2, 0.25], None)
    batch = collate([first, document([8, 9], [1]), tree], capacity=9)
    assert batch.targets.tolist() == [7, 9, 2, 3, 4]
    assert batch.target_weights is not None
    assert batch.target_weights.tolist() == [0.5, 1, 2, 0.25, 1]
    assert batch.target_weights.dtype == torch.float32


def test_there_are_no_weights_where_all_targets_count_1() -> None:
    assert collate([document([5, 6], [1])], capacity=2).target_weights is None
    assert collate([weighted(document([5, 6], [1]), [0.5, 1])], capacity=2).target_weights is None


def test_weights_go_where_the_batch_goes_and_end_with_its_targets() -> None:
    batch = collate([weighted(document([5, 6], [1]), [1, 0.5])], capacity=2)
    assert batch.to("meta").target_weights is not None
    moved = batch.to("meta").target_weights
    assert moved is not None
    assert moved.device.type == "meta"
    assert batch.without_targets().target_weights is None


def prefix_document(prefix: SampleSegment, rest: SampleSegment) -> Sample:
    return Sample((prefix._replace(bidirectional=True), rest._replace(parent=0)), 0)


def test_a_prefix_seen_whole_and_what_follows_it() -> None:
    sample = prefix_document(piece([1, 2, 3], []), piece([4, 5], [0, 1]))
    batch = collate([document([7, 8], [1]), sample], capacity=8)
    assert batch.segments == (Segment(0, 2), Segment(2, 3, bidirectional=True), Segment(5, 2, 1))
    assert batch.position_ids.tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert batch.targets.tolist() == [8, 4, 5]
    assert batch.logit_positions.tolist() == [0, 4, 5]
    assert sample.segments[0].part(1, 3).bidirectional


def test_a_target_that_its_predictor_sees_is_refused() -> None:
    with pytest.raises(ValueError, match="a target within a bidirectional segment is seen by the token that predicts"):
        collate([prefix_document(piece([1, 2, 3], [2]), piece([4], [0]))], capacity=8)
