"""The store of pairs' log-probs: keyed by content, whole or not there at all, and never another model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from lion_lightning.references import store as pair_store
from lion_lightning.references.store import AnswerStore, answer_keys
from lion_lightning.types import AnswerLogps, PackedBatch, PairLogps
from tests.tiny import merge, pairs

A, B, C = (pairs(lengths, seed=seed) for seed, lengths in enumerate([(3, 2, 4), (5, 1, 1), (2, 6, 3)]))
MODEL = {"weights": "abc"}


def logps(first: float, count: int = 1) -> PairLogps:
    """Distinct numbers in every field: 8 from ``first`` on for the first pair, then 8 more."""
    values = first + torch.arange(8.0 * count).reshape(count, 2, 4)
    return PairLogps(*(AnswerLogps(*side.unbind(1)) for side in values.unbind(1)))


def filled(folder: Path) -> AnswerStore:
    store = AnswerStore(folder, MODEL)
    store.add(answer_keys(merge([A, B])), logps(-100.0, 2))
    store.flush()
    store.reload()
    return store


def flat(got: PairLogps) -> list[list[float]]:
    return torch.stack([torch.stack(list(side), 1) for side in got], 1).flatten(1).tolist()


def test_values_come_back_in_the_order_asked_for_also_in_another_process(tmp_path: Path) -> None:
    filled(tmp_path)
    store = AnswerStore(tmp_path, MODEL)
    assert len(store) == 2
    expected = [[-100.0 + k for k in range(8)], [-92.0 + k for k in range(8)]]
    assert flat(store.get(answer_keys(merge([A, B])))) == expected
    assert flat(store.get(answer_keys(merge([B, A])))) == expected[::-1]


def test_a_key_depends_on_tokens_and_targets_and_not_on_the_place_in_the_row() -> None:
    alone, first, second = answer_keys(A)[0], answer_keys(merge([A, B]))[0], answer_keys(merge([B, A]))[1]
    assert (alone == first).all()
    assert (alone == second).all()
    for place in (0, 4, 8):  # a token of the prompt, of the chosen and of the rejected answer
        ids = A.input_ids.clone()
        ids[place] += 1
        assert (answer_keys(replace(A, input_ids=ids))[0] != alone).any()
    assert (answer_keys(without_target(A, 1))[0] != alone).any()
    assert (answer_keys(without_target(A, 2))[0] != answer_keys(without_target(A, 3))[0]).any()


def without_target(batch: PackedBatch, place: int) -> PackedBatch:
    keep = torch.arange(len(batch.targets)) != place
    names = ("logit_positions", "targets", "target_segments")
    return replace(batch, **{name: getattr(batch, name)[keep] for name in names})


def test_tokens_moved_over_a_boundary_give_another_key() -> None:
    longer, shorter = pairs((4, 2, 3)), pairs((3, 3, 3))  # the same nine tokens in a row
    assert torch.equal(longer.input_ids, shorter.input_ids)
    assert (answer_keys(longer)[0] != answer_keys(shorter)[0]).any()


def test_a_missing_pair_is_an_error_that_counts(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.has(answer_keys(merge([A, C]))).tolist() == [True, False]
    with pytest.raises(ValueError, match="no reference log-probs for 1 of the batch's 2 pairs"):
        store.get(answer_keys(merge([A, C])))


def test_a_file_cut_short_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    assert len(AnswerStore(tmp_path, MODEL)) == 0
    assert "is damaged" in caplog.text


def test_a_changed_byte_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(bytes(content))
    assert len(AnswerStore(tmp_path, MODEL)) == 0
    assert "not what was written" in caplog.text


def test_a_full_disk_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(pair_store, "save_file", full)
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


def test_several_writers_and_the_same_pair_twice_make_one_store(tmp_path: Path) -> None:
    filled(tmp_path)
    other = AnswerStore(tmp_path, MODEL)
    other.add(answer_keys(merge([B, C])), logps(50.0, 2))
    other.flush()
    store = AnswerStore(tmp_path, MODEL)
    assert len(store) == 3
    assert flat(store.get(answer_keys(C))) == [[58.0 + k for k in range(8)]]
    assert np.unique(store._keys, axis=0).shape == (3, 2)


def test_nothing_added_writes_nothing_and_a_batch_without_pairs_asks_for_nothing(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "new", MODEL)
    store.flush()
    assert not (tmp_path / "new").exists()
    assert len(store.get(answer_keys(A.without_targets())).chosen.sums) == 0


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = AnswerStore(tmp_path / "file" / "store", MODEL)
    store.add(answer_keys(A), logps(0.0))
    with pytest.raises(ValueError, match="cannot write reference log-probs"):
        store.flush()


def test_keys_of_a_moved_batch_are_read_from_the_copy_that_stayed_and_a_changed_batch_forgets_it() -> None:
    moved = A.to("meta")  # has no values to read
    assert (answer_keys(moved) == answer_keys(A)).all()
    with pytest.raises(NotImplementedError):
        answer_keys(replace(moved, targets=moved.targets))
