"""A checkpoint becomes a folder that transformers loads with equal logits; bad input is one clear line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.generation.settings import generation_config
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from tests.marks import exhaustive, slow
from tests.tiny import VOCABULARY, Rows, config, policy, row, tokenizer_folder, trainer

TURNS = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5"}]


def trained(tmp_path: Path, spec: PolicySpec, special_tokens: tuple[str, ...] = ()) -> tuple[Path, SFTModule]:
    """A checkpoint after two steps, and the module that it was saved from."""
    tokenizer = TokenizerSpec(str(tokenizer_folder(tmp_path / "tokenizer")), special_tokens=special_tokens)
    torch.manual_seed(0)
    module = SFTModule(spec, tokenizer=tokenizer, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5))
    run = trainer(max_steps=2)
    rows = [row(seed=seed, vocabulary=VOCABULARY + len(special_tokens)) for seed in range(2)]
    run.fit(module, Rows(rows))
    run.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", module


def logits(model: Any, vocabulary: int = VOCABULARY) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=torch.arange(3, vocabulary)[None, :60]).logits
        last: Tensor = model.eval()(input_ids=torch.arange(vocabulary - 8, vocabulary)[None]).logits
    return torch.cat([result, last], dim=1)


SPECS = {
    "plain": PolicySpec(config=config(), attention="lion"),
    "tied": PolicySpec(config=config(tie_word_embeddings=True)),
    "lora": PolicySpec(config=config(), lora=LoRASpec(r=4)),
    "lora_tied": PolicySpec(config=config(tie_word_embeddings=True), lora=LoRASpec(r=4)),
    "whole_head": PolicySpec(config=config(), lora=LoRASpec(r=4, modules_to_save=["lm_head"])),
    "padded_attention": PolicySpec(config=config(), attention="sdpa"),
    "recomputed": PolicySpec(config=config(), recompute="full"),
}


NEW = ("<a>", "<b>")


@pytest.mark.parametrize(
    ("name", "new_tokens"),
    [
        *(("plain", ()), ("tied", NEW), ("lora", NEW), ("whole_head", NEW)),
        *slow(("plain", NEW), ("lora_tied", ()), ("padded_attention", ()), ("recomputed", ())),
        *exhaustive(("tied", ()), ("lora", ()), ("lora_tied", NEW)),
        *exhaustive(("whole_head", ()), ("padded_attention", NEW), ("recomputed", NEW)),
    ],
)
def test_exported_logits_equal_the_trained_models(name: str, new_tokens: tuple[str, ...], tmp_path: Path) -> None:
    checkpoint, module = trained(tmp_path, SPECS[name], new_tokens)
    vocabulary = VOCABULARY + len(new_tokens)
    out = export_checkpoint(checkpoint, tmp_path / "out")
    assert out == tmp_path / "out"
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    rounding = 1e-5 if SPECS[name].lora is None else 1e-4  # adding an adapter to its weight rounds once more
    expected = logits(module.policy_model.model, vocabulary)
    torch.testing.assert_close(logits(loaded, vocabulary), expected, rtol=1e-5, atol=rounding)
    assert list(out.glob("*.safetensors"))
    assert not list(out.glob("*.bin"))
    untrained = policy(**{key: value for key, value in SPECS[name].config.items() if key != "model_type"})  # type: ignore[union-attr]
    assert not torch.allclose(logits(loaded)[..., :VOCABULARY], logits(untrained.causal_lm))


def test_exporting_needs_neither_the_base_model_nor_its_folder(tmp_path: Path) -> None:
    base = tmp_path / "base"
    policy().causal_lm.save_pretrained(base)
    checkpoint, module = trained(tmp_path, PolicySpec(path=str(base)))
    base.rename(tmp_path / "gone")
    loaded: Any = AutoModelForCausalLM.from_pretrained(export_checkpoint(checkpoint, tmp_path / "out"))
    torch.testing.assert_close(logits(loaded), logits(module.policy_model.model))


def test_half_precision_weights_stay_half(tmp_path: Path) -> None:
    checkpoint, _ = trained(tmp_path, PolicySpec(config=config(), dtype="bfloat16"))
    out = export_checkpoint(checkpoint, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_tokenizer_template_and_end_of_turn_survive(tmp_path: Path) -> None:
    checkpoint, module = trained(tmp_path, SPECS["plain"], ("<a>",))
    out = export_checkpoint(checkpoint, tmp_path / "out")
    tokenizer, original = AutoTokenizer.from_pretrained(out), module.tokenizer_spec.load()
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == original.apply_chat_template(TURNS, tokenize=False)
    assert tokenizer.convert_tokens_to_ids("<a>") == VOCABULARY
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert GenerationConfig.from_pretrained(out).eos_token_id in (2, [2])


def test_generation_stops_at_the_templates_end_of_turn_even_where_it_is_not_the_eos_token(tmp_path: Path) -> None:
    folder = str(tokenizer_folder(tmp_path))
    tokenizer = TokenizerSpec(folder, special_tokens=("<eot>",)).load()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}<eot>{% endfor %}"
    settings = generation_config(tokenizer)
    assert settings.eos_token_id == [VOCABULARY]  # the tokenizer's EOS is also its pad token, and ends no turn
    assert settings.pad_token_id == 2
    assert generation_config(tokenizer, GenerationConfig(eos_token_id=2)).eos_token_id == [2, VOCABULARY]  # type: ignore[no-untyped-call]


def test_the_model_card_holds_policy_tokenizer_data_and_steps(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint, _ = trained(tmp_path, SPECS["plain"])
    content = torch.load(checkpoint, weights_only=True)
    content["lion"]["data"] = {"sources": [{"path": "problems.jsonl", "fraction": 0.25}]}
    torch.save(content, path)
    card = (export_checkpoint(path, tmp_path / "out") / "README.md").read_text("utf-8")
    assert '"path": "problems.jsonl"' in card
    assert '"fraction": 0.25' in card
    assert "Objective: NLLLoss over supervised tokens. Optimizer steps: 2." in card
    assert "SFTModule" in card
    assert json.dumps(asdict(SPECS["plain"])["attention"]) in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_a_missing_checkpoint_is_one_line_that_names_it(tmp_path: Path) -> None:
    refused(tmp_path / "no.ckpt", tmp_path / "out", "no such checkpoint")
    refused(tmp_path, tmp_path / "out", "a folder that holds no checkpoint")


def test_a_truncated_checkpoint_is_one_line_that_names_it(tmp_path: Path) -> None:
    checkpoint, _ = trained(tmp_path, SPECS["plain"])
    whole = checkpoint.read_bytes()
    for kept in (0, 10, len(whole) // 2):
        checkpoint.write_bytes(whole[:kept])
        refused(checkpoint, tmp_path / "out", "not a readable checkpoint")


def test_somebody_elses_checkpoint_is_refused(tmp_path: Path) -> None:
    for number, content in enumerate(({"state_dict": {}}, torch.zeros(3), {"lion": None})):
        path = tmp_path / f"{number}.ckpt"
        torch.save(content, path)
        refused(path, tmp_path / "out", "not (written by lion_lightning|a checkpoint of Lightning's)")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    checkpoint, _ = trained(tmp_path, SPECS["plain"])
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"].pop("policy.model.lm_head.weight")
    torch.save(content, checkpoint)
    refused(checkpoint, tmp_path / "out", "its weights do not fit the model: missing")


def test_an_output_that_cannot_be_written_is_one_line_that_names_it(tmp_path: Path) -> None:
    checkpoint, _ = trained(tmp_path, SPECS["plain"])
    (tmp_path / "file").write_text("in the way")
    refused(checkpoint, tmp_path / "file", f"cannot write to {tmp_path / 'file'}")
    refused(checkpoint, tmp_path / "file" / "out", "cannot write to")


def refused(checkpoint: Path, out: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        export_checkpoint(checkpoint, out)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)
