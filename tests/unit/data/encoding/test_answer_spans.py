"""Answers are found under templates of every make, and nothing of the generation prompt is ever a target."""

from __future__ import annotations

from typing import Any

import pytest

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.rendering import NO_END, ChatRenderer
from lion_lightning.data.formats.sft import Completion, Conversation, Example, Text
from lion_lightning.data.formats.turns import Message, read_turns
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.models.tokenizer import read_template
from tests.unit.data.encoding.test_chat import (
    ASKING,
    PLAIN_CHATML,
    byte_level,
    chat,
    encode,
    metaspace,
    prompt_ids,
    runs,
    trained,
)

ROUND = chat("Hello", "world", "how", "yes")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def calling(content: str = "", *more: dict[str, Any]) -> Conversation:
    """A greeting, then a question that is answered with a call, its result and an answer."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "world"},
        {"role": "user", "content": "how"},
        {"role": "assistant", "content": content or None, "tool_calls": [call]},
        {"role": "tool", "content": "cold"},
        {"role": "assistant", "content": "It is."},
        *more,
    ]
    return Conversation(read_turns(turns, "messages"), tools=(TOOL,))


# --- templates that render earlier turns differently from the last

PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


@pytest.mark.parametrize("added", [True, False], ids=["a token", "no token"])
def test_eos_behind_the_last_turn_alone_belongs_to_no_answer(added: bool) -> None:
    tokenizer = byte_level(PHI)
    if added:
        tokenizer.add_tokens(["<|end|>"], special_tokens=True)
        tokenizer.chat_template = PHI
    piece = encode(tokenizer, ROUND)
    assert trained(tokenizer, piece) == ["world<|end|>", "yes<|end|>" if added else "yes<|end|>\n</s>"]
    assert piece.input_ids[: runs(piece)[1][0]].tolist() == prompt_ids(tokenizer, ROUND, 3)


MISTRAL = (
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{% if tools and m == asked[-1] %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}"
    "[INST] {{ m.content }}[/INST]{% elif m.tool_calls %}<call>{{ m.tool_calls[0].function | tojson }}</call>"
    "{{ eos_token }}{% elif m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_tools_before_the_last_question_move_no_answer() -> None:
    tokenizer = byte_level(MISTRAL)
    piece = encode(tokenizer, calling())
    assert trained(tokenizer, piece) == [
        " world</s>",
        '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call></s>',
        " It is.</s>",
    ]


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)


def test_a_block_that_only_the_last_answer_has_is_part_of_it() -> None:
    tokenizer = byte_level(THINKING + ASKING)
    assert trained(tokenizer, encode(tokenizer, ROUND)) == ["world<|im_end|>", "<think>\n\n</think>\n\nyes<|im_end|>"]


def test_an_answer_that_opens_the_conversation_is_found_where_it_is_not_rendered_as_a_last_one() -> None:
    tokenizer = byte_level(THINKING + ASKING)
    opened = Conversation((Message("assistant", "Hello"), Message("user", "how"), Message("assistant", "yes")))
    assert trained(tokenizer, encode(tokenizer, opened))[0] == "Hello<|im_end|>"


def test_thoughts_that_are_shown_in_the_last_turn_only_are_an_error_with_the_way_out() -> None:
    first = Message("assistant", "world", {"reasoning_content": "hm"})
    talk = ROUND._replace(messages=(ROUND.messages[0], first, *ROUND.messages[2:]))
    with pytest.raises(ValueError, match=r"reasoning_content \('hm'\) of message 1; in the last turn .*each_answer"):
        encode(byte_level(THINKING + ASKING), talk)


def test_thoughts_that_the_last_turn_does_not_show_are_not_said_to_be_shown_there() -> None:
    last = Message("assistant", "yes", {"reasoning_content": "how"})  # a word of the question
    talk = ROUND._replace(messages=(*ROUND.messages[:-1], last))
    with pytest.raises(
        ValueError, match=r"reasoning_content \('how'\) of message 3; write it into the text .*_in_text"
    ):
        encode(byte_level(), talk)


def test_thoughts_that_are_not_trained_may_be_left_out() -> None:
    first = Message("assistant", "world", {"reasoning_content": "hm"})
    talk = ROUND._replace(messages=(ROUND.messages[0], first, *ROUND.messages[2:]))
    tokenizer = byte_level(THINKING + ASKING)
    (segment,) = ChatEncoder(tokenizer, train_reasoning=False).encode([talk], ["data.jsonl:1"])
    assert trained(tokenizer, segment) == ["world<|im_end|>", "yes<|im_end|>"]
    with pytest.raises(ValueError, match=r"reasoning_content \('hm'\) of message 1; write it into the text .*_in_text"):
        encode(byte_level(), talk)


RESULT_WITHIN = (
    "{{ tools | tojson }}{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n"
    "{% if m.tool_calls %}"
    "<call>{{ m.tool_calls | tojson }}</call>{{ messages[loop.index0 + 1].content if not loop.last }}{% endif %}"
    "{{ m.content or '' }}<|im_end|>\n{% endif %}{% endfor %}" + ASKING
)


def test_a_tool_result_inside_of_the_answer_that_called_is_no_target() -> None:
    tokenizer = byte_level(RESULT_WITHIN)
    first, call, words, last = trained(tokenizer, encode(tokenizer, calling("Let me look.")))
    assert (first, words, last) == ("world<|im_end|>", "Let me look.<|im_end|>", "It is.<|im_end|>")
    assert call.startswith('<call>[{"type": "function"')
    assert call.endswith("</call>")


def test_a_tool_result_behind_a_call_without_words_is_no_target() -> None:
    tokenizer = byte_level(RESULT_WITHIN)
    with collect_messages() as notes:
        assert trained(tokenizer, encode(tokenizer, calling()))[1].endswith("}]</call>")
    assert notes["warning"] == {NO_END: 1}


def test_an_inner_answer_that_ends_as_a_last_one_does_is_closed_by_its_own_token() -> None:
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}{{ '<|im_end|>' if loop.last else '<|eot_id|>' }}"
    tokenizer = byte_level("{% for m in messages %}" + turn + "{% endfor %}" + ASKING)
    talk = chat("Hello", "world<|im_end|>", "how", "yes")
    assert trained(tokenizer, encode(tokenizer, talk)) == ["world<|im_end|><|eot_id|>", "yes<|im_end|>"]


# --- the generation prompt

OPENED = ASKING.replace("assistant\n", "assistant\n<think>\n")


def tagged(inner: str, before: str = "") -> str:
    """ChatML with tags around what an answer is."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + before
        + "{% generation %}"
        + inner
        + "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    )


