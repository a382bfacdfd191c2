"""A base model's generation settings stay in exports; the tokens that end a turn join its stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, GenerationConfig

from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.generation.settings import stored_settings
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from tests.tiny import VOCABULARY, Rows, policy, row, tokenizer_folder, trainer

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


def settings(**given: Any) -> GenerationConfig:
    return GenerationConfig(**given)  # type: ignore[no-untyped-call]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model with two stops of its own beside the tokenizer's, 2."""
    made = policy(eos_token_id=50, bos_token_id=51).causal_lm
    made.generation_config = settings(eos_token_id=[50, 60], bos_token_id=51, **SAMPLING)
    made.save_pretrained(tmp_path / "base")
    tokenizer_folder(tmp_path / "base")
    return tmp_path / "base"


def exported(spec: PolicySpec, tokenizer: TokenizerSpec, folder: Path, adapter: bool = False) -> dict[str, Any]:
    """Export of an untrained policy: its generation settings, and the ids in its config."""
    module, run = SFTModule(spec, tokenizer=tokenizer), trainer(max_steps=1)
    run.fit(module, Rows([row()]))
    run.save_checkpoint(folder / "last.ckpt")
    out = export_checkpoint(folder / "last.ckpt", folder / "out", adapter)
    found: dict[str, Any] = json.loads((out / "generation_config.json").read_text("utf-8"))
    if not adapter:
        config = AutoConfig.from_pretrained(out)
        found["config"] = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    return found


def test_the_bases_stops_and_sampling_stay_and_the_end_of_turn_joins_them(base: Path, tmp_path: Path) -> None:
    found = exported(PolicySpec(str(base)), TokenizerSpec(str(base)), tmp_path)
    assert found["eos_token_id"] == [50, 60, 2]
    assert {name: found[name] for name in SAMPLING} == SAMPLING
    assert found["bos_token_id"] == 51  # the tokenizer has none
    assert found.get("pad_token_id") is None  # the tokenizer's, 2, ends answers, and the base had no such pad token
    assert found["config"] == (51, 2, 2)


def test_an_eos_token_in_place_of_the_tokenizers_is_the_configs_too(base: Path, tmp_path: Path) -> None:
    tokenizer = TokenizerSpec(str(base), special_tokens=("<end>",), eos_token="<end>")
    found = exported(PolicySpec(str(base)), tokenizer, tmp_path)
    assert found["eos_token_id"] == [50, 60, VOCABULARY, 2]
    assert found["config"] == (51, VOCABULARY, 2)


@pytest.mark.parametrize(
    ("own", "pad", "stops"),
    [
        ({"eos_token_id": 50}, None, [50, 2]),  # the tokenizer's pad token would be an end
        ({"eos_token_id": 2, "pad_token_id": 2}, 2, [2]),  # so it was
        ({"eos_token_id": 50, "pad_token_id": 7}, 7, [50, 2]),
        ({"eos_token_id": 50, "pad_token_id": 2}, None, [50, 2]),  # answers are trained to end with 2
    ],
)
def test_the_pad_token_is_an_end_only_if_it_was_one(
    base: Path, tmp_path: Path, own: dict[str, int], pad: int | None, stops: list[int]
) -> None:
    (base / "generation_config.json").write_text(json.dumps(own), encoding="utf-8")
    found = exported(PolicySpec(str(base)), TokenizerSpec(str(base)), tmp_path)
    assert (found.get("pad_token_id"), found["eos_token_id"]) == (pad, stops)


def test_adapters_get_the_bases_settings_too(base: Path, tmp_path: Path) -> None:
    spec = PolicySpec(str(base), lora=LoRASpec(r=2))
    found = exported(spec, TokenizerSpec(str(base)), tmp_path, adapter=True)
    assert (found["eos_token_id"], found["temperature"]) == ([50, 60, 2], 0.6)


def test_a_base_without_a_generation_config_keeps_the_stop_of_its_config(base: Path, tmp_path: Path) -> None:
    (base / "generation_config.json").unlink()
    found = exported(PolicySpec(str(base)), TokenizerSpec(str(base)), tmp_path)
    assert found["eos_token_id"] == [50, 2]
    assert "temperature" not in found


