"""Chat templates of public models, as TRL brings them: an answer is trained wholly and alone, or the row is refused."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.unit.data.encoding.template_table import FIVE, NINETEEN, TEMPLATES, TWINS, agreement, outcome

pytestmark = pytest.mark.skipif(not TEMPLATES, reason="needs TRL for its templates")

CANNOT = {
    "single": 0,
    "several turns": 0,
    "system": 1,  # gemma
    "tools": 14,  # 13 do not show tools, lfm2 shows no calls
    "reasoning": 24,  # 22 do not read it, DeepSeek's two take it out
    "system, one turn": 1,
    "system, two turns": 1,
    "developer role": 1,
    "answer opens": 8,
    "call is the last turn": 14,
    "call, result, answer": 14,
    "text beside a call": 18,  # four drop the text
    "two calls, two results": 17,  # two refuse a second call, gptoss drops it
    "calls in two turns": 14,
    "reasoning in both turns": 39,  # 15 show it in the last turn only
    "reasoning in the text": 2,
    "reasoning before a call": 25,
}
"""Templates that cannot render a situation, of 41."""


def kinds(situation: str, names: list[str]) -> Counter[str]:
    row = {**FIVE, **NINETEEN}[situation]
    outcomes = {name: outcome(name, row) for name in names}
    wrong = {name: found for name, found in outcomes.items() if not found.startswith(("exact", "cannot render"))}
    assert wrong == {}
    return Counter(found.partition(":")[0] for found in outcomes.values())


@pytest.mark.parametrize(
    ("situation", "names"),
    [
        ("several turns", "qwen3 qwen3_5_nothink deepseekv3 gptoss glm4moe nemotron_3_nano phi3 smolvlm llava_next"),
        ("system", "gemma3 llama3_1 muse_glimmer cohere2"),
        ("call, result, answer", "qwen3_5_think gemma4_v5 diffusion_gemma gptoss glm4moe llama3_2"),
        ("text beside a call", "gemma4 gemma4_v5 qwen3_6"),
        ("reasoning", "qwen3_8 gptoss muse_glimmer nemotron_3_ultra lfm2_2_5"),
        ("reasoning in the text", "qwen3_5_nothink phi3_5"),
        ("question fakes an answer", "qwen3_6 gemma gptoss"),
    ],
)
def test_what_a_template_can_render_is_trained_exactly(situation: str, names: str) -> None:
    assert kinds(situation, names.split()) == {"exact": len(names.split())}


@pytest.mark.parametrize(
    ("situation", "name", "cause"),
    [
        ("system", "gemma", "the chat template cannot render the row: System role not supported"),
        ("tools", "phi3", "the chat template leaves out the row's tools; use a tokenizer.chat_template that shows it"),
        ("text beside a call", "llama3_1", "the chat template leaves out the row's content of message 1 (assistant)"),
        ("reasoning in both turns", "qwen3", "the chat template leaves out the row's reasoning_content ('Thinkone')"),
        ("reasoning in the text", "deepseekv3", "the chat template leaves out the row's content ('Thinkone')"),
    ],
)
def test_what_a_template_cannot_render_is_an_error(situation: str, name: str, cause: str) -> None:
    assert outcome(name, {**FIVE, **NINETEEN}[situation]).startswith(f"cannot render: {cause}")


@pytest.mark.slow
@pytest.mark.parametrize("situation", [*FIVE, *NINETEEN])
def test_no_template_loses_or_adds_a_word(situation: str) -> None:
    expected = Counter({"exact": 41 - CANNOT.get(situation, 0), "cannot render": CANNOT.get(situation, 0)})
    assert kinds(situation, TEMPLATES) == +expected


# --- the tags of the twins

BUT = {
    # It ends a call, as generation stops there, and is what the result begins with.
    "diffusion_gemma_training": {"<|tool_response>"},
    # EOS behind all turns, which is never generated: <|end|> stands before it.
    "phi3_training": {"\n</s>"},
    "phi3_5_training": {"\n</s>"},
}
"""What the tags of a twin and the spans do not agree on."""


def differing(twin: str, situation: str) -> set[str]:
    _, differ = agreement(twin, {**FIVE, **NINETEEN}[situation])
    return set(differ) - BUT.get(twin, set())


@pytest.mark.parametrize("twin", ["qwen3_training", "gptoss_training", "glm4moe_training", "deepseekv3_training"])
def test_spans_are_what_the_tags_of_a_training_template_say(twin: str) -> None:
    assert differing(twin, "several turns") == set()


@pytest.mark.slow
@pytest.mark.parametrize("twin", TWINS)
def test_spans_are_what_the_tags_of_every_training_template_say(twin: str) -> None:
    situations = [
        name for name in (*FIVE, *NINETEEN) if name not in ("question fakes an answer", "first answer is context")
    ]
    assert {situation: found for situation in situations if (found := differing(twin, situation))} == {}