WORDS = "{{ m.content }}<|im_end|>"


@pytest.mark.parametrize("template", [tagged(WORDS) + OPENED, PLAIN_CHATML.replace(ASKING, OPENED)])
def test_an_answer_that_is_asked_for_otherwise_than_it_is_rendered_is_warned_of(template: str) -> None:
    tokenizer = byte_level(template)
    with collect_messages() as notes:
        assert trained(tokenizer, encode(tokenizer, chat("Hello", "world"))) == ["world<|im_end|>"]
    ((text, count),) = notes["warning"].items()
    assert (text[:67], count) == ("the generation prompt of the chat template goes on with '<think>\\n'", 1)
    assert "set tokenizer.template_kwargs (as enable_thinking: false)" in text
    with collect_messages() as notes:
        thought = chat("Hello", "<think>\nhm</think>world")
        assert trained(tokenizer, encode(tokenizer, thought)) == ["hm</think>world<|im_end|>"]
    assert not notes["warning"]


def test_earlier_answers_that_lack_what_the_last_one_has_are_warned_of_with_the_way_out() -> None:
    tokenizer = byte_level(THINKING + OPENED)
    with collect_messages() as notes:
        assert trained(tokenizer, encode(tokenizer, ROUND)) == ["world<|im_end|>", "\n</think>\n\nyes<|im_end|>"]
    ((text, count),) = notes["warning"].items()
    assert "each_answer" in text
    assert count == 1


