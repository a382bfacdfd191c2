"""What is said before the first step, and how much memory it reckons with."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from lion_lightning import PolicySpec
from lion_lightning.callbacks import StartupSummary
from lion_lightning.callbacks.memory import activation_bytes, optimizer_bytes
from lion_lightning.callbacks.startup import lines, summarize
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.models.lora import LoRASpec
from lion_lightning.ops.logprobs import LOGITS_KEPT, LOGITS_PER_TILE
from tests import tiny
from tests.unit.callbacks.conftest import Bench

DEVICE = "lion_lightning.callbacks.startup.device_memory"


def written(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bench.folder / "run" / "startup.json").read_text())
    return found


def test_the_figures_are_written_before_the_first_step(bench: Bench) -> None:
    module = bench.module()
    bench.fit(bench.trainer(StartupSummary(), accumulate_grad_batches=2, max_steps=1), module)
    found = written(bench)
    size = sum(parameter.numel() for parameter in module.parameters())
    assert found["policy"] == {
        "class": "LlamaForCausalLM",
        "parameters": size,
        "trainable": size,
        "dtype": "float32",
    }
    assert found["run"] == {"epochs": 1, "steps": 1, "accumulate": 2, "devices": 1}
    memory = found["memory"]
    assert memory["gradients"] == 4 * size
    assert memory["optimizer"] == 8 * size  # Adam's two moments
    assert memory["weights"] >= 4 * size  # and a few buffers
    parts = ("weights", "copies", "gradients", "optimizer", "reference", "activations")
    assert memory["total"] == sum(memory[part] for part in parts)


def test_a_packed_loader_is_told_by_rows_and_tokens(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unread:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, position: int) -> Any:
            raise AssertionError("the lengths say it all")

    loader = PackedLoader(Unread(), np.full(6, 12), capacity=32, batch_size=2)  # two documents of 12 a row
    monkeypatch.setattr("lightning.pytorch.Trainer.train_dataloader", property(lambda trainer: loader))
    trainer = bench.trainer(accumulate_grad_batches=3)
    monkeypatch.setattr("lion_lightning.callbacks.startup.run_length", lambda trainer: 7)
    found = summarize(trainer, bench.module())
    assert found["data"] == {"samples": 6, "tokens": 72, "rows": 3, "row_tokens": 32, "full": "75.0%"}
    assert found["run"] == {"epochs": 1, "steps": 7, "accumulate": 3, "devices": 1, "step_tokens": 2 * 32 * 3}
    assert "data       6 samples of 72 tokens in 3 rows of 32, 75.0% full" in lines(found)


def test_what_was_found_in_rows_is_told_source_by_source(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Data:
        def row_messages(self) -> dict[str, list[str]]:
            return {"sums": ["rows left out, an answer has no text: 2", "not used: hint"], "chats": []}

    monkeypatch.setattr("lion_lightning.callbacks.startup.run_length", lambda trainer: 7)
    monkeypatch.setattr("lightning.pytorch.Trainer.train_dataloader", property(lambda trainer: None))
    trainer: Any = bench.trainer()
    trainer.datamodule = Data()  # as Lightning attaches it
    found = summarize(trainer, bench.module())
    assert found["rows"]["sums"][1] == "not used: hint"
    assert lines(found)[-1] == "rows       sums: rows left out, an answer has no text: 2; not used: hint"


def test_adapters_have_gradients_and_states_and_the_base_has_not(bench: Bench) -> None:
    module = bench.module(lora=LoRASpec(r=2))
    bench.fit(bench.trainer(StartupSummary(), max_steps=1), module)
    found = written(bench)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert found["policy"]["trainable"] == trained < found["policy"]["parameters"]
    assert found["memory"]["gradients"] == 4 * trained
    assert found["memory"]["optimizer"] == 8 * trained


def test_more_than_the_device_has_is_a_warning(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DEVICE, lambda trainer: 1000)
    with pytest.warns(UserWarning, match=r"needs about .* GiB a device, which has 0\.0: lower data\.batch_size"):
        bench.fit(bench.trainer(StartupSummary(), max_steps=1))


FEW = r"the run makes 3 optimizer steps, which is few: raise trainer\.max_epochs, or lower"


def test_a_run_of_few_steps_is_told_so(bench: Bench) -> None:
    with pytest.warns(UserWarning, match=FEW):
        bench.fit(bench.trainer(StartupSummary(), accumulate_grad_batches=2))


@pytest.mark.parametrize("asked", [{"max_steps": 3}, {"limit_train_batches": 3}, {"overfit_batches": 3}])
def test_a_run_that_was_asked_for_few_steps_is_not(
    bench: Bench, asked: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    bench.fit(bench.trainer(StartupSummary(), **asked))
    assert not [warning for warning in recwarn if "which is few" in str(warning.message)]


def test_any_module_is_told(bench: Bench) -> None:
    trainer = bench.trainer(StartupSummary(), max_steps=1, limit_val_batches=0)
    trainer.fit(BoringModel())
    found = written(bench)
    assert found["policy"] == {"class": "BoringModel", "parameters": 66, "trainable": 66, "dtype": "float32"}
    assert (found["reference"], found["data"]) == ({}, {})


@pytest.mark.parametrize(
    ("optimizer", "ratio"),
    [
        (torch.optim.AdamW, 2),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1), 0),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), 1),
    ],
)
def test_the_optimizers_states_are_foretold_as_they_come(optimizer: Any, ratio: int) -> None:
    weight = nn.Parameter(torch.ones(32, 8))
    made = optimizer([weight])
    before = torch.get_rng_state()
    assert optimizer_bytes(made) == ratio * 32 * 8 * 4
    assert not made.state
    assert torch.equal(weight, torch.ones(32, 8))
    assert torch.equal(torch.get_rng_state(), before)
    weight.grad = torch.ones_like(weight)
    made.step()
    assert optimizer_bytes(made) == ratio * 32 * 8 * 4


def parts(model: Any) -> tuple[int, int, int]:
    """Numbers of a token and layer: as wide as the model, of attention, as wide as the feed-forward layer."""
    config = model.config
    heads = config.num_attention_heads + config.num_key_value_heads
    return config.hidden_size, 2 * heads * config.hidden_size // config.num_attention_heads, config.intermediate_size


def test_activations_by_hand_with_and_without_checkpointing() -> None:
    model: Any = LlamaForCausalLM(LlamaConfig(**tiny.config()))  # type: ignore[no-untyped-call]
    (width, attention, inner), depth = parts(model), model.config.num_hidden_layers
    kept = 2 * width * 12 + attention * 4 + 4 * inner * 4
    assert 10 * model.config.vocab_size < min(LOGITS_PER_TILE["cpu"], LOGITS_KEPT)
    logits = 3 * 4 * 10 * model.config.vocab_size  # a tile, its gradient, and what is kept
    assert activation_bytes(model, 10, "32-true") == 10 * kept * depth + logits
    model.gradient_checkpointing_enable()
    assert activation_bytes(model, 10, "32-true") == 10 * (width * 4 * depth + kept) + logits


@pytest.mark.parametrize(
    ("precision", "size", "outputs"), [("32-true", 4, 0), ("bf16-true", 2, 0), ("bf16-mixed", 2, 2)]
)
def test_activations_by_hand_of_layers_that_keep_less(precision: str, size: int, outputs: int) -> None:
    model: Any = PolicySpec(config=tiny.config()).build().causal_lm
    (width, attention, inner), depth = parts(model), model.config.num_hidden_layers
    kept = 2 * width * (4 + outputs) + (attention + 2 * inner) * size
    assert activation_bytes(model, 10, precision) == 10 * kept * depth + 3 * 4 * 10 * model.config.vocab_size
