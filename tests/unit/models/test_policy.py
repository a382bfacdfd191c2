"""The policy's one forward, its probes, and generation from the same model."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM, LlamaModel

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.model_configs import logit_transform, without_dropout
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from tests.tiny import TREE, VOCABULARY, LargestTensor, alone, alone_all, config, policy, row

SOFTCAPPED: dict[str, Any] = {
    "model_type": "gemma2",
    "head_dim": 8,
    "sliding_window": 6,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}


@pytest.mark.parametrize(
    ("shape", "reference"),
    [({}, "sdpa"), ({"model_type": "mistral", "sliding_window": 6}, "sdpa"), (SOFTCAPPED, "eager")],
    ids=["llama", "sliding_window", "softcapped"],
)
def test_generation_from_left_padded_prompts_equals_the_plain_model(shape: dict[str, Any], reference: str) -> None:
    model = policy(**shape).causal_lm.eval()
    ids = row((5, 9), (-1, -1)).input_ids
    prompts = torch.stack([torch.cat([torch.zeros(4, dtype=torch.int64), ids[:5]]), ids[5:]])
    mask = torch.ones_like(prompts)
    mask[0, :4] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    own = model.generate(prompts, **options)
    model.set_attn_implementation(reference)
    assert torch.equal(own, model.generate(prompts, **options))
    alone_too = model.generate(ids[:5][None], max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert torch.equal(own[0, 9:], alone_too[0, 5:])


def test_generation_between_training_steps_changes_no_log_prob() -> None:
    model = policy()
    batch = row(*TREE)
    with torch.no_grad():
        before = model(batch).values
        model.causal_lm.generate(batch.input_ids[:5][None], max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert torch.equal(model(batch).values, before)


def test_only_supervised_tokens_reach_the_head_and_come_back_in_order() -> None:
    model = policy()
    batch = row(*TREE, supervised=[3, 13, 24])
    with torch.no_grad():
        values, top1_correct, *_ = model(batch)
        torch.testing.assert_close(values, alone(model.causal_lm, batch), rtol=0, atol=1e-5)
        assert top1_correct.shape == (3,)
        every = row(*TREE)
        picked = [(every.logit_positions == p).logical_and(every.targets == t).nonzero()[0] for p, t in _pairs(batch)]
        torch.testing.assert_close(values, model(every).values[torch.cat(picked)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [{}, SOFTCAPPED], ids=["llama", "softcapped"])
def test_entropy_is_given_where_it_is_asked_for(shape: dict[str, Any]) -> None:
    model, batch = policy(**shape), row(*TREE)
    with torch.no_grad():
        assert model(batch).entropy is None
        found = model(batch, partial(PolicyModel.logps, entropy=True)).entropy
        logps = alone_all(model.causal_lm, batch)
    assert found is not None
    torch.testing.assert_close(found, -(logps.exp() * logps).sum(-1), rtol=1e-5, atol=1e-5)


def _pairs(batch: Any) -> list[tuple[int, int]]:
    return list(zip(batch.logit_positions.tolist(), batch.targets.tolist(), strict=True))


def test_the_prompts_last_token_predicts_the_first_token_of_each_answer() -> None:
    batch = row((3, 2, 2), (-1, 0, 0))
    firsts = [int((batch.targets == batch.input_ids[start]).nonzero()[0]) for start in (3, 5)]
    assert batch.logit_positions[firsts].tolist() == [2, 2]
    model = policy()
    with torch.no_grad():
        logits = model.causal_lm(input_ids=batch.input_ids[:3][None]).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(model(batch).values[firsts], logits[batch.input_ids[[3, 5]]], rtol=0, atol=1e-5)


def test_a_batch_without_targets_gives_zero_gradients_and_still_touches_every_parameter() -> None:
    model = policy()
    model(row(*TREE).without_targets()).values.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_dense_attention_would_make_a_tokens_by_tokens_mask_and_segment_attention_makes_none() -> None:
    documents = row((40,) * 10, (-1,) * 10)
    sizes = {}
    for attention in ("lion_sdpa", "lion_dense"):
        model = policy(attention=attention, max_position_embeddings=64)
        with LargestTensor() as largest:
            model.hidden_states(documents)
        sizes[attention] = largest.numel
    assert sizes["lion_dense"] >= 400 * 400
    assert sizes["lion_sdpa"] < 400 * 400


class Shifted(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """A model that does to its logits what no config entry says."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(output.logits.shape[-1])
        return output