def test_what_tags_take_in_of_the_generation_prompt_is_not_trained() -> None:
    header = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n"
    rest = "<|im_start|>user\n{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    tokenizer = byte_level(header + WORDS + "{% endgeneration %}{% else %}" + rest + ASKING)
    assert trained(tokenizer, encode(tokenizer, ROUND)) == ["world<|im_end|>", "yes<|im_end|>"]


def test_tags_that_begin_behind_the_generation_prompt_are_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"begins behind '<think></think>', which a model has to write .*\(message 1\)"
    ):
        encode(byte_level(tagged(WORDS, "<think></think>") + ASKING), chat("Hello", "world"))


def test_tags_that_leave_an_answer_out_are_an_error() -> None:
    calls = "{% if m.tool_calls %}{{ m.tool_calls | tojson }}<|im_end|>{% else %}{% generation %}"
    template = (
        tagged(WORDS)
        .replace("{% generation %}", calls)
        .replace("{% endgeneration %}", "{% endgeneration %}{% endif %}")
    )
    with pytest.raises(ValueError, match=r"tags of the chat template leave out the answer \(message 3\)"):
        encode(byte_level("{{ tools | tojson }}" + template + ASKING), calling())


TWO_TAGS = tagged("{{ m.content }}{% endgeneration %}{% generation %}<|im_end|>")


def test_what_stands_before_the_completion_is_left_out_by_its_place() -> None:
    # the words and the end of an answer in tags of their own, and of the turns before it only some have tags
    some = TWO_TAGS.replace("m.role == 'assistant' %}", "m.role == 'assistant' and loop.index0 != 1 %}")
    for template in (TWO_TAGS, some):
        tokenizer = byte_level(template + ASKING)
        talk = chat("a", "one", "b", "two", "c", "three", prompt_turns=3)
        assert trained(tokenizer, encode(tokenizer, talk, "completion")) == ["two<|im_end|>", "three<|im_end|>"]


ALL_TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content or m.tool_calls | tojson }}"
    "<|im_end|>{% endgeneration %}\n{% endfor %}" + ASKING
)


def test_tags_around_the_turns_of_others_train_no_word_of_theirs() -> None:
    tokenizer = byte_level(ALL_TAGGED)
    assert trained(tokenizer, encode(tokenizer, ROUND)) == ["world<|im_end|>", "yes<|im_end|>"]
    asked_last = ROUND._replace(messages=ROUND.messages[:3])
    assert trained(tokenizer, encode(tokenizer, asked_last)) == ["world<|im_end|>"]
    tokenizer = byte_level("{{ tools | tojson }}" + ALL_TAGGED)
    first, call, last = trained(tokenizer, encode(tokenizer, calling()))
    assert (first, last) == ("world<|im_end|>", "It is.<|im_end|>")
    assert call.startswith('[{"type": "function"')
    assert call.endswith("<|im_end|>")
    assert "cold" not in call


def test_tags_around_the_turns_of_others_train_no_word_of_theirs_in_a_completion_of_turns() -> None:
    tokenizer = byte_level(ALL_TAGGED)
    talk = chat("a", "one", "b", "two", "c", "three", prompt_turns=3)
    assert trained(tokenizer, encode(tokenizer, talk, "completion")) == ["two<|im_end|>", "three<|im_end|>"]


def test_a_tag_that_closes_behind_turns_of_others_trains_no_word_of_theirs() -> None:
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template = "{% for m in messages[:1] %}" + turn + "{% generation %}{% for m in messages[1:] %}" + turn
    tokenizer = byte_level(template + "{% endgeneration %}" + ASKING)
    assert trained(tokenizer, encode(tokenizer, ROUND)) == ["world<|im_end|>", "yes<|im_end|>"]
    asked_last = ROUND._replace(messages=ROUND.messages[:3])
    assert trained(tokenizer, encode(tokenizer, asked_last)) == ["world<|im_end|>"]


