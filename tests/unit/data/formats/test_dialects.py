"""Rows as people have them: every dialect of messages gives the same turns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.trees import PairEncoder
from lion_lightning.data.formats.answers.preference import recognize_preferences
from lion_lightning.data.formats.pairing import BestWorst
from lion_lightning.data.formats.sft import Completion, Conversation, Text, recognize
from lion_lightning.data.formats.turns import Message, are_turns, read_dialogue, read_turns
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.data.sources.readers import Row
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.digests import content_digest
from lion_lightning.data.transforms import each_answer
from lion_lightning.rollouts.prompts.forms import recognize_prompt
from tests.unit.data.letters import CHATML, byte_tokenizer
from tests.unit.data.pairs import pair_of

TALK = [("user", "Hi"), ("assistant", "Hello")]
TURNS = tuple(Message(role, text) for role, text in TALK)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def spelled(role_key: str, text_key: str, user: str = "user", assistant: str = "assistant") -> list[dict[str, str]]:
    return [{role_key: {"user": user}.get(role, assistant), text_key: text} for role, text in TALK]


MESSAGES = {
    "OpenAI": spelled("role", "content"),
    "ShareGPT": spelled("from", "value", "human", "gpt"),
    "ChatGPT": spelled("from", "value", "user", "chatgpt"),
    "Bing": spelled("from", "value", "user", "bing"),
    "Bard": spelled("from", "value", "human", "bard"),
    "capitals": spelled("role", "content", "User", "Assistant"),
    "shouted": spelled("from", "value", "HUMAN", "GPT"),
    "model": spelled("role", "content", "user", "model"),
    "Open Assistant": spelled("role", "text", "prompter", "assistant"),
    "crossed": spelled("from", "content", "human", "assistant"),
    "null keys": [{**message, "from": None, "tool_calls": None} for message in spelled("role", "content")],
    "parts": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TALK],
    "parts of text": [{"role": role, "content": [text[:1], text[1:]]} for role, text in TALK],
    "a key for each speaker": [{"user": "Hi"}, {"assistant": "Hello"}],
    "rounds": [{"human": "Hi", "assistant": "Hello"}],
    "rounds with null": [{"system": None, "human": "Hi", "gpt": "Hello"}],
    "Capybara": [{"input": "Hi", "output": "Hello"}],
    "questions": [{"question": "Hi", "answer": "Hello", "id": None}],
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("column", ["messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat"])
def test_every_dialect_in_every_column_gives_the_same_turns(name: str, column: str) -> None:
    turns = MESSAGES[name]
    expected = Conversation(TURNS)
    assert are_turns(turns)
    assert recognize({column: turns, "id": 1, "system": None}) == expected
    assert recognize_prompt({column: turns}) == Conversation(TURNS, 1)
    if column in ("messages", "conversations"):
        assert recognize({column: json.dumps(turns)}) == expected
    elif name not in (
        "Open Assistant",
        "rounds",
        "rounds with null",
        "Capybara",
        "questions",
        "a key for each speaker",
    ):
        assert recognize({column: json.dumps(turns)}) == expected  # JSON text is taken for messages by what it says


def test_a_column_of_another_name_is_taken_only_where_nothing_else_can_be_meant() -> None:
    talk = spelled("role", "content")
    with pytest.raises(ValueError, match="unknown format: the row's keys are a, b"):
        recognize({"a": talk, "b": talk})
    with pytest.raises(ValueError, match="unknown format: the row's keys are chat_history"):
        recognize({"chat_history": talk})
    with pytest.raises(ValueError, match="unknown format: the row's keys are chosen"):
        recognize({"chosen": talk})
    assert recognize({"dialog": talk, "text": "all of it"}) == Text("all of it")  # as its known column says
    assert recognize({"dialog": talk, "system_prompt": "s"}) == Conversation((Message("system", "s"), *TURNS))
    pair = {"dialog": talk[:1], "answers": ["a", "b"], "scores": [1, 2]}
    (made,) = recognize_preferences(pair, None, BestWorst())
    assert made.answers[0] == Conversation((TURNS[0], Message("assistant", "b")), 1)


@pytest.mark.parametrize("name", ["system_prompt", "system_message", "system_instruction"])
def test_a_system_column_of_another_name_is_the_system_turn_of_a_chat(name: str) -> None:
    row = {name: "Be kind.", "question": "Hi", "response": "Hello"}
    assert recognize(row) == Conversation((Message("system", "Be kind."), *TURNS))
    with pytest.raises(ValueError, match=f"the column '{name}' holds the system message"):
        recognize({name: "Be kind.", "prompt": "Hi", "completion": "Hello"})


def test_a_response_is_an_answer() -> None:
    assert recognize({"instruction": "Hi", "response": "Hello", "category": "a"}) == Conversation(TURNS)
    assert recognize({"prompt": "Hi", "response": "Hello"}) == Completion("Hi", "Hello")
    talk = spelled("role", "content")
    assert recognize({"prompt": talk[:1], "response": talk[1:]}) == Conversation(TURNS, 1)
    assert recognize({"prompt": "Hi", "completion": "yes", "response": "no"}) == Completion("Hi", "yes")
    with pytest.raises(ValueError, match=r"UnpairedDataModule takes single answers with labels"):
        recognize({"prompt": "Hi", "response": "Hello", "label": False})


def test_a_round_keeps_what_else_it_says() -> None:
    (_, answer) = read_turns([{"human": "Hi", "assistant": "Hello", "weight": 0, "mood": "good"}], "messages")
    assert answer == Message("assistant", "Hello", {"mood": "good"}, 0.0)
    with pytest.raises(ValueError, match=r"messages\[0\] has no role"):
        read_turns([{"question": "Hi", "answer": "Hello", "context": "Oslo is wet."}], "messages")


def test_developer_turns_are_read_as_system_turns_and_counted() -> None:
    row = {"messages": [{"role": "developer", "content": "s"}, *spelled("role", "content")]}
    with collect_messages() as noted:
        assert recognize(row) == Conversation((Message("system", "s"), *TURNS))
    assert noted["changed"] == {"developer turns are read as system turns": 1}
    assert noted.describe(1) == ["developer turns are read as system turns: 1 rows"]


# --- calls


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
@pytest.mark.parametrize(
    "value",
    [
        '{"name": "weather", "arguments": {"city": "Oslo"}}',
        '[{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}]',
        {"name": "weather", "arguments": {"city": "Oslo"}},
    ],
)
def test_a_turn_that_is_a_call_gives_the_same_call_as_openai_has_it(role: str, value: Any) -> None:
    talk = [{"from": "human", "value": "?"}, {"from": role, "value": value}, {"from": "observation", "value": "wet"}]
    turns = read_turns([*talk, {"from": "gpt", "value": "It rains."}], "conversations")
    assert turns[1] == Message("assistant", "", {"tool_calls": [CALL]})
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant"]


def test_a_call_that_is_no_json_stays_text() -> None:
    (turn,) = read_turns([{"from": "function_call", "value": "weather(city='Oslo')"}], "conversations")
    assert turn == Message("assistant", "weather(city='Oslo')")


# --- what stands behind the last answer


def test_turns_behind_the_last_answer_are_left_out_and_counted() -> None:
    talk = [*spelled("role", "content"), {"role": "user", "content": "And?"}]
    with collect_messages() as noted:
        assert recognize({"messages": talk}) == Conversation(TURNS)
        assert recognize({"prompt": talk[:1], "completion": talk[1:]}) == Conversation(TURNS, 1)
    assert noted["changed"] == {"turns behind the last answer are left out, since nothing of them is trained": 2}
    assert recognize_prompt({"messages": talk}) == Conversation((*TURNS, Message("user", "And?")), 3)
    with pytest.raises(ValueError, match="no assistant turn to learn from"):
        recognize({"messages": talk[2:]})
    with pytest.raises(ValueError, match="no assistant turn to learn from"):
        recognize({"prompt": talk[:2], "completion": talk[2:]})


# --- dialogues as text

HH = "\n\nHuman: Hi\n\nAssistant: Hello"


def read(row: dict[str, Any], reader: Any, **settings: Any) -> Any:
    (made,) = Source("a", format="chat", **settings).examples(Row("a:1", row), reader)
    return made


def sft(row: Any, columns: Any) -> list[Any]:
    return [recognize(row, columns)]


def pairs(row: Any, columns: Any) -> list[Any]:
    return recognize_preferences(row, columns, BestWorst())


def prompts(row: Any, columns: Any) -> list[Any]:
    return [recognize_prompt(row, columns)]


def test_a_dialogue_is_told_by_its_speakers() -> None:
    assert read_dialogue("Human: a\n\nb\n\nAssistant: c") == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
    ]
    for text in ("Hi", "\n\nHuman: Hi", "\n\nAssistant: Hello", "As Human: says\n\nAssistant: no", "", None, 3):
        assert read_dialogue(text) is None, text


def test_a_dialogue_becomes_turns_under_format_chat() -> None:
    chat = Conversation(TURNS)
    more = f"{HH}\n\nHuman: Bye\n\nAssistant:"
    asked = (*TURNS, Message("user", "Bye"))
    assert read({"text": HH}, sft) == chat
    assert read({"story": HH}, sft, columns={"text": "story"}) == chat
    assert read({"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": " Hello"}, sft) == Conversation(TURNS, 1)
    assert read({"prompt": more}, prompts) == Conversation(asked, 3)
    good, bad = Message("assistant", "Good."), Message("assistant", "Bad.")
    pair = pair_of(Conversation((*asked, good), 3), Conversation((*asked, bad), 3))
    assert read({"chosen": f"{more} Good.", "rejected": f"{more} Bad."}, pairs) == pair
    assert read({"prompt": more, "chosen": " Good.", "rejected": " Bad."}, pairs) == pair


def test_a_dialogue_that_is_trained_word_for_word_is_warned_of() -> None:
    with collect_messages() as noted:
        assert recognize({"text": HH}) == Text(HH)
    (warning,) = noted["warning"]
    assert warning.startswith("texts are dialogues of Human and Assistant, and all of their words are trained")


def test_only_the_assistants_words_of_a_dialogue_are_trained() -> None:
    tokenizer = byte_tokenizer()
    (segment,) = ChatEncoder(tokenizer).encode([read({"text": HH}, sft)], ["a:1"])
    trained = segment.input_ids[segment.supervised]
    assert tokenizer.decode(trained.tolist()) == "Hello<|im_end|>"


def test_each_answer_of_a_dialect() -> None:
    talk = [*spelled("from", "value", "Human", "GPT")] * 2
    made = list(each_answer({"conversations": talk}))
    assert [len(row["conversations"]) for row in made] == [2, 4]
    assert [turn.weight for turn in recognize(made[1]).messages] == [1.0, 0.0, 1.0, 1.0]  # type: ignore[union-attr]


# --- prefilled answers

BEGUN = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one, ", "prefix": True}]
REST = [{"role": "assistant", "content": "two"}]


def trained(example: Any, mask: Any = "assistant") -> tuple[str, str]:
    """All of the text, and the part of it that is trained."""
    tokenizer = byte_tokenizer()
    (segment,) = ChatEncoder(tokenizer, mask).encode([example], ["a:1"])
    targets = segment.input_ids[segment.supervised]
    return str(tokenizer.decode(segment.input_ids.tolist())), str(tokenizer.decode(targets.tolist()))


@pytest.mark.parametrize("mask", ["assistant", "completion", "last_turn"])
@pytest.mark.parametrize("key", ["prefix", "prefill", "partial", "continue_final_message"])
def test_the_beginning_of_an_answer_that_is_given_is_not_trained(key: str, mask: str) -> None:
    begun = [BEGUN[0], {"role": "assistant", "content": "one, ", key: True}]
    whole = "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\none, two<|im_end|>\n"
    assert trained(recognize({"prompt": begun, "completion": REST}), mask) == (whole, "two<|im_end|>")
    plain = {"prompt": [BEGUN[0], {"role": "assistant", "content": "one, "}], "completion": REST}
    assert trained(recognize({**plain, "continue_final_message": True}), mask) == (whole, "two<|im_end|>")
    with pytest.raises(
        ValueError, match=r"message 2 is assistant after assistant; .* give the prompt's last message `pre"
    ):
        recognize(plain)


def test_pairs_that_go_on_from_the_beginning_of_an_answer() -> None:
    (pair,) = recognize_preferences({"prompt": BEGUN, "chosen": REST, "rejected": "three"}, None, BestWorst())
    tokenizer = byte_tokenizer()
    (made,) = PairEncoder(tokenizer).encode_samples([pair], ["a:1"])
    texts = [tokenizer.decode(segment.input_ids.tolist()) for segment in made]
    begun = "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\none, "
    assert texts == [begun, "two<|im_end|>\n", "three<|im_end|>\n"]
    assert content_digest(pair.answers[0]) != content_digest(
        recognize({"messages": [BEGUN[0], {**REST[0], "content": "one, two"}]})
    )


def test_the_beginning_of_an_answer_without_the_rest() -> None:
    talk = [*spelled("role", "content"), *BEGUN]
    assert recognize({"messages": talk}) == Conversation(TURNS)  # as a user's turn at the end
    with pytest.raises(ValueError, match="no assistant turn to learn from"):
        recognize({"messages": BEGUN})
    with pytest.raises(ValueError, match="message 1 is the beginning of an answer, and others follow"):
        recognize({"messages": [*BEGUN, *spelled("role", "content")]})
    for row in ({"prompt": BEGUN}, {"messages": BEGUN}, {"prompt": BEGUN, "completion": REST}):
        with pytest.raises(
            ValueError, match=r"the row holds the beginning of the answer .* sampling starts answers from"
        ):
            recognize_prompt(row)


def test_a_template_that_writes_something_before_the_given_part_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML.replace(
        "m['content']", "('Well. ' if m['role'] == 'assistant' else '') + m['content']"
    )
    example = recognize({"prompt": BEGUN, "completion": REST})
    with pytest.raises(ValueError, match=r"a:1: the chat template does not begin the answer with its prefilled part"):
        ChatEncoder(tokenizer).encode([example], ["a:1"])
