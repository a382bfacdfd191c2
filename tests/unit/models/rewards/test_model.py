"""Rewards on packed trees are what transformers' classifiers give for each conversation alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.rewards.model import RewardModel, score_head
from lion_lightning.models.rewards.padding import padding_token
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.types import PackedBatch
from tests import tiny
from tests.families import family
from tests.marks import slow_but

FAMILIES = (
    "llama", "qwen2", "qwen3", "qwen3_moe", "qwen3_5_text", "gemma", "gemma2", "gemma3_text", "mistral", "mixtral",
    "phi3", "olmo2", "gpt_oss", "deepseek_v3",
)  # fmt: skip
TREE = tiny.row((6, 3, 5, 4, 7, 2, 5), (-1, 0, 0, 0, -1, 4, 4), seed=3)
"""A prompt with three answers, and one with two."""


def alone(model: Any, batch: PackedBatch) -> Tensor:
    """Rewards by the classifier itself, a conversation at a time, without padding."""
    scores = []
    for answer in batch.answers:
        spans = [batch.segments[batch.segments[answer].parent], batch.segments[answer]]
        ids = torch.cat([batch.input_ids[span.start : span.stop] for span in spans])
        model.config.get_text_config().pad_token_id = None  # all of it is text
        scores.append(model(input_ids=ids[None]).logits[0, 0])
    return torch.stack(scores)


def made(**settings: Any) -> RewardModel:
    torch.manual_seed(0)
    return RewardModelSpec(**settings).build()


@pytest.mark.parametrize("attention", ["lion", "eager"])  # packed, and padded
@pytest.mark.parametrize("name", slow_but(FAMILIES, "llama", "qwen3", "gemma3_text"))
def test_rewards_and_gradients_are_those_of_each_conversation_alone(name: str, attention: str) -> None:
    model = made(config=family(name), attention=attention)
    rewards = model(TREE)
    assert rewards.shape == (5,)
    found = tiny.gradients(model, rewards)
    expected = alone(model.causal_lm, TREE)
    torch.testing.assert_close(rewards, expected, rtol=1e-5, atol=1e-5)
    for place, gradient in tiny.gradients(model, expected).items():
        assert (found[place] - gradient).abs().max() <= 2e-5 * gradient.abs().max().clamp_min(1), place


def test_a_batch_that_supervises_nothing_has_no_rewards_and_still_reaches_every_weight() -> None:
    model = made(config=tiny.config())
    rewards = model(TREE.without_targets())
    assert rewards.shape == (0,)
    torch.autograd.backward(rewards.sum())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(bool(parameter.grad.any()) for parameter in model.parameters() if parameter.grad is not None)


def test_rewards_are_computed_in_fp32_under_autocast() -> None:
    model = made(config=tiny.config())
    hidden = torch.linspace(-1, 1, 32)[None]
    exact = (hidden * score_head(model.causal_lm)[1].weight).sum()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model._scores(hidden)[0], exact)


def test_half_precision_models_are_checked_to_their_rounding() -> None:
    model = made(config=tiny.config(), dtype="bfloat16")
    rewards = model(TREE)
    assert rewards.dtype == torch.float32
    expected = alone(model.causal_lm, TREE).float()
    torch.testing.assert_close(rewards, expected, rtol=0.05, atol=0.05)


def test_a_causal_lm_keeps_its_backbone_and_gets_a_new_head(tmp_path: Path) -> None:
    tiny.policy(tie_word_embeddings=False).causal_lm.save_pretrained(tmp_path)
    model = made(path=str(tmp_path))
    state, start = model.causal_lm.state_dict(), tiny.policy(tie_word_embeddings=False).causal_lm.state_dict()
    assert start.keys() - state.keys() == {"lm_head.weight"}
    assert state.keys() - start.keys() == {"score.weight"}
    assert all(torch.equal(state[name], start[name]) for name in state.keys() & start.keys())
    # initializer_range is 0.2: 32 draws have a deviation of about that
    assert 0.1 < float(state["score.weight"].detach().std()) < 0.3
    assert model.causal_lm.config.architectures == ["LlamaForSequenceClassification"]
    again = made(path=str(tmp_path))
    assert torch.equal(again.state_dict()["model.score.weight"], state["score.weight"])  # by the seed alone


def test_a_reward_model_is_trained_further_with_the_head_it_has(tmp_path: Path) -> None:
    first = made(config=tiny.config())
    first.causal_lm.save_pretrained(tmp_path)
    again = made(path=str(tmp_path))
    assert torch.equal(again(TREE), first(TREE))


def test_under_adapters_the_head_is_trained_in_full_and_nothing_else_of_the_base(tmp_path: Path) -> None:
    tiny.policy().causal_lm.save_pretrained(tmp_path)
    model = made(path=str(tmp_path), lora=LoRASpec(r=2))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {
        "model.base_model.model.score.modules_to_save.default.weight"
    }
    torch.testing.assert_close(model(TREE), alone(model.causal_lm, TREE))


WRONG_START: dict[str, tuple[dict[str, Any], str]] = {
    "a family without a classifier": ({"model_type": "granite"}, "no sequence classifier of type granite"),
    "an encoder": (
        {"model_type": "bert", "is_decoder": True},
        r"BertForSequenceClassification: its head \(classifier\) is not one linear layer without bias",
    ),
}


@pytest.mark.parametrize("name", WRONG_START)
def test_models_that_cannot_be_reward_models_are_refused_by_name(name: str) -> None:
    config, said = WRONG_START[name]
    with pytest.raises(ValueError, match=said):
        made(config=tiny.config(**config))


def test_a_reward_model_is_no_policy_and_a_classifier_of_several_classes_no_reward_model(tmp_path: Path) -> None:
    made(config=tiny.config()).causal_lm.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a reward model, which writes no answers; give a causal LM"):
        PolicySpec(str(tmp_path)).build()
    several = made(config=tiny.config()).causal_lm.config
    several.num_labels = 3
    several.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a classifier with 3 outputs, and a reward model has one"):
        RewardModelSpec(str(tmp_path)).load_config()


# --- padding


def test_padding_is_a_token_that_ends_no_text(tmp_path: Path) -> None:
    spec = TokenizerSpec(str(tiny.tokenizer_folder(tmp_path)))
    assert spec.load().pad_token == "<|im_end|>"  # as SmolLM2 has it; it ends every answer
    assert padding_token(spec.load()) == "<unk>"
    tokenizer = spec.load()
    tokenizer.pad_token = "w3"
    assert padding_token(tokenizer) == "w3"


def test_a_tokenizer_without_such_a_token_is_refused_with_the_way_out() -> None:
    words = Tokenizer(WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    only: Any = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>", bos_token="<|endoftext|>")  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"special_tokens: \['<\|pad\|>'\]"):
        padding_token(only)  # as GPT-2's
    only.add_special_tokens({"additional_special_tokens": ["<|pad|>"]})
    assert padding_token(only) == "<|pad|>"
