"""A batch of some answers: what is left is as it was, and everything that was counted is counted anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from lion_lightning.types import PackedBatch, Segment, keep_answers
from tests.tiny import policy, row

# Two prompts (2 and 3 tokens): answers 0, 1, 2 of the first have 1, 2 and 3 tokens; 3 and 4 of the second 2 and 1.
LENGTHS, PARENTS = (2, 1, 2, 3, 3, 2, 1), (-1, 0, 0, 0, -1, 4, 4)
ANSWERS = (2, 3, 4, 5, 6, 7, 11, 12, 13)  # flat positions of the answers' tokens


def trees() -> PackedBatch:
    made = row(LENGTHS, PARENTS, ANSWERS, seed=3)
    return replace(
        made,
        segment_samples=(0, 0, 0, 0, 1, 1, 1),
        sample_indices=(70, 71),
        sources=("one", "two"),
        values=(0.1, 0.2, 0.3, 0.4, 0.5),
        pairs=((0, 1), (2, 0), (3, 4)),
        target_weights=torch.arange(9.0),
        capacity=64,
    )


def test_tokens_segments_targets_values_and_pairs_of_two_answers() -> None:
    whole = trees()
    kept = keep_answers(whole, [2, 0])  # in any order
    assert kept.input_ids.tolist() == whole.input_ids[[0, 1, 2, 5, 6, 7]].tolist()
    assert kept.position_ids.tolist() == [0, 1, 2, 2, 3, 4]
    assert kept.segments == (Segment(0, 2), Segment(2, 1, 0), Segment(3, 3, 0))
    assert kept.targets.tolist() == whole.input_ids[[2, 5, 6, 7]].tolist()
    assert kept.logit_positions.tolist() == [1, 1, 3, 4]  # the first token of each answer is predicted by the prompt
    assert kept.target_segments.tolist() == [1, 2, 2, 2]
    assert kept.target_weights is not None
    assert kept.target_weights.tolist() == [0.0, 3.0, 4.0, 5.0]
    assert (kept.values, kept.pairs, kept.answers) == ((0.1, 0.3), ((1, 0),), [1, 2])
    assert (kept.segment_samples, kept.sample_indices, kept.sources) == ((0, 0, 0), (70,), ("one",))
    assert kept.capacity == 6


def test_prompts_seen_whole_stay_so() -> None:
    whole = trees()
    segments = tuple(segment._replace(bidirectional=segment.parent < 0) for segment in whole.segments)
    kept = keep_answers(replace(whole, segments=segments), [4])
    assert kept.segments == (Segment(0, 3, bidirectional=True), Segment(3, 1, 0))


def test_a_tree_of_which_nothing_is_left_goes_with_its_prompt() -> None:
    kept = keep_answers(trees(), [4])
    assert kept.segments == (Segment(0, 3), Segment(3, 1, 0))
    assert (kept.sample_indices, kept.sources, kept.segment_samples) == ((71,), ("two",), (0, 0))
    assert (kept.values, kept.pairs) == ((0.5,), ())


@pytest.mark.parametrize("positions", [(0, 1, 2, 3, 4), (1,), (0, 3), (2, 3, 4)])
def test_log_probs_of_answers_do_not_depend_on_the_others(positions: Sequence[int]) -> None:
    whole, model = replace(trees(), target_weights=None), policy()
    kept = keep_answers(whole, positions)
    owners = torch.tensor([whole.answers[position] for position in positions])
    expected = model(whole).values[torch.isin(whole.target_segments, owners)]
    torch.testing.assert_close(model(kept).values, expected, rtol=0, atol=1e-6)


def test_targets_of_a_prompt_are_not_those_of_its_answers() -> None:
    whole = replace(row(LENGTHS, PARENTS, seed=3), values=(0.0,) * 5)  # all tokens but the first of each prompt
    assert keep_answers(whole, [1]).target_segments.tolist() == [1, 1]


def test_none_leaves_the_first_root_without_targets() -> None:
    kept = keep_answers(trees(), [])
    assert kept.segments == (Segment(0, 2),)
    assert (len(kept.targets), kept.values, kept.pairs) == (0, (), ())
    assert policy()(kept).values.shape == (0,)


def test_a_moved_batch_is_read_from_its_copy_on_the_host_and_the_smaller_one_moves_as_well() -> None:
    kept = keep_answers(trees().to("meta"), [1])
    assert kept.input_ids.device.type == "meta"
    assert kept.on_cpu().targets.tolist() == keep_answers(trees(), [1]).targets.tolist()
