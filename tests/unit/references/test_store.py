"""The store of answers' log-probs: keyed by content, complete or not there at all, and never another model's."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lion_lightning.references.store import AnswerStore, answer_counts, answer_keys
from lion_lightning.types import PackedBatch, TokenLogps
from tests.tiny import merge, pairs

A, B, C = (pairs(lengths, seed=seed) for seed, lengths in enumerate([(3, 2, 4), (5, 1, 1), (2, 6, 3)]))
MODEL = {"weights": "abc"}


def add(store: AnswerStore, batch: PackedBatch, first: float) -> None:
    """Add a batch's answers; their targets have the log-probs ``first``, ``first`` + 1, ..."""
    values = first + torch.arange(float(len(batch.targets)))
    store.add(answer_keys(batch), answer_counts(batch), TokenLogps(values))


def filled(folder: Path) -> AnswerStore:
    store = AnswerStore(folder, MODEL)
    add(store, merge([A, B]), -100.0)
    store.flush()
    store.reload()
    return store


def test_values_come_back_in_the_order_asked_for_also_in_another_process(tmp_path: Path) -> None:
    filled(tmp_path)
    store = AnswerStore(tmp_path, MODEL)
    assert len(store) == 4
    of_a, of_b = [-100.0, -99.0, -98.0, -97.0, -96.0, -95.0], [-94.0, -93.0]  # answers of 2 and 4 tokens, of 1 and 1
    assert store.get(answer_keys(merge([A, B]))).values.tolist() == of_a + of_b
    assert store.get(answer_keys(merge([B, A]))).values.tolist() == of_b + of_a


def test_a_key_depends_on_tokens_and_targets_and_not_on_the_place_in_the_row() -> None:
    alone, first, second = answer_keys(A), answer_keys(merge([A, B]))[:2], answer_keys(merge([B, A]))[2:]
    assert (alone == first).all()
    assert (alone == second).all()
    changed = {
        0: [True, True],
        4: [True, False],
        8: [False, True],
    }  # a token of the prompt, of one answer, of the other
    for place, expected in changed.items():
        ids = A.input_ids.clone()
        ids[place] += 1
        assert (answer_keys(replace(A, input_ids=ids)) != alone).any(1).tolist() == expected
    whole = tuple(segment._replace(bidirectional=segment.parent < 0) for segment in A.segments)  # the prompt seen whole
    assert (answer_keys(replace(A, segments=whole)) != alone).any(1).tolist() == [True, True]
    assert (answer_keys(without_target(A, 1)) != alone).any(1).tolist() == [True, False]
    assert (answer_keys(without_target(A, 2)) != answer_keys(without_target(A, 3))).any(1).tolist() == [False, True]


def without_target(batch: PackedBatch, place: int) -> PackedBatch:
    keep = torch.arange(len(batch.targets)) != place
    names = ("logit_positions", "targets", "target_segments")
    return replace(batch, **{name: getattr(batch, name)[keep] for name in names})


def test_tokens_moved_over_a_boundary_give_another_key() -> None:
    longer, shorter = pairs((4, 2, 3)), pairs((3, 3, 3))  # the same nine tokens in a row
    assert torch.equal(longer.input_ids, shorter.input_ids)
    assert (answer_keys(longer) != answer_keys(shorter)).any(1).all()


def test_an_uncached_answer_is_an_error_that_counts(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.has(answer_keys(merge([A, C]))).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="no reference log-probs for 2 of the batch's 4 answers"):
        store.get(answer_keys(merge([A, C])))


def test_a_file_cut_short_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    (file,) = tmp_path.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-4])
    assert len(AnswerStore(tmp_path, MODEL)) == 0
    assert "is damaged" in caplog.text


def test_a_changed_byte_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    (file,) = tmp_path.glob("*.arrow")
    content = bytearray(file.read_bytes())
    content[content.index(np.float32(-97.0).tobytes())] ^= 1
    file.write_bytes(bytes(content))
    assert len(AnswerStore(tmp_path, MODEL)) == 0
    assert "not what was written" in caplog.text


