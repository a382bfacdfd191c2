"""A real model: packed log-probs and gradients equal those of each document alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from tests.tiny import DOCUMENTS, TREE, alone, gradients, row

FOLDER = Path(os.environ.get("LION_SMOLLM2", "no-such-folder"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="set LION_SMOLLM2 to a folder with SmolLM2-135M-Instruct"),
]
LONG = ((120, 33, 1, 90), (-1, -1, -1, -1))


@pytest.mark.parametrize("placed", [LONG, DOCUMENTS, TREE], ids=["long", "documents", "tree"])
@pytest.mark.parametrize("attention", ["lion", "lion_dense"])
def test_packed_log_probs_of_a_real_model_equal_each_document_alone(attention: str, placed: Any) -> None:
    model = PolicySpec(path=str(FOLDER), attention=attention).build()
    assert model.packed
    with torch.no_grad():
        batch = row(placed[0], placed[1], vocabulary=49_152)
        packed = model(batch).values
        model.causal_lm.set_attn_implementation("eager")
        expected = alone(model.causal_lm, batch)
    # log-probs down to -29 after 30 layers in fp32: each side is up to 4e-5 away from the same model in fp64
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-4)


def test_adapter_gradients_of_a_real_model_equal_each_document_alone() -> None:
    torch.manual_seed(0)
    model = PolicySpec(path=str(FOLDER), lora=LoRASpec(r=4)).build()
    batch = row(*TREE, vocabulary=49_152)
    packed = gradients(model, model(batch).values)
    expected = gradients(model, alone(model.model, batch))
    for name, gradient in expected.items():
        assert (packed[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