def test_logits_that_are_not_the_heads_are_an_error_not_wrong_log_probs() -> None:
    settings = config()
    with pytest.raises(ValueError, match="Shifted: its logits are not those of its head"):
        PolicyModel(Shifted(AutoConfig.for_model(settings.pop("model_type"), **settings)))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("bert", {"is_decoder": True}),  # a dense layer, an activation and a norm in front of its head
        (
            "llama4_text",
            {"num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 32},
        ),  # its base_model is itself
    ],
)
def test_models_whose_head_is_not_given_the_backbones_output(model_type: str, changes: dict[str, Any]) -> None:
    model = policy(model_type, **changes).eval()
    assert model.packed
    batch = row(*TREE)
    forward = model.causal_lm.get_output_embeddings().forward
    with torch.no_grad():
        torch.testing.assert_close(model(batch).values, alone(model.causal_lm, batch), rtol=0, atol=1e-5)
    assert model.causal_lm.get_output_embeddings().forward == forward


def test_a_model_whose_own_code_lets_packed_documents_meet_is_found_by_the_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = LlamaModel.forward

    def leaky(self: Any, *args: Any, layout: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)  # drops the layout, as a model that does not pass keywords on would

    monkeypatch.setattr(LlamaModel, "forward", leaky)
    model = policy()
    assert model.packed
    assert model.mixers.names == ["model.layers.0.self_attn", "model.layers.1.self_attn"]  # sequence by sequence
    batch = row(*TREE)
    with torch.no_grad():
        torch.testing.assert_close(model(batch).values, alone(model.causal_lm, batch), rtol=0, atol=1e-5)


def test_a_model_that_makes_its_own_mask_of_a_row_runs_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaModel.forward

    def leaky(self: Any, *args: Any, layout: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", leaky)
    model = policy()
    assert not model.packed
    batch = row(*TREE)
    with torch.no_grad():
        torch.testing.assert_close(model(batch).values, alone(model.causal_lm, batch), rtol=0, atol=1e-5)


def test_the_probe_leaves_the_mode_and_the_random_state_alone() -> None:
    torch.manual_seed(3)
    settings = config()
    made: Any = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model: Any = LlamaForCausalLM(made).train()  # type: ignore[no-untyped-call]
    model.set_attn_implementation("lion")
    state = torch.get_rng_state()
    assert PolicyModel(model).training
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config._attn_implementation == "lion"


def test_every_kind_of_dropout_in_a_config_is_off() -> None:
    made = without_dropout(AutoConfig.for_model("gpt2", resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2))
    assert (made.resid_pdrop, made.embd_pdrop, made.attn_pdrop) == (0.0, 0.0, 0.0)
    made = without_dropout(AutoConfig.for_model("llama", attention_dropout=0.2))
    assert made.attention_dropout == 0.0
    made = without_dropout(AutoConfig.for_model("gemma3", text_config={"attention_dropout": 0.2}))
    assert made.text_config.attention_dropout == 0.0


def test_dropout_is_off_so_that_train_and_eval_log_probs_are_equal() -> None:
    model = policy("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.5, attn_pdrop=0.5)
    with torch.no_grad():
        assert torch.equal(model.train()(row(*TREE)).values, model.eval()(row(*TREE)).values)


def test_logit_transforms_of_the_known_configs() -> None:
    assert logit_transform(AutoConfig.for_model("llama")) == (1.0, None)
    assert logit_transform(AutoConfig.for_model("cohere", logit_scale=0.0625)) == (0.0625, None)
    assert logit_transform(AutoConfig.for_model("granite", logits_scaling=8.0)) == (0.125, None)
    assert logit_transform(AutoConfig.for_model("gemma2", final_logit_softcapping=30.0)) == (1.0, 30.0)


def test_a_head_under_modules_to_save_gives_the_weight_that_trains() -> None:
    torch.manual_seed(0)
    model = PolicySpec(config=config(), lora=LoRASpec(r=4, modules_to_save=["lm_head"])).build()
    trained = {name: p for name, p in model.named_parameters() if "lm_head.modules_to_save" in name}
    assert len(trained) == 1
    torch.nn.init.normal_(next(iter(trained.values())))
    torch.testing.assert_close(model(row(*TREE)).values, alone(model.model, row(*TREE)), rtol=0, atol=1e-5)
    model(row(*TREE)).values.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained.values())


def test_an_adapted_head_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="leave the output head out"):
        PolicySpec(config=config(), lora=LoRASpec(r=4, target_modules=["q_proj", "lm_head"])).build()


def test_a_model_that_our_attention_cannot_run_runs_with_its_own(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"model_type": "mpt", "vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 1}
    model = PolicySpec(config=settings).build()
    assert "custom attention code, so policy.attention is ignored" in caplog.text
    assert not model.packed  # its ALiBi counts the row's tokens
    with torch.no_grad():
        torch.testing.assert_close(model(row(*TREE)).values, alone(model.causal_lm, row(*TREE)), rtol=0, atol=1e-5)


def test_configs_with_sizes_per_layer_are_read_without_asking_for_them() -> None:
    """Gemma 4's config refuses to give a size that its layers do not share."""
    assert policy("gemma4_text", head_dim=8, global_head_dim=16).packed