def test_a_full_disk_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"cannot write reference log-probs \(No space left on device\); name"):
        filled(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["identity.json"]


@pytest.mark.parametrize("text", ["[]", "{", "null"])
def test_an_identity_that_is_other_json_is_one_line(tmp_path: Path, text: str) -> None:
    filled(tmp_path)
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(ValueError, match=r"identity\.json: .*; delete the folder"):
        AnswerStore(tmp_path, MODEL)


def test_a_store_of_another_model_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(ValueError, match=r"belong to another model or setting \(weights differ\)"):
        AnswerStore(tmp_path, {"weights": "xyz"})
    (tmp_path / "identity.json").unlink()
    with pytest.raises(ValueError, match="unknown model"):
        AnswerStore(tmp_path, MODEL)


def test_several_writers_and_the_same_answer_twice_make_one_store(tmp_path: Path) -> None:
    filled(tmp_path)
    other = AnswerStore(tmp_path, MODEL)
    add(other, merge([B, C]), 50.0)
    other.flush()
    store = AnswerStore(tmp_path, MODEL)
    assert len(store) == 6
    assert store.get(answer_keys(C)).values.tolist() == [52.0 + k for k in range(9)]


def test_a_process_adds_to_one_file_and_the_first_ranks_log_probs_are_found(tmp_path: Path) -> None:
    stores = [AnswerStore(tmp_path, MODEL, rank) for rank in (1, 0)]
    for number, store in enumerate(stores):
        for batch in (A, B):
            add(store, batch, 100.0 * number)
            store.flush()
    assert len(list(tmp_path.glob("*.arrow"))) == 2
    for store in stores:
        store.reload()
        assert store.get(answer_keys(B)).values.tolist() == [100.0, 101.0]  # of rank 0, which came second


def test_added_answers_are_not_asked_for_again_before_they_are_read(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    add(store, A, 0.0)
    assert store.has(answer_keys(merge([A, B]))).tolist() == [True, True, False, False]
    store.flush()
    assert store.has(answer_keys(A)).all()


def test_behind_half_a_block_another_file_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AnswerStore(tmp_path, MODEL)
    add(store, A, 0.0)
    store.flush()
    add(store, B, 50.0)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ValueError, match="No space left on device"):
            store.flush()
    (file,) = tmp_path.glob("*.arrow")
    os.truncate(file, file.stat().st_size - 20)
    store.flush()  # after the user has made room
    store.reload()
    assert store.get(answer_keys(merge([A, B]))).values.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 50.0, 51.0]


def test_a_file_that_a_slow_file_system_does_not_list_yet_is_read_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = AnswerStore(tmp_path, MODEL), AnswerStore(tmp_path, MODEL, rank=1)
    add(writer, A, 0.0)
    writer.flush()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    reader.reload([None, writer.own])
    assert reader.has(answer_keys(A)).all()


def test_nothing_added_writes_nothing_and_a_batch_without_answers_asks_for_nothing(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "new", MODEL)
    store.flush()
    assert not (tmp_path / "new").exists()
    assert len(store.get(answer_keys(A.without_targets())).values) == 0


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = AnswerStore(tmp_path / "file" / "store", MODEL)
    add(store, A, 0.0)
    with pytest.raises(ValueError, match="cannot write reference log-probs"):
        store.flush()


def test_keys_of_a_moved_batch_are_read_from_the_copy_that_stayed_and_a_changed_batch_forgets_it() -> None:
    moved = A.to("meta")  # has no values to read
    assert (answer_keys(moved) == answer_keys(A)).all()
    with pytest.raises(NotImplementedError):
        answer_keys(replace(moved, targets=moved.targets))


def test_an_open_store_holds_no_log_probs_in_memory(tmp_path: Path) -> None:
    number = 10**7
    store = AnswerStore(tmp_path, MODEL)
    keys = np.arange(2000, dtype=np.uint64).reshape(1000, 2)
    store.add(keys, np.full(1000, number // 1000), TokenLogps(torch.arange(number, dtype=torch.float32)))
    store.flush()
    before = resident_bytes()
    opened = AnswerStore(tmp_path, MODEL)
    assert resident_bytes() - before < 8 * 2**20  # of 40 MB
    assert opened.get(keys[-1:]).values[-2:].tolist() == [number - 2, number - 1]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
