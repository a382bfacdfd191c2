"""Models that cannot run packed rows are found out, and run right-padded with equal results."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from lion_lightning.ops.layout import RowLayout
from lion_lightning.ops.padding import pad_row
from lion_lightning.types import segment_table
from tests.tiny import DOCUMENTS, TREE, alone, gradients, policy, row

UNPACKABLE: dict[str, Any] = {
    "state_space": {"model_type": "mamba", "state_size": 8},
    "convolutions": {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
    "attention_sinks": {"model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 4, "sliding_window": 6},
}


def test_sequences_are_leaves_with_their_ancestors_padded_on_the_right() -> None:
    # a document of 2, then a prompt of 2 (flat 2-3) with answers of 1 (flat 4) and 2 (flat 5-6)
    sequences = pad_row(RowLayout(segment_table((2, 2, 1, 2), (-1, -1, 1, 1))))
    assert sequences.source.tolist() == [[0, 1, 0, 0], [2, 3, 4, 0], [2, 3, 5, 6]]
    assert sequences.mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_restoring_takes_a_shared_prompt_once_so_that_its_gradient_counts_once() -> None:
    sequences = pad_row(RowLayout(segment_table((2, 2, 1, 2), (-1, -1, 1, 1))))
    padded = torch.arange(12.0).reshape(3, 4, 1).requires_grad_()
    restored = sequences.restore(padded)
    assert restored.flatten().tolist() == [0, 1, 4, 5, 6, 10, 11]
    gradient = torch.autograd.grad(restored.sum(), padded)[0]
    assert gradient.sum() == 7  # one for each of the seven tokens, none for padding or for the prompt's second copy
    assert gradient[1:, :2].sum() == 2


@pytest.mark.parametrize("placed", [DOCUMENTS, TREE], ids=["documents", "tree"])
@pytest.mark.parametrize("shape", UNPACKABLE)
def test_a_model_that_cannot_pack_runs_padded_with_a_warning_and_equal_results(
    shape: str, placed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lion_lightning"):
        model = policy(**UNPACKABLE[shape])
    assert not model.packed
    assert "every sequence runs alone in a padded batch" in caplog.text

    batch = row(*placed)
    padded = model(batch).values
    padded_gradients = gradients(model, padded)
    expected = alone(model.causal_lm, batch)
    torch.testing.assert_close(padded, expected, rtol=0, atol=1e-5)
    for name, gradient in gradients(model, expected).items():
        assert (padded_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp_min(1), name


def test_a_packable_model_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lion_lightning"):
        assert policy().packed
    assert caplog.text == ""
