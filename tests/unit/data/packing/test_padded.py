"""Padded batches of other projects, laid end to end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lion_lightning import PolicyModel
from lion_lightning.data.packing.padded import as_packed, pack_padded
from tests import tiny

PADDED: dict[str, Any] = {  # padding behind the first sequence, and before the second
    "input_ids": torch.tensor([[5, 6, 7, 8, 0], [0, 0, 9, 10, 11]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]),
    "labels": torch.tensor([[-100, -100, 7, 8, -100], [-100, -100, 9, -100, 11]]),
}


def test_sequences_are_laid_end_to_end_with_the_targets_of_their_labels() -> None:
    batch = pack_padded(PADDED)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert [(each.start, each.length, each.parent) for each in batch.segments] == [(0, 4, -1), (4, 3, -1)]
    # 7 and 8 are predicted from their predecessors, 11 from 10; 9 is the first of its sequence
    assert (batch.targets.tolist(), batch.logit_positions.tolist()) == ([7, 8, 11], [1, 2, 5])
    assert (batch.target_segments.tolist(), batch.sample_indices) == ([0, 0, 1], (0, 1))
    assert batch.capacity == 10


def test_the_loss_of_packed_sequences_is_that_of_transformers_on_the_padded_batch() -> None:
    model = tiny.policy(attention="sdpa").causal_lm
    behind = {name: PADDED[name].clone() for name in PADDED}  # transformers places tokens by their index: pad behind
    for name, filler in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        behind[name][1] = torch.tensor([*PADDED[name][1, 2:].tolist(), filler, filler])
    expected = model(**behind).loss
    model.set_attn_implementation("lion")
    for batch in (behind, PADDED):
        packed = PolicyModel(model)(pack_padded(batch)).values
        torch.testing.assert_close(-packed.mean(), expected, rtol=1e-5, atol=1e-6)


def test_without_mask_and_labels_all_tokens_count_and_none_is_a_target() -> None:
    for given in ({}, {"attention_mask": None, "labels": None}):
        batch = pack_padded({"input_ids": torch.tensor([[5, 6], [7, 8]]), **given})
        assert (len(batch.input_ids), len(batch.targets), batch.capacity) == (4, 0, 4)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"pixels": 1}, "has `input_ids` of shape"),
        ({"input_ids": torch.ones(3)}, "has `input_ids` of shape"),
        (PADDED | {"labels": torch.ones(2, 4)}, "have other shapes: (2, 5), (2, 5), (2, 4)"),
        (PADDED | {"attention_mask": torch.tensor([[1] * 5, [0] * 5])}, "sequence 1 of a padded batch is padding"),
        ([1, 2], "this one is a list"),
    ],
)
def test_other_batches_are_refused_with_their_reader(batch: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException) as error:
        as_packed(batch, SimpleNamespace())
    assert message in str(error.value)
    assert "take SimpleNamespace out of trainer.callbacks" in str(error.value)
