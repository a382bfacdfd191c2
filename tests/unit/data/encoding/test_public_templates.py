"""Chat templates of public models, as TRL brings them: an answer is trained wholly and alone, or the row is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lion_lightning.data.encoding.rendering import ChatRenderer
from lion_lightning.data.formats.sft import Conversation, recognize
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.models.tokenizer import with_defaults
from tests.unit.data.encoding.template_table import (
    FIVE,
    NINETEEN,
    TEMPLATES,
    TWINS,
    agreement,
    outcome,
    template_text,
    tokenizer,
)

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
    known = ("exact", "cannot render", "refused: the end of the prompt (")  # by the row's white space
    assert {name: found for name, found in outcomes.items() if not found.startswith(known)} == {}
    return Counter(found.partition(":")[0] for found in outcomes.values())


@pytest.mark.parametrize(
    ("situation", "names"),
    [
        ("several turns", "qwen3_5_nothink deepseekv3 glm4moe phi3 smolvlm llava_next"),
        ("system", "gemma3 muse_glimmer"),
        ("call, result, answer", "qwen3_5_think diffusion_gemma gptoss glm4moe"),
        ("text beside a call", "gemma4_v5 qwen3_6"),
        ("reasoning", "gptoss muse_glimmer nemotron_3_ultra"),
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
    cannot, refused = CANNOT.get(situation, 0), 12 if situation == "white space, unicode" else 0
    expected = Counter({"exact": 41 - cannot - refused, "cannot render": cannot, "refused": refused})
    assert kinds(situation, TEMPLATES) == +expected


# --- the generation prompt


@pytest.mark.parametrize(
    ("name", "variables", "targets"),
    [
        ("qwen3", {}, ["Answerone.<|im_end|>", "<think>\n\n</think>\n\nAnswertwo.<|im_end|>"]),
        ("qwen3", {"enable_thinking": False}, ["Answerone.<|im_end|>", "Answertwo.<|im_end|>"]),
        ("qwen3_5_think", {}, ["Answerone.<|im_end|>", "\n</think>\n\nAnswertwo.<|im_end|>"]),
        ("qwen3_5_think", {"enable_thinking": False}, ["Answerone.<|im_end|>", "Answertwo.<|im_end|>"]),
        ("nemotron_3_nano", {}, ["</think>Answerone.<|im_end|>", "</think>Answertwo.<|im_end|>"]),
        ("nemotron_3_nano", {"enable_thinking": False}, ["Answerone.<|im_end|>", "Answertwo.<|im_end|>"]),
        (
            "deepseekv3",
            {},
            ["Answerone.<\uff5cend\u2581of\u2581sentence\uff5c>", "Answertwo.<\uff5cend\u2581of\u2581sentence\uff5c>"],
        ),
        ("glm4moe", {}, ["\n<think></think>\nAnswerone.<|user|>", "\n<think></think>\nAnswertwo."]),
        (
            "gptoss",
            {"reasoning_effort": "low"},
            ["<|channel|>final<|message|>Answerone.<|end|>", "<|channel|>final<|message|>Answertwo.<|return|>"],
        ),
    ],
)
def test_what_the_generation_prompt_brings_is_no_target_and_the_rest_is(
    name: str, variables: dict[str, Any], targets: list[str]
) -> None:
    made = tokenizer(f"{name} {variables}", with_defaults(template_text(name), variables, "kwargs"))
    talk = recognize(FIVE["several turns"])
    assert isinstance(talk, Conversation)
    text, answers, _ = ChatRenderer(made).answers(talk)
    assert [text[slice(*answer.spans[0])] for answer in answers] == targets
    assert ("Reasoning: low" in text) == (name == "gptoss")


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


def test_the_generation_prompt_that_is_not_written_is_named_whole() -> None:
    made, talk = tokenizer("qwen3_6"), recognize(NINETEEN["calls in two turns"])  # a call begins with < as well
    assert isinstance(talk, Conversation)
    with collect_messages() as messages:
        ChatRenderer(made).answers(talk)
    assert [text.partition(", which")[0] for text in messages["warning"]] == [
        "the generation prompt of the chat template goes on with '<think>\\n'"
    ]


def test_a_header_that_is_not_asked_with_is_no_target_and_warned_of() -> None:
    made, talk = tokenizer("diffusion_gemma"), recognize(NINETEEN["call, result, answer"])
    assert isinstance(talk, Conversation)
    with collect_messages() as messages:
        text, answers, _ = ChatRenderer(made).answers(talk)
    assert text[slice(*answers[-1].spans[0])] == "Answerone.<turn|>"
    assert [warning.partition(", and does")[0] for warning in messages["warning"]] == [
        "the chat template writes '<|turn>model\\n' before an answer to a tool's result"
    ]


def test_a_call_whose_reasoning_is_left_out_ends_before_the_header_of_its_result() -> None:
    made, talk = tokenizer("gptoss"), recognize(NINETEEN["reasoning before a call"])  # the header has the call's name
    assert isinstance(talk, Conversation)
    with collect_messages() as messages:
        text, answers, _ = ChatRenderer(made, needs_reasoning=False).answers(talk)
    assert [text[slice(*answer.spans[0])] for answer in answers] == [
        ' to=functions.addtool<|channel|>commentary json<|message|>{"alpha": "onevalue"}<|call|>',
        "<|channel|>analysis<|message|>Thinktwo<|end|><|start|>assistant<|channel|>final<|message|>Answerone.<|return|>",
    ]
    assert not messages["warning"]
