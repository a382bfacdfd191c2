"""Chat templates of public models, as TRL brings them: an answer is trained wholly and alone, or the row is refused."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.sft import recognize
from tests.unit.data.encoding.test_chat import trained

trl = pytest.importorskip("trl")
FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

ASKED, ASKED_MORE = {"role": "user", "content": "Hithere"}, {"role": "user", "content": "Andyou"}
ANSWER, SECOND = {"role": "assistant", "content": "Answerone."}, {"role": "assistant", "content": "Answertwo."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "abc123456", "type": "function", "function": {"name": "addtool", "arguments": {"alpha": "onevalue"}}}
    ],
}
RESULT = {"role": "tool", "content": "Resultthree", "name": "addtool", "tool_call_id": "abc123456"}
PARAMETERS = {"type": "object", "properties": {"alpha": {"type": "string", "description": "x"}}, "required": ["alpha"]}
TOOLS = [{"type": "function", "function": {"name": "addtool", "description": "adds", "parameters": PARAMETERS}}]
SITUATIONS: dict[str, dict[str, Any]] = {
    "single": {"messages": [ASKED, ANSWER]},
    "two turns": {"messages": [ASKED, ANSWER, ASKED_MORE, SECOND]},
    "context": {"messages": [ASKED, {**ANSWER, "weight": 0}, ASKED_MORE, SECOND]},
    "tools": {"messages": [ASKED, CALL, RESULT, ANSWER], "tools": TOOLS},
    "thoughts": {"messages": [ASKED, {**ANSWER, "reasoning_content": "Thinkone"}]},
}
WORDS = {
    "single": ["Answerone."],
    "two turns": ["Answerone.", "Answertwo."],
    "context": ["Answertwo."],
    "tools": ["addtool", "alpha", "onevalue", "Answerone."],
    "thoughts": ["Thinkone", "Answerone."],
}
ELSE = ["Hithere", "Andyou", "Resultthree"]


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A token a byte, and one for each marker of the template."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")  # type: ignore[no-untyped-call]
    made.chat_template = (FOLDER / f"{name}.jinja").read_text("utf-8")
    markers = re.findall("<[|\uff5c][^<>\\s'\"{}]+>|<\\w+\\|>|<(?:start|end)_of_\\w+>", made.chat_template)
    made.add_tokens(sorted(set(markers)), special_tokens=True)
    return made


def outcome(name: str, situation: str) -> str:
    """``right``, ``refused``, or what is wrong."""
    try:
        (piece,) = ChatEncoder(tokenizer(name)).encode([recognize(SITUATIONS[situation])], ["x:1"])
    except ValueError as error:
        return "refused" if re.fullmatch("x:1: .+", str(error)) else str(error)
    said = "".join(trained(tokenizer(name), piece))
    lost = [word for word in WORDS[situation] if word not in said]
    foreign = [word for word in (*ELSE, *(["Answerone."] if situation == "context" else [])) if word in said]
    return f"lost {lost}, foreign {foreign}" if lost or foreign else "right"


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("qwen3", "single, two turns, context, tools, thoughts"),
        ("qwen3_5_think", "single, context, tools, thoughts"),  # asks with <think>, which only the last answer has
        ("phi3", "single, two turns, context"),  # writes EOS behind the last turn, shows no tools
        ("llava_next", "single, two turns, context"),  # a space before the answer
        ("smolvlm", "single, two turns, context"),  # reads content as parts
        ("llama3_1", "single, two turns, context, tools"),
        ("deepseekv3", ""),  # asks with <think>, and takes it out of answers
        ("qwen2_5_training", "single, two turns, context, tools"),
    ],
)
def test_what_a_template_shows_is_trained_and_nothing_else(name: str, right: str) -> None:
    expected = {situation: "right" if situation in right.split(", ") else "refused" for situation in SITUATIONS}
    assert {situation: outcome(name, situation) for situation in SITUATIONS} == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("situation", "plain", "twins"),
    [("single", 35, 25), ("two turns", 32, 25), ("context", 35, 25), ("tools", 23, 12), ("thoughts", 16, 12)],
)
def test_no_template_loses_or_adds_a_word(situation: str, plain: int, twins: int) -> None:
    outcomes = {name: outcome(name, situation) for name in TEMPLATES}
    assert {name: found for name, found in outcomes.items() if found not in ("right", "refused")} == {}
    right = [name for name, found in outcomes.items() if found == "right"]
    assert sum(not name.endswith("_training") for name in right) >= plain
    assert sum(name.endswith("_training") for name in right) >= twins
