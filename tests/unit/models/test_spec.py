"""Building a policy: what is refused, and what each setting does."""

from __future__ import annotations

import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from tests.tiny import TREE, VOCABULARY, alone, config, policy, row, tokenizer_folder


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, PreTrainedModel]:
    model = policy().causal_lm
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_a_folder_loads_with_its_own_weights(saved: tuple[Path, PreTrainedModel]) -> None:
    folder, model = saved
    loaded = PolicySpec(path=str(folder)).build()
    with torch.no_grad():
        torch.testing.assert_close(loaded(row(*TREE)).values, alone(model, row(*TREE)), rtol=0, atol=1e-5)


def test_a_config_starts_from_random_weights_even_where_the_folder_has_some(
    saved: tuple[Path, PreTrainedModel],
) -> None:
    folder, model = saved
    built: Any = PolicySpec(config=str(folder)).build().causal_lm
    assert built.config.hidden_size == 32
    assert not torch.equal(built.lm_head.weight, cast(Any, model).lm_head.weight)


@pytest.mark.parametrize("spec", [PolicySpec(), PolicySpec(path="somewhere", config=config())], ids=["neither", "both"])
def test_exactly_one_of_path_and_config_must_be_given(spec: PolicySpec) -> None:
    with pytest.raises(ValueError, match=r"give either `path`.*or `config`"):
        spec.build()


def test_a_mapping_without_a_model_type_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"policy\.config: a mapping needs `model_type`"):
        PolicySpec(config={"hidden_size": 32}).build()


def test_a_folder_that_holds_no_model_yet_is_told_from_one_with_an_odd_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model \(no config\.json\); give a folder such as `lion export`"):
        PolicySpec(path=str(tmp_path)).build()


def test_pickled_weights_are_refused_with_the_fix(saved: tuple[Path, PreTrainedModel]) -> None:
    folder, model = saved
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no safetensors weights; convert them") as caught:
        PolicySpec(path=str(folder)).build()
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["./no-such-model", "/no/such/model"])
def test_a_missing_folder_is_one_line_that_names_it(folder: str) -> None:
    with pytest.raises(ValueError, match=f"{folder} does not exist; give the folder") as caught:
        PolicySpec(path=folder).build()
    assert "\n" not in str(caught.value)