@pytest.mark.parametrize("template", [PLAIN_CHATML, read_template("chatml"), TWO_TAGS + ASKING])
def test_turns_that_are_not_to_be_trained_are_context(template: str) -> None:
    tokenizer = byte_level(template)
    asked, first, again, last = ROUND.messages
    half = ROUND._replace(messages=(asked, first._replace(weight=0.0), again, last))
    whole, piece = encode(tokenizer, ROUND), encode(tokenizer, half)
    assert trained(tokenizer, piece) == ["yes<|im_end|>"]
    assert piece.input_ids.tolist() == whole.input_ids.tolist()
    none = ROUND._replace(messages=tuple(turn._replace(weight=0.0) for turn in ROUND.messages))
    assert not encode(tokenizer, none).supervised.any()
    with pytest.raises(ValueError, match="the row gives a turn a weight of its own, and mask: none trains all"):
        encode(tokenizer, half, "none")


# --- what the template is given


def test_thoughts_go_by_the_name_that_the_template_reads() -> None:
    tokenizer = byte_level(THINKING + ASKING)
    for name in ("reasoning_content", "reasoning", "thinking"):
        talk = Conversation((Message("user", "Hello"), Message("assistant", "world", {name: "hm"})))
        assert trained(tokenizer, encode(tokenizer, talk)) == ["<think>\nhm\n</think>\n\nworld<|im_end|>"]
        with pytest.raises(ValueError, match=rf"leaves out the row's {name} \('hm'\) of message 1"):
            encode(byte_level(), talk)


def test_settings_of_the_template_are_handed_to_it() -> None:
    template = PLAIN_CHATML.replace(ASKING, ASKING.replace("assistant\n'", "assistant\n' + (mood or '')"))
    template = template.replace("m['content'] +", "(mood or '' if m.role == 'assistant' else '') + m['content'] +")
    tokenizer = byte_level("{% set mood = mood | default('') %}" + template)
    talk = chat("Hello", "world")._replace(chat_template_kwargs={"mood": "user "})
    assert "user world" in str(tokenizer.decode(encode(tokenizer, talk).input_ids))
    assert trained(tokenizer, encode(tokenizer, talk)) == ["world<|im_end|>"]
    with collect_messages() as notes:
        encode(byte_level(), talk)
    assert notes["warning"] == {"not used: 'mood' of chat_template_kwargs, which the chat template does not read": 1}
    for name in ("tokenize", "tools", "add_generation_prompt"):
        with pytest.raises(ValueError, match=rf"data\.jsonl:1: chat_template_kwargs sets '{name}', which it may not"):
            encode(tokenizer, talk._replace(chat_template_kwargs={name: True}))


