"""Sequences of a row as right-padded batches, and models that run them because packed rows are beyond them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from lion_lightning.ops.layout import RowLayout
from lion_lightning.ops.padding import similar_lengths
from lion_lightning.types import segment_table
from tests.tiny import DOCUMENTS, TREE, assert_as_alone, policy, row

# a document of 2, then a prompt of 2 (flat 2-3) with answers of 1 (flat 4) and 2 (flat 5-6)
SMALL = RowLayout(segment_table((2, 2, 1, 2), (-1, -1, 1, 1)))
UNPACKABLE: dict[str, Any] = {
    "alibi": {"model_type": "bloom", "n_layer": 2, "n_head": 4},  # counts the row's tokens
    "window": {"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4},
}


def test_sequences_are_leaves_with_their_ancestors_padded_on_the_right() -> None:
    (batch,) = SMALL.padded.batches
    source, mask = batch.source, batch.mask
    assert source.tolist() == [[0, 1, 0, 0], [2, 3, 4, 0], [2, 3, 5, 6]]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    # seven distinct tokens, of which the prompt's two have a copy in the third sequence
    assert batch.places.tolist() == [0, 1, 4, 5, 6, 10, 11]
    assert batch.copies.tolist() == [[0, 1, 0, 0], [2, 3, 4, 0], [2, 3, 5, 6]]


def test_restoring_takes_a_shared_prompt_once_so_that_its_gradient_counts_once() -> None:
    padded = torch.arange(12.0).reshape(3, 4, 1).requires_grad_()
    restored = SMALL.padded.restore([padded])
    assert restored.flatten().tolist() == [0, 1, 4, 5, 6, 10, 11]
    gradient = torch.autograd.grad(restored.sum(), padded)[0]
    assert gradient.sum() == 7  # one for each of the seven tokens, none for padding or for the prompt's second copy
    assert gradient[1:, :2].sum() == 2


def test_batches_of_similar_lengths_are_at_most_a_quarter_padding() -> None:
    lengths = (100, 3, 60, 80, 4, 70)
    groups = [[len(s) for s in group] for group in similar_lengths([torch.zeros(length) for length in lengths])]
    assert groups == [[100, 80, 70, 60], [4, 3]]  # 310 of 400; with the 4 it would be 314 of 500; 7 of 8
    layout = RowLayout(segment_table(lengths, (-1,) * 6))
    batches = layout.padded_groups
    assert [tuple(batch.source.shape) for batch in batches.batches] == [(4, 100), (2, 4)]
    tokens = torch.arange(317.0)[:, None]
    assert torch.equal(batches.restore([tokens[batch.source] for batch in batches.batches]), tokens)


@pytest.mark.parametrize("placed", [DOCUMENTS, TREE], ids=["documents", "tree"])
@pytest.mark.parametrize("shape", UNPACKABLE)
def test_a_model_that_cannot_pack_runs_padded_with_a_warning_and_equal_results(
    shape: str, placed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lion_lightning"):
        model = policy(**UNPACKABLE[shape])
    assert not model.packed
    assert "every sequence runs alone in a padded batch" in caplog.text
    assert_as_alone(model, row(*placed))


def test_a_packable_model_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lion_lightning"):
        assert policy().packed
    assert caplog.text == ""