def test_a_broken_weights_file_is_one_line_that_names_it(saved: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = saved
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"policy: cannot load {folder}") as caught:
        PolicySpec(path=str(folder)).build()
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_does_not_run_unless_asked_for(tmp_path: Path) -> None:
    settings = {"model_type": "homemade", "auto_map": {"AutoConfig": "made.Made", "AutoModelForCausalLM": "made.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "made.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    with pytest.raises(ValueError, match="comes with custom code; read it, then set `trust_remote_code`"):
        PolicySpec(config=str(tmp_path)).build()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_weights_have_the_asked_dtype_and_log_probs_are_fp32(name: str, saved: tuple[Path, PreTrainedModel]) -> None:
    folder, model = saved
    for spec in (PolicySpec(path=str(folder), dtype=name), PolicySpec(config=config(), dtype=name)):  # type: ignore[arg-type]
        built = spec.build()
        assert {p.dtype for p in built.parameters()} == {getattr(torch, name)}
        assert built(row(*TREE)).values.dtype == torch.float32
    assert model.dtype == torch.float32


@pytest.mark.parametrize("attention", ["lion", "lion_sdpa", "lion_dense", "sdpa", "eager"])
def test_the_asked_attention_is_the_one_that_runs(attention: str) -> None:
    model = PolicySpec(config=config(), attention=attention).build()
    assert model.causal_lm.config._attn_implementation == attention
    assert model.packed == attention.startswith("lion")


def test_liger_that_is_not_installed_is_said_rather_than_ignored(caplog: pytest.LogCaptureFixture) -> None:
    if find_spec("liger_kernel") is not None:
        pytest.skip("liger-kernel is installed")
    with caplog.at_level(logging.WARNING, "lion_lightning"):
        PolicySpec(config=config(), liger=True).build()
    assert "liger-kernel is not installed" in caplog.text


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_adapters_and_the_rows_of_new_tokens_in_embedding_and_head(tied: bool, tmp_path: Path) -> None:
    tokenizer = TokenizerSpec(str(tokenizer_folder(tmp_path)), special_tokens=("<a>", "<b>")).load()
    new_ids = [VOCABULARY, VOCABULARY + 1]
    torch.manual_seed(0)
    model = PolicySpec(config=config(tie_word_embeddings=tied), lora=LoRASpec(r=4)).build(tokenizer, new_ids)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = [name for name in trained if "lora_" not in name]
    assert all("token_adapter" in name for name in rows)
    assert [trained[name].shape for name in rows] == [(2, 32)] * (1 if tied else 2)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    batch = row(vocabulary=VOCABULARY + 2, seed=7)
    batch.input_ids[[3, 9, 15]] = torch.tensor([*new_ids, new_ids[0]])
    for _ in range(2):  # the second step moves lora_A too, whose gradient is zero while lora_B is
        optimizer.zero_grad()
        (-model(batch).values).sum().backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(trained)
    torch.testing.assert_close(model(batch).values, alone(model.model, batch), rtol=0, atol=2e-5)

    merged = model.model.merge_and_unload()  # type: ignore[operator]
    for weight in (merged.get_input_embeddings().weight, merged.get_output_embeddings().weight):
        moved = (weight[new_ids] - weight[:VOCABULARY].mean(0)).abs().amax(1)
        assert moved.min() > 1e-3  # both tokens have left the mean that they started at
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied


def test_lora_settings_come_back_from_plain_mappings() -> None:
    spec = PolicySpec(config=config(), lora={"r": 3, "alpha": 6.0})  # type: ignore[arg-type]
    assert spec.lora == LoRASpec(r=3, alpha=6.0)


WRONG_SPECS: dict[str, dict[str, Any]] = {
    "policy: there is no setting 'pathh'; did you mean 'path'": {"pathh": "x"},
    "policy: there is no setting 'load_in_4bit'; there are path, config": {"path": "x", "load_in_4bit": True},
    "policy.dtype: 'float8' cannot be used; give float32, bfloat16, float16": {"dtype": "float8"},
    "policy.path: 3 cannot be used; give text or null": {"path": 3},
    "policy.config: [1] cannot be used; give text or a mapping or null": {"config": [1]},
    "policy.liger: 'yes' cannot be used; give true or false": {"liger": "yes"},
    "policy.recompute: 'some' cannot be used; give none, elementwise, full": {"recompute": "some"},
    "policy.trainable_rows: 'all' cannot be used": {"trainable_rows": "all"},
    "policy.trainable_rows: [1.5] cannot be used": {"trainable_rows": [1.5]},
    "policy.lora: there is no setting 'rank'; there are r, alpha": {"lora": {"rank": 8}},
    "policy.lora.r: 'big' cannot be used; give a whole number": {"lora": {"r": "big"}},
    "policy.lora.target_modules: 3 cannot be used; give text or a list of text": {"lora": {"target_modules": 3}},
    "policy.quantization: there is no setting 'bits'": {"quantization": {"bits": 8}},
    "policy: a mapping, which may come from a checkpoint, cannot set `trust_remote_code`": {"trust_remote_code": True},
}


@pytest.mark.parametrize("said", WRONG_SPECS)
def test_a_wrong_setting_is_named_with_what_would_do(said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        PolicySpec.of(WRONG_SPECS[said])


@pytest.mark.parametrize("given", [3, None, [1], ("a",)])
def test_what_is_no_policy_is_one_line(given: Any) -> None:
    with pytest.raises(ValueError, match=r"policy: .* is not a mapping of settings"):
        PolicySpec.of(given)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("r", 0), ("r", -1), ("alpha", 0.0), ("alpha", float("nan")), ("dropout", 1.0), ("dropout", -0.1)],
)
def test_adapters_that_could_learn_nothing_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"policy\.lora\.{setting} is {value}"):
        LoRASpec(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"modules_to_save": ["lm_head", "hed"]}, r"policy\.lora\.modules_to_save: the model has no layer 'hed'"),
        ({"target_modules": ["q_proj", "nope"]}, r"policy\.lora\.target_modules: the model has no layer 'nope'"),
        ({"target_modules": "nope.*"}, r"policy\.lora\.target_modules: the model has no layer 'nope"),
        ({"target_modules": "("}, r"policy\.lora\.target_modules: '\(' is not a regular expression"),
        ({"target_modules": []}, r"policy\.lora\.target_modules is empty"),
    ],
)
def test_layers_that_the_model_does_not_have_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        PolicySpec(config=config(), lora=LoRASpec(**settings)).build()
    assert "\n" not in str(caught.value)


def test_rows_to_train_by_number_list_and_name() -> None:
    model = policy().causal_lm
    assert PolicySpec(config=config()).rows_to_train(model, [5]) is None
    assert PolicySpec(config=config(), trainable_rows=98).rows_to_train(model, []) == [98, 99, 100]
    assert PolicySpec(config=config(), trainable_rows=[1, 7]).rows_to_train(model, []) == [1, 7]
    assert PolicySpec(config=config(), trainable_rows="new").rows_to_train(model, [5]) == [5]


def test_a_part_of_a_model_that_transformers_does_not_load_alone_is_refused_when_it_is_built() -> None:
    text = {**config(), "model_type": "mllama_text_model", "pad_token_id": 0, "cross_attention_layers": []}
    settings = {"model_type": "mllama", "text_config": text}
    with pytest.raises(ValueError, match="transformers loads no causal LM of type mllama_text_model"):
        PolicySpec(config=settings).build()


def test_adapters_on_all_linear_layers_leave_out_what_is_linear_in_name_only() -> None:
    experts = {"num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 32}
    policy = PolicySpec(config=config("llama4_text", **experts), lora=LoRASpec(r=2)).build()
    adapted = {name.rpartition(".lora_A")[0] for name, _ in policy.named_parameters() if "lora_A" in name}
    assert any(name.endswith("q_proj") for name in adapted)
    assert not any(name.endswith("router") for name in adapted)  # a linear layer that gives a tuple
