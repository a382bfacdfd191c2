"""The prompts of a round with their answers as tokenized examples."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest

from lion_lightning.data.selection.answer_filters import GroupFilters
from lion_lightning.data.selection.mixture import deduplicate, mix
from lion_lightning.data.selection.pair_filters import PairFilters
from lion_lightning.data.sources.source import Source
from lion_lightning.rollouts.files import write_rollouts
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import round_path
from lion_lightning.rollouts.tokens import RoundTokens
from lion_lightning.types import Answer, Prompt

ANSWERS = (Answer("a b c", "stop", (7, 8, 9, 2)), Answer("a b", "length", (7, 8)), Answer("own", "original", (11, 2)))
PAIRED = Rollout(Prompt("hi", (5, 6)), ANSWERS, b"a" * 16, scores=(1.0, 0.0, 4.0), pairs=((0, 1), (2, 1)))
NO_PAIR = Rollout(Prompt("long", (5,) * 9), left_out="prompt longer than 3 tokens")
OTHER = Rollout(Prompt("yo", (4,)), ANSWERS[1:], b"b" * 16, scores=(2.0, 2.5), pairs=((1, 0),))


def tokens_of(folder: Path, *rollouts: Rollout) -> RoundTokens:
    write_rollouts(round_path(folder, 0), rollouts, {"round": 0})
    return RoundTokens(round_path(folder, 0))


def bounds_of(tokens: RoundTokens, row: int) -> list[list[int]]:
    """Token ids of each segment of an example."""
    lengths = tokens.segment_lengths[tokens.segment_offsets[row] : tokens.segment_offsets[row + 1]].tolist()
    starts = [0, *accumulate(lengths)]
    return [tokens.segment(row, start, stop).input_ids.tolist() for start, stop in pairwise(starts)]


def test_a_prompt_is_read_once_with_each_answer_that_is_in_a_pair(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path, NO_PAIR, PAIRED, OTHER)
    assert (len(tokens), tokens.raw_rows, tokens.skipped_rows, tokens.longest) == (2, 2, 0, 6)
    assert tokens.segment_lengths.tolist() == [2, 4, 2, 2, 1, 2, 2]
    assert tokens.segment_offsets.tolist() == [0, 4, 7]
    assert np.nan_to_num(tokens.values, nan=-1).tolist() == [-1, 1.0, 0.0, 4.0, -1, 2.5, 2.0]
    # of OTHER the second answer is preferred, and comes first
    assert (tokens.pairs.tolist(), tokens.pair_offsets.tolist()) == ([[0, 1], [2, 1], [0, 1]], [0, 2, 3])
    assert tokens.groups.tobytes() == b"a" * 16 + b"b" * 16
    assert [tokens.where(row) for row in range(2)] == [f"{tokens.path}[{row}] ()" for row in (1, 2)]
    assert bounds_of(tokens, 0) == [[5, 6], [7, 8, 9, 2], [7, 8], [11, 2]]
    assert bounds_of(tokens, 1) == [[4], [11, 2], [7, 8]]
    assert tokens.segment(1, 3, 4).input_ids.tolist() == [7]
    assert [bool(tokens.segment(0, start, start + 1).supervised) for start in (0, 1, 2, 6)] == [
        False,
        False,
        True,
        True,
    ]
    spans = (np.zeros(3, int), np.array([1, 2, 6]), np.array([2, 4, 8]), np.array([True, False, False]))
    assert tokens.targets(*spans).tolist() == [0, 2, 2]


def test_groups_are_the_usable_answers_in_their_order_without_pairs(tmp_path: Path) -> None:
    paired, other = replace(PAIRED, usable=(0, 2)), replace(OTHER, usable=(1,))
    write_rollouts(round_path(tmp_path, 0), (NO_PAIR, paired, other), {"round": 0})
    tokens = RoundTokens(round_path(tmp_path, 0), groups=True)
    assert (len(tokens), tokens.raw_rows, len(tokens.pairs), tokens.pair_offsets.tolist()) == (1, 1, 0, [0, 0])
    assert bounds_of(tokens, 0) == [[5, 6], [7, 8, 9, 2], [11, 2]]
    assert tokens.values.tolist()[1:] == [1.0, 4.0]
    assert pickle.loads(pickle.dumps(tokens)).tokens == tokens.tokens
    mixture = mix(deduplicate([Source("round", name="round 0")], [tokens]), GroupFilters(max_length=5))
    sample = mixture.documents[0]
    assert [part.input_ids.tolist() for part in sample.segments] == [[5, 6], [7, 8, 9], [11, 2]]
    assert (sample.values, sample.pairs) == ((1.0, 4.0), ())


def test_documents_of_a_round_are_filtered_like_those_on_disk(tmp_path: Path) -> None:
    tie = replace(OTHER, scores=(2.0, 2.0), group=b"c" * 16)
    tokens = tokens_of(tmp_path, PAIRED, tie, PAIRED)  # a prompt that is asked twice, and answered alike
    mixture = mix(deduplicate([Source("round", name="round 0")], [tokens]), PairFilters(max_length=5, min_margin=0.5))
    (report,) = mixture.reports
    assert {cause: counts.documents for cause, counts in report.left_out.items()} == {"duplicate": 2, "equal scores": 1}
    (sample,) = map(mixture.documents.__getitem__, range(len(mixture.documents)))
    assert (sample.index, sample.pairs, sample.values) == (0, ((0, 1), (2, 1)), (1.0, 0.0, 4.0))
    assert [part.input_ids.tolist() for part in sample.segments] == [[5, 6], [7, 8, 9], [7, 8], [11, 2]]
    assert [part.parent for part in sample.segments] == [-1, 0, 0, 0]


def test_hashes_follow_content(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path, PAIRED, OTHER)
    again = pickle.loads(pickle.dumps(tokens))  # as worker processes get it
    assert (again.tokens, again.digests.tolist()) == (tokens.tokens, tokens.digests.tolist())
    assert len(np.unique(tokens.digests, axis=0)) == 2
    scored = tokens_of(tmp_path, replace(PAIRED, scores=(3.0, 0.0, 1.0)), OTHER)
    assert scored.digests.tolist() == tokens.digests.tolist()
    swapped = tokens_of(tmp_path, replace(PAIRED, pairs=((1, 0), (2, 1))), OTHER)
    assert swapped.tokens != tokens.tokens
    assert swapped.digests[0].tolist() != tokens.digests[0].tolist()
    # The same answers in the same order: the pairs tell them apart.
    more = tokens_of(tmp_path, replace(PAIRED, pairs=((0, 1), (2, 1), (0, 2))), OTHER)
    assert bounds_of(more, 0) == bounds_of(tokens, 0)
    assert more.digests[0].tolist() != tokens.digests[0].tolist()


def test_a_round_without_pairs_has_no_examples(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path, NO_PAIR)
    assert (len(tokens), tokens.longest, tokens.segment_lengths.shape) == (0, 0, (0,))
    assert tokens.digests.shape == tokens.groups.shape == (0, 2)
    with pytest.raises(ValueError, match="no example is made"):
        mix(deduplicate([Source("round")], [tokens]), PairFilters(max_length=5))
