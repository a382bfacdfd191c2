"""Models with recurrent layers in use: DPO steps packed and padded, generation, copies, files."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from transformers import AutoModelForCausalLM

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.references.base import AdapterOffReference, FrozenReference
from lion_lightning.references.cached import CachedReference
from tests.families import MIXERS, family
from tests.marks import slow
from tests.tiny import Rows, pairs, row, trainer

BATCHES = [pairs((5, 4, 7), (3, 6, 2), seed=1), pairs((4, 1, 3), seed=2), pairs((2, 5, 5), (6, 3, 3), seed=3)]


def trained(tokenizer: TokenizerSpec, attention: str, name: str, reference: Any, **spec: Any) -> dict[str, Tensor]:
    """Metrics of the last step and weights after a pass over the batches."""
    torch.manual_seed(0)
    module = DPOModule(
        PolicySpec(config=family(name), attention=attention, **spec),
        tokenizer=tokenizer,
        reference=reference,
        optimizer=lambda groups: SGD(groups, lr=0.1),
    )
    module.configure_model()
    assert module.policy_model.packed == (attention == "lion")
    run = trainer(max_epochs=1, num_sanity_val_steps=0)
    run.fit(module, Rows(BATCHES), Rows(BATCHES))
    metrics = {name: value for name, value in run.callback_metrics.items() if name.startswith(("train/", "val/"))}
    return metrics | {name: value.detach() for name, value in module.policy_model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "reference", "spec"),
    [
        ("qwen3_5_text", FrozenReference, {"recompute": "full"}),
        *slow(
            ("qwen3_5_text", CachedReference, {}),
            ("lfm2", AdapterOffReference, {"lora": LoRASpec(r=4), "recompute": "elementwise"}),
            ("falcon_h1", FrozenReference, {}),
            ("gpt_oss", FrozenReference, {}),
        ),
    ],
)
def test_dpo_steps_on_shared_prompts_equal_padded_ones(
    tokenizer: TokenizerSpec, name: str, reference: Any, spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LION_CACHE", str(tmp_path))
    packed = trained(tokenizer, "lion", name, reference(), **spec)
    padded = trained(tokenizer, "eager", name, reference(), **spec)
    assert packed.keys() == padded.keys()
    # Errors of rounding are those of what a value is made of: a ratio of log-probs, a weight of steps of the gradient.
    nats = max(value.abs().item() for key, value in padded.items() if "logps" in key)
    norm = max(1.0, padded["train/grad_norm"].item())
    for key, value in padded.items():
        is_weight, is_ratio = not key.startswith(("train/", "val/")), "rewards" in key or "log_ratio" in key
        made_of = norm if is_weight else nats if is_ratio else 1.0
        torch.testing.assert_close(packed[key], value, rtol=1e-4, atol=1e-5 * made_of, msg=key)


@pytest.mark.parametrize(
    "name", ["qwen3_5_text", "gpt_oss", *slow(*(name for name in MIXERS if name != "qwen3_5_text"))]
)
def test_generation_from_left_padded_prompts_is_the_models_own(name: str) -> None:
    torch.manual_seed(0)
    model: Any = PolicySpec(config=family(name)).build().eval().causal_lm
    ids = row((5, 9), (-1, -1)).input_ids
    prompts = torch.stack([torch.cat([torch.zeros(4, dtype=torch.int64), ids[:5]]), ids[5:]])
    mask = torch.ones_like(prompts)
    mask[0, :4] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    own = model.generate(prompts, **options)
    model.set_attn_implementation("eager")
    assert torch.equal(own, model.generate(prompts, **options))


@pytest.mark.parametrize("name", ["qwen3_5_text", *slow("lfm2", "falcon_h1", "mamba2")])
def test_names_of_weights_copies_and_files_are_those_of_the_plain_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = PolicySpec(config=family(name)).build()
    auto: Any = AutoModelForCausalLM
    assert policy.causal_lm.state_dict().keys() == auto.from_config(policy.causal_lm.config).state_dict().keys()
    batch = row((7, 5, 9, 4), (-1, -1, 1, 1))
    with torch.no_grad():
        before = policy(batch).values
        copy = deepcopy(policy)
        for parameter in policy.parameters():
            parameter.zero_()  # a copy that still ran the modules of its original would show it
        assert torch.equal(copy(batch).values, before)
        copy.causal_lm.save_pretrained(tmp_path)
        read = PolicySpec(path=str(tmp_path)).build()
        torch.testing.assert_close(read(batch).values, before, rtol=0, atol=1e-6)