def test_random_weights_stop_where_the_tokenizer_says_alone(base: Path, tmp_path: Path) -> None:
    config = {"model_type": "llama", **json.loads((base / "config.json").read_text("utf-8"))}
    found = exported(PolicySpec(config=config), TokenizerSpec(str(base)), tmp_path)
    assert found["eos_token_id"] == [2]


def test_settings_that_transformers_finds_fault_with_do_not_cost_the_export(base: Path, tmp_path: Path) -> None:
    """Llama 2's own file has a temperature without sampling, which save_pretrained refuses."""
    (base / "generation_config.json").write_text('{"temperature": 0.9, "eos_token_id": 7}', encoding="utf-8")
    found = exported(PolicySpec(str(base)), TokenizerSpec(str(base)), tmp_path)
    assert (found["temperature"], found["eos_token_id"]) == (0.9, [7, 2])


@pytest.mark.parametrize(
    ("given", "left", "said"),
    [
        ([50, VOCABULARY, -1, 2**40], [50, 2], f"eos_token_id {VOCABULARY}, -1, {2**40}"),
        (VOCABULARY, [2], f"eos_token_id {VOCABULARY}"),
        (-1, [2], "eos_token_id -1"),
    ],
)
def test_stops_that_the_model_has_no_token_for_are_left_out_and_named(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: Any, left: list[int], said: str
) -> None:
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": given}), encoding="utf-8")
    # The added token gets the id of the first stop that is none.
    found = exported(PolicySpec(str(base)), TokenizerSpec(str(base), special_tokens=("<new>",)), tmp_path)
    assert found["eos_token_id"] == left
    assert f"the {said}, and its vocabulary the ids 0 to {VOCABULARY - 1}: left out" in caplog.text


def test_a_checkpoint_of_before_loses_such_stops_when_it_is_exported(base: Path, tmp_path: Path) -> None:
    module, run = SFTModule(PolicySpec(str(base)), tokenizer=TokenizerSpec(str(base))), trainer(max_steps=1)
    run.fit(module, Rows([row()]))
    run.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["lion"]["generation"]["eos_token_id"] = [50, 2**20]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    out = export_checkpoint(tmp_path / "old.ckpt", tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text("utf-8"))["eos_token_id"] == [50, 2]


def test_answers_end_at_the_bases_stops_and_are_drawn_as_asked(base: Path) -> None:
    served = RolloutPolicy(PolicySpec(str(base)).build().eval(), TokenizerSpec(str(base)).load())
    assert served.end_ids == (50, 60, 2)
    assert served.model.generation_config.temperature == 0.6
    with served.generating():
        assert served.model.generation_config.temperature is None
        ids = torch.tensor([[3, 4]])
        drawn = served.model.generate(ids, generation_config=settings(max_new_tokens=4, do_sample=False))
        greedy = ids
        for _ in range(4):
            greedy = torch.cat([greedy, served.model(greedy).logits[:, -1].argmax(-1, keepdim=True)], 1)
        assert drawn.tolist() == greedy.tolist()
    assert served.model.generation_config.eos_token_id == [50, 60]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "generation_config.json: "),
        ("[1]", "no JSON object"),
        ('{"eos_token_id": "</s>"}', "eos_token_id is '</s>'"),
        ('{"eos_token_id": [1, null]}', r"eos_token_id is \[1, None\]"),
    ],
)
def test_a_broken_file_is_named(text: str, said: str, base: Path) -> None:
    (base / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as caught:
        PolicySpec(str(base)).build()
    assert "\n" not in str(caught.value)


def test_what_no_generation_config_has_is_not_carried_on(base: Path) -> None:
    text = '{"custom_generate": "evil", "to_json_file": 1, "temperature": 0.5}'
    (base / "generation_config.json").write_text(text, encoding="utf-8")
    read = stored_settings(str(base))
    assert read.temperature == 0.5
    assert not hasattr(read, "custom_generate")
    assert callable(read.to_json_file)
