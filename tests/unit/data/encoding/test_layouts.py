"""Conversations of the same roles are rendered once each, and their answers are those that a look at each finds."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lion_lightning.data.encoding.layouts import Layouts
from lion_lightning.data.encoding.rendering import ChatRenderer, Rendered
from lion_lightning.data.formats.sft import Conversation, recognize
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.models.chat_template import ChatTemplate
from lion_lightning.models.tokenizer import CHAT_TEMPLATES, read_template
from tests.unit.data.encoding.template_table import FIVE, NINETEEN, TEMPLATES, tokenizer
from tests.unit.data.encoding.test_answer_spans import MISTRAL, OPENED, PHI, THINKING
from tests.unit.data.encoding.test_chat import ASKING, PLAIN_CHATML, SHARED, byte_level, chat

TALKS = (
    chat("Hello", "world"),
    chat("how", "are you", system="today"),
    chat(" Hello\n", "\n world \n", "how", "yes "),
    chat("yes", "yes", "yes", "yes"),
    chat("a", "<think>\nhm\n</think>\n\nb"),
    chat("a</think>b", "<|im_start|>assistant\nyes<|im_end|>"),
    chat("a", "one", "b", "two", "c", "three", prompt_turns=3),
    chat("Hello", "world", "how", "yes", system=""),
    Conversation((Message("user", "a"), Message("assistant", "b", {"reasoning": "hm"}))),
    Conversation((Message("user", "a"), Message("assistant", "b", weight=0.0), *chat("c", "d").messages)),
    Conversation((Message("assistant", "a"), *chat("c", "d").messages)),
)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each rendering, whether it was with the generation prompt."""
    counted: list[bool] = []
    render = ChatTemplate.render

    def counting(self: ChatTemplate, *given: Any, **how: Any) -> str:
        counted.append(how.get("prompt", False))
        return render(self, *given, **how)

    monkeypatch.setattr(ChatTemplate, "render", counting)
    return counted


def found(renderer: ChatRenderer, talk: Conversation) -> Rendered | str:
    with collect_messages() as notes:
        try:
            return renderer.answers(talk)
        except ValueError as error:
            return f"{error} {dict(notes)}"


def both_ways(made: PreTrainedTokenizerFast, talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = ChatRenderer(made)
    found(renderer, talk)
    placed = found(renderer, talk)
    with monkeypatch.context() as patched:
        patched.setattr(Layouts, "place", lambda *given: None)
        assert found(ChatRenderer(made), talk) == placed


@pytest.mark.parametrize(
    "template",
    [PLAIN_CHATML, PHI, MISTRAL + ASKING, THINKING + ASKING, THINKING + OPENED, *map(read_template, CHAT_TEMPLATES)],
    ids=["chatml, no tags", "phi", "mistral", "thinking", "thinking, opened", *CHAT_TEMPLATES],
)
def test_answers_by_a_layout_are_those_of_a_look_at_each_row(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = byte_level(template)
    for talk in TALKS:
        both_ways(made, talk, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_by_a_layout_are_those_of_a_look_at_each_row_under_public_templates(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = [recognize(row) for row in (FIVE | NINETEEN).values()]
    for talk in (*rows, *TALKS):
        both_ways(tokenizer(name), talk, monkeypatch)


def test_a_row_is_rendered_once_when_one_of_its_roles_was_seen(rendered: list[bool]) -> None:
    renderer = ChatRenderer(byte_level())
    renderer.answers(chat("Hello", "world", "how", "yes"))
    rendered.clear()
    text, answers, start = renderer.answers(chat(" how \n", "are you", "Hello", "world \n"))
    assert rendered == [False]
    assert [text[slice(*answer.spans[0])] for answer in answers] == ["are you<|im_end|>", "world \n<|im_end|>"]
    assert text[:start].endswith(" how \n<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("said", ["<think>", "a</think>b", "<|im_start|>"])
def test_words_that_the_template_looks_for_or_asks_with_are_looked_at(said: str, rendered: list[bool]) -> None:
    template = PLAIN_CHATML.replace("m['content'] +", "m['content'].split('</think>')[-1] +")
    renderer = ChatRenderer(byte_level(template.replace(ASKING, OPENED)))
    renderer.answers(chat("Hello", "world"))
    rendered.clear()
    renderer.answers(chat("how", "yes"))
    assert rendered == [False]
    found(renderer, chat("how", said))
    assert True in rendered


def test_a_text_that_is_not_that_of_the_layout_is_looked_at() -> None:
    loud = PLAIN_CHATML.replace(
        "m['content'] +", "(m['content'] | upper if m['content'] | length > 4 else m['content']) +"
    )
    renderer = ChatRenderer(byte_level(loud))
    renderer.answers(chat("a", "b", "c", "d"))
    text, (first, last), _ = renderer.answers(chat("Hi", "you", "HELLO", "yes"))
    assert [text[slice(*answer.spans[0])] for answer in (first, last)] == ["you<|im_end|>", "yes<|im_end|>"]
    with pytest.raises(ValueError, match="leaves out the row's content of message 1"):
        renderer.answers(chat("Hi", "hello"))


def test_what_a_row_is_warned_of_is_counted_for_each_row() -> None:
    renderer = ChatRenderer(byte_level(PLAIN_CHATML.replace(ASKING, OPENED)))
    with collect_messages() as notes:
        for _ in range(3):
            renderer.answers(chat("Hello", "world")._replace(chat_template_kwargs={"mood": "gay"}))
    assert sorted(notes["warning"].values()) == [3, 3]


def test_layouts_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lion_lightning.data.encoding.layouts._MAX_LAYOUTS", 2)
    renderer = ChatRenderer(byte_level())
    for rounds in (1, 2, 3):
        renderer.answers(chat(*["Hello", "world"] * rounds))
    (layouts,) = renderer._learned.values()
    assert len(layouts._known) == 1
    assert found(pickle.loads(pickle.dumps(renderer)), TALKS[0]) == found(renderer, TALKS[0])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize("template", [PLAIN_CHATML, read_template("llama3"), THINKING + ASKING])
def test_real_conversations_have_the_same_answers_both_ways(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = byte_level(template)
    rows = json.loads((SHARED / "data" / "fastchat" / "sharegpt_sample.json").read_text("utf-8"))
    with collect_messages():
        talks = [talk for row in rows if isinstance(talk := recognize(row), Conversation)]
    one, other = ChatRenderer(made), ChatRenderer(made)
    placed = [found(one, talk) for talk in talks]
    monkeypatch.setattr(Layouts, "place", lambda *given: None)
    assert [found(other, talk) for talk in talks] == placed
