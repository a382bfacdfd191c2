"""Weights that are not those of the model, or no numbers, are refused wherever they are read, with a tensor's name."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lion_lightning.models.checkpoints.export import export_policy
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.checks import require_finite
from lion_lightning.models.weights.sharded_loading import ShardedLoadingError, WeightFiles, tensor_names
from lion_lightning.tools.chat.conversation import load_served
from lion_lightning.tools.evaluate.held_out import conversation_loss
from tests.tiny import config, policy, tokenizer_folder

NORM = "model.layers.1.input_layernorm.weight"
HEAD = "lm_head.weight"
Change = Callable[[dict[str, Tensor]], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer_folder(tmp_path)
    policy().causal_lm.save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, how: Change) -> None:
    weights = load_file(folder / "model.safetensors")
    how(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), encoding="utf-8")


def refused(folder: Path, *words: str, read: Callable[[], Any] | None = None) -> str:
    with pytest.raises(ValueError, match=words[0]) as caught:
        (read or PolicySpec(str(folder)).build)()
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nan(name: str, value: float = math.nan) -> Change:
    return lambda weights: weights[name].view(-1)[3:4].fill_(value)


WRONG: dict[str, tuple[Change, str]] = {
    "missing": (lambda weights: weights.pop(NORM), f"missing {NORM}"),
    "no head": (lambda weights: weights.pop(HEAD), f"missing {HEAD}"),
    "a score head": (lambda weights: weights.update(score=torch.zeros(1, 32)), "unexpected score"),
    "shape": (
        lambda weights: weights.update({NORM: torch.ones(31)}),
        f"of another shape {NORM} (stored [31], needed [32])",
    ),
    "NaN": (nan(NORM), f"{NORM} holds NaN"),
    "an infinity": (nan(HEAD, -math.inf), f"{HEAD} holds an infinity"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_not_the_whole_model_is_refused_with_the_tensors_name(name: str, folder: Path) -> None:
    how, said = WRONG[name]
    change(folder, how)
    refused(folder, str(folder), said)


@pytest.mark.parametrize("name", ["missing", "NaN"])
def test_every_reader_of_a_model_refuses_it(name: str, folder: Path) -> None:
    how, said = WRONG[name]
    change(folder, how)
    refused(folder, said, read=lambda: load_served(str(folder)))
    refused(folder, said, read=lambda: PolicySpec(str(folder), lora=LoRASpec(r=2)).build())


def test_held_out_loss_of_a_broken_model_is_no_number(folder: Path) -> None:
    from lion_lightning.data.sources.source import Source

    change(folder, nan(NORM))
    (folder / "rows.jsonl").write_text('{"instruction": "w3", "output": "w4"}\n', encoding="utf-8")
    refused(
        folder,
        f"{NORM} holds NaN",
        read=lambda: conversation_loss(str(folder), [Source(str(folder / "rows.jsonl"))], max_length=16),
    )


def test_layers_that_the_config_leaves_out_are_not_dropped_silently(folder: Path) -> None:
    set_config(folder, num_hidden_layers=1)
    refused(folder, "unexpected model.layers.1.", "and 6 more")
    set_config(folder, num_hidden_layers=-1)
    refused(folder, "num_hidden_layers is -1")
    set_config(folder, num_hidden_layers=3)
    refused(folder, "missing model.layers.2.")


def test_what_transformers_lets_be_left_over_is_harmless(folder: Path) -> None:
    change(folder, lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    PolicySpec(str(folder)).build()


def test_a_tied_head_may_be_left_out_of_the_files(tmp_path: Path) -> None:
    made = policy(tie_word_embeddings=True).causal_lm
    made.save_pretrained(tmp_path)
    assert HEAD not in load_file(tmp_path / "model.safetensors")
    loaded: Any = PolicySpec(str(tmp_path)).build().causal_lm
    assert torch.equal(loaded.lm_head.weight, made.lm_head.weight)


def test_a_head_that_differs_from_the_embedding_it_is_said_to_be_tied_to_stays_and_is_exported(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_config(folder, tie_word_embeddings=True)
    stored = load_file(folder / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        built = PolicySpec(str(folder)).build()
    assert "ties embedding and head" in caplog.text
    loaded: Any = built.causal_lm
    assert torch.equal(loaded.lm_head.weight, stored[HEAD])
    entry = {
        "policy": {"path": str(folder)},
        "tokenizer": {"path": str(folder)},
        "config": loaded.config.to_dict(),
    }
    state = {f"policy.model.{name}": tensor for name, tensor in built.model.state_dict().items()}
    export_policy({"lion": entry, "state_dict": state}, folder / "out")
    written = load_file(folder / "out" / "model.safetensors")
    assert torch.equal(written[HEAD], stored[HEAD])
    assert torch.equal(written["model.embed_tokens.weight"], stored["model.embed_tokens.weight"])
    assert json.loads((folder / "out" / "config.json").read_text("utf-8"))["tie_word_embeddings"] is False


def test_reading_in_pieces_sees_what_is_left_over(folder: Path) -> None:
    init_empty = PolicySpec(str(folder))._load(rows=101)
    with WeightFiles.find(str(folder)) as files:
        assert len(tensor_names(init_empty, files)) == len(files.names)
    change(folder, lambda weights: weights.update({"score.weight": torch.zeros(1, 32)}))
    with (
        WeightFiles.find(str(folder)) as files,
        pytest.raises(ShardedLoadingError, match=r"score\.weight, which is not"),
    ):
        tensor_names(init_empty, files)


@pytest.mark.parametrize("equal", [True, False])
def test_reading_in_pieces_takes_a_tied_weights_copy_but_no_other_head(equal: bool, folder: Path) -> None:
    set_config(folder, tie_word_embeddings=True)
    if equal:
        change(folder, lambda weights: weights.update({HEAD: weights["model.embed_tokens.weight"].clone()}))
    init_empty = PolicySpec(str(folder))._load(rows=101)
    with WeightFiles.find(str(folder)) as files:
        if equal:
            assert "lm_head.weight" not in tensor_names(init_empty, files).values()
        else:
            with pytest.raises(ShardedLoadingError, match=r"lm_head\.weight, which is not a parameter"):
                tensor_names(init_empty, files)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_one_number_that_is_none_is_found_in_every_dtype(dtype: torch.dtype) -> None:
    tensor = torch.ones(7, 3).to(dtype)
    require_finite("it", {"a": tensor, "empty": torch.ones(0), "counts": torch.ones(2, dtype=torch.int64)})
    broken = tensor.float().clone()
    broken[6, 2] = math.nan
    with pytest.raises(ValueError, match=r"^it: b holds NaN"):
        require_finite("it", {"a": tensor, "b": broken.to(dtype)})


def test_numbers_that_overflow_although_weights_are_finite_are_said_to_do_so(folder: Path) -> None:
    change(folder, lambda weights: weights[HEAD].fill_(3e38))
    refused(folder, "its logits are not finite, although its weights are")


def test_a_tensor_of_another_size_is_refused_before_it_takes_memory(folder: Path) -> None:
    set_config(folder, intermediate_size=10**12)  # 128 TB
    refused(folder, "of another shape model.layers.0.mlp.")
    set_config(folder, num_hidden_layers=10**9)
    refused(folder, "config has 1000000000 layers")


def test_an_index_beside_a_single_file_counts_for_nothing(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}  # of an earlier save; gone
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    PolicySpec(str(folder)).build()
    with WeightFiles.find(str(folder)) as files:
        assert len(files.names) == 21


INDEXES = {
    "": "not an index of weights",
    "[]": "not an index of weights",
    '{"weight_map": {"a": 3}}': "not an index of weights",
    '{"weight_map": {"a": "../model.safetensors"}}': "outside of the folder",
    '{"weight_map": {"a": "gone.safetensors"}}': "gone.safetensors",
}


@pytest.mark.parametrize("text", INDEXES)
def test_a_broken_index_of_weights_is_named(text: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    refused(folder, INDEXES[text], str(folder))


NONSENSE: dict[str, dict[str, Any]] = {
    "num_hidden_layers is 0": {"num_hidden_layers": 0},
    "vocab_size is -5": {"vocab_size": -5},
    "num_attention_heads is 0": {"num_attention_heads": 0},
    "did you mean 'llama'": {"model_type": "lama"},
    "cannot": {"hidden_size": "wide"},
    "policy": {"hidden_act": "nope"},
}


@pytest.mark.parametrize("said", NONSENSE)
def test_a_config_of_no_model_is_one_line(said: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=said) as mapped:
        PolicySpec(config=config() | NONSENSE[said]).build()
    set_config(folder, **NONSENSE[said])
    with pytest.raises(ValueError, match=said) as stored:
        PolicySpec(str(folder)).build()
    for error in (mapped, stored):
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


def test_adapters_are_no_model(tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "somewhere/else"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, "holds adapters")
    policy().causal_lm.save_pretrained(tmp_path)  # with a config of its own, transformers would put them on it
    refused(tmp_path, "holds adapters")


def test_the_padding_tokens_embedding_learns() -> None:
    made = policy(pad_token_id=2)
    ids = torch.tensor([[2, 3]])
    made.causal_lm(input_ids=ids).logits.sum().backward()
    assert made.causal_lm.get_input_embeddings().weight.grad[2].abs().sum() > 0
