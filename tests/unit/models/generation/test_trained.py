"""The model that a LightningModule of any make trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lion_lightning import PolicyModel
from lion_lightning.models.generation.trained import find_policy, find_tokenizer
from lion_lightning.models.tokenizer import TokenizerSpec
from tests import tiny

REWARDS: Any = AutoModelForSequenceClassification


class Holder(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def test_the_one_policy_that_trains_is_found_at_any_depth_and_frozen_ones_do_not_count() -> None:
    policy, frozen = tiny.policy(), tiny.policy().requires_grad_(False)
    assert find_policy(Holder(reference=frozen, inner=Holder(model=policy))) is policy


def test_an_attribute_policy_model_comes_first() -> None:
    one, other = tiny.policy(), tiny.policy()
    holder: Any = Holder(one=one, other=other)
    holder.policy_model = other
    assert find_policy(holder) is other


def test_a_model_of_transformers_or_peft_gets_a_policy_around_it() -> None:
    model = tiny.policy().causal_lm
    plain = find_policy(Holder(model=model))
    assert isinstance(plain, PolicyModel)
    assert plain.causal_lm is model
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    found = find_policy(Holder(net=adapted))
    assert (found.model, found.has_adapters) == (adapted, True)


def test_a_model_that_stands_beside_what_holds_it_counts_once() -> None:
    policy = tiny.policy()
    model = policy.causal_lm
    assert find_policy(Holder(net=model, model=policy)) is policy
    compiled: Any = torch.compile(model, backend="eager")
    assert find_policy(Holder(backbone=Holder(lm=model), compiled=compiled)).model is model
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    assert find_policy(Holder(base=model, net=adapted)).model is adapted


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Holder(head=nn.Linear(2, 2)), "Holder holds no language model that trains; give it an attribute"),
        (
            Holder(net=REWARDS.from_config(AutoConfig.for_model(**tiny.shallow()))),
            "holds no language model that trains",
        ),
        (Holder(one=tiny.policy(), other=tiny.policy()), "Holder holds 2 language models that train; give it"),
        (SimpleNamespace(policy_model=nn.Linear(2, 2)), "SimpleNamespace.policy_model is a Linear; make it a"),
    ],
)
def test_none_and_several_are_refused_with_the_fix(module: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        find_policy(module)


def test_the_tokenizer_is_that_of_the_spec_else_of_the_module_else_of_the_data(tmp_path: Path) -> None:
    spec = TokenizerSpec(str(tiny.tokenizer_folder(tmp_path)))
    own, other = spec.load(), spec.load()
    data = SimpleNamespace(tokenizer=other)
    assert find_tokenizer(SimpleNamespace(tokenizer_spec=spec, tokenizer=own), data) not in (own, other)
    assert find_tokenizer(SimpleNamespace(tokenizer=own), data) is own
    assert find_tokenizer(SimpleNamespace(tokenizer="a path"), data) is other
    with pytest.raises(MisconfigurationException, match="SimpleNamespace has no tokenizer; set one in __init__"):
        find_tokenizer(SimpleNamespace())
