"""An export loads in transformers alone: equal logits, equal greedy answers, same tokenizer; ten families of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.generation.greedy import generate_answers
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from tests.tiny import LEARNED_POSITIONS, SOFTCAPPED, Rows, config, row, tokenizer_folder, trainer

EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "gemma2": SOFTCAPPED,
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "phi3": {"pad_token_id": 0},
    "gpt2": LEARNED_POSITIONS,
    "mixtral": EXPERTS,
    "gpt_oss": {**EXPERTS, "head_dim": 8, "sliding_window": 4},
    "qwen3_next": {
        **EXPERTS,
        "head_dim": 8,
        "num_hidden_layers": 4,  # the fourth has attention
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}
PROMPTS = ["w5 w6", "w9 w8 w7 w6"]
FAST = ("llama", "qwen3_next")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "family", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_the_reloaded_export_is_the_trained_model(family: str, lora: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, spec = tmp_path / "base", config(**{"model_type": family, **FAMILIES[family]})
    PolicySpec(config=spec).build().causal_lm.save_pretrained(base)
    tokenizer_spec = TokenizerSpec(str(tokenizer_folder(base)), special_tokens=("<new>",))
    module = SFTModule(
        PolicySpec(str(base), lora=LoRASpec(r=2, target_modules="all-linear") if lora else None),
        tokenizer=tokenizer_spec,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    run = trainer(max_steps=2)
    run.fit(module, Rows([row(), row(seed=1)]))
    run.save_checkpoint(tmp_path / "last.ckpt")
    out = export_checkpoint(tmp_path / "last.ckpt", tmp_path / "out")

    # Gemma 2 caps its scores, which transformers' default attention does not do
    reloaded: Any = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    original: Any = tokenizer_spec.load()
    assert tokenizer.get_vocab() == original.get_vocab()
    assert (tokenizer.pad_token, tokenizer.eos_token) == (original.pad_token, original.eos_token)
    assert tokenizer.chat_template == original.chat_template

    ids = torch.arange(3, 33)[None]
    trained: Any = module.policy_model.eval().causal_lm
    with torch.no_grad():
        logits, expected = reloaded(ids).logits, trained(ids).logits
    close = 3e-4 if lora else 1e-5  # merged adapters add in another order
    torch.testing.assert_close(logits, expected, atol=close, rtol=close)
    answers = []
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = reloaded.generate(**given, max_new_tokens=6, do_sample=False)[0, given["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    assert answers == generate_answers(module, PROMPTS, 6)
    assert len(set(answers)) > 1 or all(answers)
