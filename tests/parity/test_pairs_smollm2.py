"""A real model on real pairs: rows that share a prompt give the log-probs and DPO loss of padded sequences."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoTokenizer

from lion_lightning.data.packing.collate import collate
from lion_lightning.losses.pairs.dpo import SigmoidLoss
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.types import AnswerLogps, PackedBatch, PairLogps, Sample, SampleSegment, TokenLogps
from tests.plain_pairs import padded_sides, plain_token_logps

MODEL = Path(os.environ.get("LION_SMOLLM2", "no-such-folder"))
DATA = Path(__file__).resolve().parents[2].parent / "shared/data/gsm8k/example_model_solutions.jsonl"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason="set LION_SMOLLM2 to a folder with SmolLM2-135M-Instruct"),
    pytest.mark.skipif(not DATA.is_file(), reason="needs GSM8K's model solutions in ../shared beside the repository"),
]


def right_and_wrong(count: int) -> list[Sample]:
    """The first problems that have both a right and a wrong model solution."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    samples: list[Sample] = []
    for line in DATA.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        solutions = [value for value in row.values() if isinstance(value, dict)]
        sides = [[s["solution"] for s in solutions if s["is_correct"] is truth][:1] for truth in (True, False)]
        if all(sides) and len(samples) < count:
            turn = [{"role": "user", "content": row["question"]}]
            prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
            answers = [tokenizer(text + tokenizer.eos_token)["input_ids"] for (text,) in sides]
            samples.append(Sample(tuple(map(piece, (prompt, *answers), (-1, 0, 0))), len(samples), pairs=((0, 1),)))
    return samples


def piece(ids: list[int], parent: int) -> SampleSegment:
    return SampleSegment(np.array(ids, np.int32), np.full(len(ids), parent == 0), parent)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return right_and_wrong(2)


@pytest.fixture(scope="module")
def batch(samples: list[Sample]) -> PackedBatch:
    return collate(samples, 4096)


def plain_values(model: PolicyModel, samples: list[Sample]) -> torch.Tensor:
    """Log-probs of all supervised tokens in the order of a packed batch: each pair's chosen, then its rejected."""
    attention = model.causal_lm.config._attn_implementation
    model.causal_lm.set_attn_implementation("eager")
    ids, attended, supervised = padded_sides(samples)
    logps = plain_token_logps(model.model, ids, attended)
    model.causal_lm.set_attn_implementation(attention)
    rows = [row[mask[1:]] for row, mask in zip(logps, supervised, strict=True)]
    pairs = len(samples)
    return torch.cat([part for pair in range(pairs) for part in (rows[pair], rows[pair + pairs])])


@pytest.fixture(scope="module")
def padded(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of padded sequences in fp32 and in fp64."""
    model = PolicySpec(path=str(MODEL)).build()
    with torch.no_grad():
        return plain_values(model, samples), plain_values(model.double(), samples)


@pytest.mark.parametrize("attention", ["lion", "lion_dense"])
def test_log_probs_and_loss_of_real_pairs_equal_padded_sequences(
    attention: str, samples: list[Sample], batch: PackedBatch, padded: tuple[torch.Tensor, torch.Tensor]
) -> None:
    plain, exact = padded
    model = PolicySpec(path=str(MODEL), attention=attention).build()
    assert model.packed
    with torch.no_grad():
        packed = model(batch)
    # each is a few 1e-5 away from the same model in fp64 (see test_smollm2.py); ours must not be the worse of the two
    torch.testing.assert_close(packed.values.double(), exact, rtol=0, atol=4e-5)
    assert (packed.values - exact).norm() <= (plain - exact).norm()
    expected = exact.float()

    policy = pair_logps(packed, batch)
    sums = torch.stack([part.sum() for part in torch.split(expected, answer_lengths(samples))]).reshape(-1, 2)
    # against a reference that is uniform over the vocabulary: the margin is then what the policy alone makes of it
    lengths = torch.tensor(answer_lengths(samples), dtype=torch.float32).reshape(-1, 2)
    uniform = -lengths * float(np.log(49_152))
    reference = PairLogps(*(answer(uniform[:, side], lengths[:, side]) for side in (0, 1)))
    margins = (sums[:, 0] - reference.chosen.sums) - (sums[:, 1] - reference.rejected.sums)
    # an answer's sum of a hundred such log-probs is off by a few 1e-4, and the loss by a tenth of that
    torch.testing.assert_close(SigmoidLoss(0.1)(policy, reference), -logsigmoid(0.1 * margins), rtol=0, atol=1e-4)


def answer_lengths(samples: list[Sample]) -> list[int]:
    return [len(part.input_ids) for sample in samples for part in sample.segments[1:]]


def answer(sums: torch.Tensor, counts: torch.Tensor) -> AnswerLogps:
    """Sums in equal parts over the tokens."""
    owners = torch.arange(len(sums)).repeat_interleave(counts.long())
    return AnswerLogps(TokenLogps((sums / counts)[owners]), owners, counts)


def watched_gradients(model: PolicyModel, values: torch.Tensor) -> list[torch.Tensor]:
    body: Any = model.causal_lm.base_model
    watched = [body.layers[0].self_attn.k_proj.weight, body.layers[29].mlp.down_proj.weight, body.norm.weight]
    weights = torch.linspace(-1, 2, len(values), dtype=values.dtype)
    return [gradient.double() for gradient in torch.autograd.grad((weights * values).sum(), watched)]


def test_gradients_of_a_real_pair_equal_padded_sequences(samples: list[Sample]) -> None:
    model = PolicySpec(path=str(MODEL)).build()
    pair = samples[:1]
    packed = watched_gradients(model, model(collate(pair, 1024)).values)
    # in fp64, since the padded computation of transformers is itself off by 1e-4 in fp32, twenty times what ours is
    expected = watched_gradients(model, plain_values(model.double(), pair))
    for got, want in zip(packed, expected, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()
