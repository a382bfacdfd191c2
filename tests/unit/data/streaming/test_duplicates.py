"""Hashes of the last documents: what is found, what is missed, and any earlier moment again."""

from __future__ import annotations

import numpy as np
import pytest

from lion_lightning.data.streaming.duplicates import RecentHashes


@pytest.mark.parametrize("capacity", [1, 16, 100, 1000])
def test_a_hash_is_found_as_long_as_was_promised_and_not_much_longer(capacity: int) -> None:
    generation = -(-capacity // 16)
    found = {}
    for distance in range(0, 19 * generation, max(1, capacity // 50)):
        hashes = RecentHashes(capacity)
        for value in range(10**6, 10**6 + 3 * generation):  # so that 5 does not begin a generation
            hashes.add(value)
        assert hashes.add(5)
        for value in range(100, 100 + distance):
            assert hashes.add(value)
        found[distance] = not hashes.add(5)
    assert all(found[distance] for distance in found if distance < capacity)
    assert not any(found[distance] for distance in found if distance >= 17 * generation)


def test_nothing_new_is_taken_for_old_and_nothing_known_for_new() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 500, dtype=np.uint64).tolist()
    drawn = [values[position] for position in rng.integers(0, 500, 3000).tolist()]
    hashes, seen = RecentHashes(500), set()
    for value in drawn:
        assert hashes.add(value) == (value not in seen)
        seen.add(value)


def test_none_are_remembered_without_capacity() -> None:
    hashes = RecentHashes(0)
    assert hashes.add(1)
    assert hashes.add(1)


@pytest.mark.parametrize("moment", [0, 1, 15, 16, 17, 40, 99, 160])
def test_an_earlier_moment_is_its_number_of_new_hashes(moment: int) -> None:
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 60, 400).tolist()
    hashes = RecentHashes(32)
    after = None
    for number, value in enumerate(drawn):
        if hashes.count == moment and after is None:
            after = number
        hashes.add(value)
    assert after is not None
    again = RecentHashes(32)
    again.load_state(hashes.state(), moment)
    plain = RecentHashes(32)
    assert [plain.add(value) for value in drawn][after:] == [again.add(value) for value in drawn[after:]]


def test_what_no_moment_needs_is_forgotten() -> None:
    hashes = RecentHashes(160)
    for value in range(10_000):
        hashes.add(value)
        hashes.forget(max(0, hashes.count - 50))
    state = hashes.state()
    assert len(state["hashes"]) <= 160 + 50 + 2 * 10  # a generation is 10
    again = RecentHashes(160)
    again.load_state(state, 10_000 - 50)
    # It is in generation 995, and knows sixteen more: from 9,790 on.
    assert [again.add(value) for value in range(9_790, 9_952)] == [False] * 160 + [True] * 2
    assert again.add(9_789)