def test_a_tool_turn_that_the_template_skips_is_an_error() -> None:
    template = (
        "{{ tools | tojson }}{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n"
        "{{ m.content or m.tool_calls | tojson }}<|im_end|>\n{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"leaves out the row's content of message 4 \(tool\)"):
        encode(byte_level(template + ASKING), calling())


# --- warnings, counted


def test_a_template_without_the_tokenizers_bos_is_warned_of() -> None:
    tokenizer = metaspace()
    with collect_messages() as notes:
        encode(tokenizer, ROUND)
        ChatEncoder(tokenizer).prompt(chat("Hello"))
    ((text, count),) = notes["warning"].items()
    assert (text.startswith("the tokenizer starts texts with <s> and the chat template does not write it"), count) == (
        True,
        2,
    )
    with collect_messages() as notes:
        encode(metaspace(read_template("llama3")), ROUND)
        encode(byte_level(), ROUND)
    assert not notes["warning"]


IN_ROWS = "texts of the rows begin with <s>, which stands once more before them: take it out of the rows"
IN_TEMPLATE = "the chat template begins with <s> twice: use a tokenizer.chat_template that writes it once"
IN_TEXT = "a text of the rows begins with <s> twice: take one out of the rows"


@pytest.mark.parametrize(
    ("example", "template", "said"),
    [
        (chat("<s>Hello", "world"), "{{ bos_token }}" + PLAIN_CHATML, IN_ROWS),
        (chat("Hello", "world", "how", " <s>are you"), "{{ bos_token }}" + PLAIN_CHATML, IN_ROWS),
        (chat("Hello", "world"), "<s>{{ bos_token }}" + PLAIN_CHATML, IN_TEMPLATE),
        (Text("<s><s>Hello"), PLAIN_CHATML, IN_TEXT),
        (Text("\n<s>Hello"), PLAIN_CHATML, IN_ROWS),
        (Completion("<s><s>Hello", " world"), PLAIN_CHATML, IN_TEXT),
        (Completion("Hello", "<s>world"), PLAIN_CHATML, IN_ROWS),
    ],
)
def test_a_bos_that_is_written_twice_is_warned_of(example: Example, template: str, said: str) -> None:
    with collect_messages() as notes:
        encode(metaspace(template), example)
    ((text, count),) = notes["warning"].items()
    assert (text[: len(said)], count) == (said, 1)


@pytest.mark.parametrize("system", [None, "<s>today"])
def test_a_prompt_to_sample_from_is_looked_at_too(system: str | None) -> None:
    with collect_messages() as notes:
        ChatEncoder(metaspace("{{ bos_token }}" + PLAIN_CHATML)).prompt(chat("Hello", system=system))
        ChatEncoder(metaspace()).prompt(Completion("<s>Hello" if system is None else "<s><s>Hello", ""))
    assert notes["warning"].total() == (0 if system is None else 2)


@pytest.mark.parametrize(
    ("example", "template"),
    [
        (chat("Hello", "world", "how", "are you"), "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"),
        (chat("<s>Hello", "world</s>"), "{% for m in messages %}{{ m['content'] }}{% endfor %}"),
        (Text("<s>Hello"), PLAIN_CHATML),
        (Completion("<s>Hello", " world"), PLAIN_CHATML),
        (Completion("", "<s>Hello"), PLAIN_CHATML),
    ],
    ids=["a template that begins each turn with it", "rows that write all of it", "text", "prompt", "completion"],
)
def test_a_bos_that_begins_a_text_once_is_no_fault(example: Example, template: str) -> None:
    with collect_messages() as notes:
        encode(metaspace(template), example, "none")
    assert not any("<s>" in text for text in notes["warning"])


def test_an_end_that_is_no_token_is_warned_of_for_each_answer() -> None:
    with collect_messages() as notes:
        encode(byte_level(PLAIN_CHATML.replace("<|im_end|>", "<|stop|>")), ROUND)
    assert notes["warning"] == {NO_END: 2}


# --- reasoning


@pytest.mark.parametrize(
    ("answer", "reasoning", "rest"),
    [
        (Message("assistant", "yes", {"reasoning_content": "hm"}), "<think>\nhm\n</think>\n\n", "yes<|im_end|>"),
        (Message("assistant", "yes", {"thinking": " hm\n"}), "<think>\n hm\n\n</think>\n\n", "yes<|im_end|>"),
        (Message("assistant", "yes"), "", "<think>\n\n</think>\n\nyes<|im_end|>"),
    ],
)
def test_the_reasoning_of_an_answer_is_a_part_of_it(answer: Message, reasoning: str, rest: str) -> None:
    renderer = ChatRenderer(byte_level(THINKING + ASKING))
    text, (found,), start = renderer.answers(Conversation((Message("user", "Hello"), answer)))
    ((first, end),) = found.spans
    assert (found.message, first, text[first:end]) == (1, start, reasoning + rest)
    assert (text[slice(*found.reasoning)] if found.reasoning else "") == reasoning


def test_reasoning_in_the_text_of_an_answer_is_found_there() -> None:
    text, (found,), _ = ChatRenderer(byte_level()).answers(chat("Hello", "<think>\nhm\n</think>\n\nyes"))
    assert found.reasoning is not None
    assert text[slice(*found.reasoning)] == "<think>\nhm\n</think>\n\n"
