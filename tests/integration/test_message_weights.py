"""Weights of messages from a file to the loss, by the command line and by plain transformers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_lightning.cli import main
from tests.demo import copy_start

ASKED = {"role": "user", "content": "Spell tako."}
ROWS: list[list[dict[str, Any]]] = [
    [
        ASKED,
        {"role": "assistant", "content": "t a k o", "weight": 0.5},
        ASKED,
        {"role": "assistant", "content": "tako"},
    ],
    [ASKED, {"role": "assistant", "content": "no", "train": False}, ASKED, {"role": "assistant", "content": "o k a t"}],
    [ASKED, {"role": "assistant", "content": "a b", "weight": 2}],
]


def nll(model: Any, tokenizer: Any, turns: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and weight of each token of the answers, with the token that ends them."""
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    text = tokenizer.apply_chat_template(plain, tokenize=False)
    encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False, return_offsets_mapping=True)
    ids, weights = encoded.input_ids, torch.zeros(encoded.input_ids.shape[1])
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant":
            start = len(tokenizer.apply_chat_template(plain[:number], tokenize=False, add_generation_prompt=True))
            stop = text.index(tokenizer.eos_token, start) + len(tokenizer.eos_token)
            begins = encoded.offset_mapping[0, :, 0]
            weights[(begins >= start) & (begins < stop)] = float(turn.get("weight", turn.get("train", 1)))
    losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")
    return losses, weights[1:]


@pytest.mark.parametrize(("accumulate", "streaming"), [(1, True), (3, False)])
def test_the_first_step_has_the_weighted_loss_and_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, accumulate: int, streaming: bool
) -> None:
    start = copy_start(tmp_path / "start")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in ROWS))
    monkeypatch.chdir(tmp_path)
    config = {
        "seed_everything": 0,
        "model": {"class_path": "lion_lightning.SFTModule", "init_args": {"policy": str(start)}},
        "data": {
            "class_path": "lion_lightning.SFTDataModule",
            # a document each in three rows, or all of them in one
            "init_args": {
                "sources": [{"path": "rows.jsonl", "streaming": streaming}],
                "max_length": 40 if accumulate == 3 else 512,
            },
        },
        "trainer": {
            "max_steps": 1,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "accumulate_grad_batches": accumulate,
            "enable_checkpointing": False,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}},
        },
    }
    (tmp_path / "sft.yaml").write_text(json.dumps(config))
    assert main(["fit", "-c", "sft.yaml"]) == 0
    assert streaming or "3 samples of 78 tokens in 3 rows" in caplog.text
    with next(tmp_path.glob("lightning_logs/*/metrics.csv")).open() as file:
        (logged,) = list(csv.DictReader(file))

    model, tokenizer = AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    losses, weights = (
        torch.cat(column) for column in zip(*(nll(model, tokenizer, turns) for turns in ROWS), strict=True)
    )
    assert set(weights.tolist()) == {0, 0.5, 1, 2}
    expected = (losses * weights).sum() / weights.sum()
    torch.autograd.backward(expected)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert float(logged["train/loss"]) == pytest.approx(expected.item(), rel=1e-5)
    assert float(logged["train/perplexity"]) == pytest.approx(expected.exp().item(), rel=1e-5)
    assert float(logged["train/grad_norm"]) == pytest.approx(norm.item(), rel=1e-4)
