"""What a prefix language model generates has the log-probs that training gives it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lion_lightning.models.generation.prefix import after_prefixes
from lion_lightning.models.spec import PolicySpec
from lion_lightning.types import segment_table
from tests.families import family
from tests.marks import exhaustive
from tests.tiny import LEARNED_POSITIONS, SOFTCAPPED, config, policy, row

SINKS: dict[str, Any] = {"model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 4, "sliding_window": 4}
CODEGEN: dict[str, Any] = {"model_type": "codegen", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
PREFIXES, NEW = (9, 4, 1, 6), 7


@pytest.mark.parametrize(
    ("attention", "shape"),
    [
        ("lion", {}),
        ("lion", SINKS),
        ("lion", CODEGEN),  # its own attention code, under a mask
        ("eager", LEARNED_POSITIONS),  # padded
        *exhaustive(("lion", SOFTCAPPED), ("lion", LEARNED_POSITIONS), ("sdpa", {})),
    ],
)
def test_log_probs_of_generated_tokens_are_those_of_the_packed_row(attention: str, shape: dict[str, Any]) -> None:
    model = policy(attention=attention, **shape).eval()
    prefixes = torch.split(row(PREFIXES).input_ids, list(PREFIXES))
    made = model.causal_lm.generate(
        **after_prefixes(model, [prefix.tolist() for prefix in prefixes]),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    answers = made.sequences[:, max(PREFIXES) :]
    generated = torch.stack(made.logits, 1).log_softmax(-1).gather(2, answers[..., None]).flatten()

    lengths = [length for prefix in PREFIXES for length in (prefix, NEW)]
    parents = [parent for number in range(len(PREFIXES)) for parent in (-1, 2 * number)]
    ids = torch.cat([part for pair in zip(prefixes, answers, strict=True) for part in pair])
    spans = [span for span in segment_table(lengths, parents) if span.parent >= 0]
    supervised = [place for span in spans for place in range(span.start, span.stop)]
    for whole in (True, False):
        batch = row(lengths, parents, supervised, bidirectional=[whole, False] * len(PREFIXES))
        with torch.no_grad():
            packed = model(replace(batch, input_ids=ids, targets=answers.flatten())).values
        assert torch.allclose(packed, generated, rtol=0, atol=1e-5) == whole


def test_a_prefix_of_one_token_is_a_prompt_as_any_other() -> None:
    model = policy().eval()
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    expected = model.causal_lm.generate(torch.tensor([[5]]), **options)
    assert torch.equal(model.causal_lm.generate(**after_prefixes(model, [[5]]), **options), expected)


def test_a_policy_in_training_with_checkpointed_layers_keeps_a_cache() -> None:
    model = PolicySpec(config=config(), recompute="full").build().train()
    made = after_prefixes(model, [[3, 4, 5], [6]])
    assert model.training
    assert made["past_key_values"].get_seq_length() == 2
    assert made["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert made["input_ids"][:, -1].tolist() == [5, 6]


def test_models_that_stay_causal_or_count_positions_and_empty_prefixes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Lfm2ShortConv\) sees no later tokens"):
        after_prefixes(PolicySpec(config=family("lfm2")).build().eval(), [[3, 4], [5]])
    for kind, attention in (("roberta", "lion"), ("bart", "eager")):  # the latter runs padded
        model = policy(kind, attention, is_decoder=True, decoder_attention_heads=4, d_model=32, decoder_ffn_dim=48)
        with pytest.raises(ValueError, match="counts positions itself, otherwise than generate"):
            after_prefixes(model, [[3, 4], [5]])
    with pytest.raises(ValueError, match="a prefix to generate from has no tokens"):
        after_prefixes(policy().eval(), [[3, 4], []])
