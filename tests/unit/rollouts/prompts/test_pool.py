"""Prompts of any row: what is asked, the row's own answer, and nothing asked that must not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.sft import Completion, Conversation
from lion_lightning.data.sources.source import Source
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.rollouts.prompts.forms import recognize_prompt
from lion_lightning.rollouts.prompts.pool import PromptPool
from tests import tiny

ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("row", "asked", "answer"),
    [
        ({"messages": [ASK, SAY]}, ["q"], "a"),
        ({"messages": [ASK, SAY, ASK]}, ["q", "a", "q"], None),
        ({"messages": [ASK]}, ["q"], None),
        ({"conversations": [{"from": "human", "value": "q"}], "system": "s"}, ["s", "q"], None),
        ({"prompt": [ASK]}, ["q"], None),
        ({"question": "q", "answer": "a"}, ["q"], "a"),
        ({"question": "q", "system": "s"}, ["s", "q"], None),
        ({"instruction": "q", "input": "more", "output": "a"}, ["q\n\nmore"], "a"),
        ({"instruction": "q", "input": ""}, ["q"], None),
        ({"prompt": "q", "chosen": [ASK, SAY], "rejected": [ASK, OTHER]}, ["q"], "a"),
        ({"question": "q", "answers": ["b", "a"], "scores": [0, 1]}, ["q"], "a"),
    ],
)
def test_every_form_of_chat(row: dict[str, Any], asked: list[str], answer: str | None) -> None:
    whole = recognize_prompt(row)
    assert isinstance(whole, Conversation)
    turns = [turn.content for turn in whole.messages]
    assert turns == asked + ([answer] if answer else [])
    assert whole.prompt_turns == len(asked)


def test_a_prompt_has_what_it_takes_to_render_its_turns_again(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    variables = {"style": "short"}
    rows: list[Any] = [{"messages": [ASK], "tools": [tool], "chat_template_kwargs": variables}, {"question": "r"}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = "{{ tools }} {{ style }} {% for turn in messages %}{{ turn.content }} {% endfor %}"
    tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(tmp_path)), chat_template=template).load()
    made = PromptPool([Source(str(tmp_path / "chats.jsonl"))], tokenizer)
    first, second = (one.prompt for one in made.take([0, 1]))
    assert (list(first.tools), first.template_kwargs) == ([tool], variables)
    assert (second.tools, second.template_kwargs) == ((), {})


def test_plain_text_is_continued() -> None:
    assert recognize_prompt({"prompt": "q"}) == Completion("q", "")
    assert recognize_prompt({"prompt": "q", "completion": "a"}) == Completion("q", "a")


@pytest.mark.parametrize("row", [{"text": "q"}, {"messages": [ASK, ASK]}, {"messages": []}, {"question": " "}])
def test_rows_without_a_prompt_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown format|roles out of order|is empty"):
        recognize_prompt(row)


def pool(folder: Path, rows: list[dict[str, Any]], fraction: float = 1.0, **more: Any) -> PromptPool:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(folder))).load()
    return PromptPool([Source(str(path), fraction=fraction, **more)], tokenizer)


def test_prompts_are_the_tokens_before_a_trained_answer(tmp_path: Path) -> None:
    made = pool(tmp_path, [{"question": "w5 w6", "answer": "w7", "id": 4}])
    (asked,) = made.take([0])
    tokenizer = TokenizerSpec(str(tmp_path)).load()
    whole = recognize_prompt({"question": "w5 w6", "answer": "w7"})
    assert whole is not None
    (segment,) = ChatEncoder(tokenizer, mask="completion").encode([whole], [""])
    first = int(segment.supervised.argmax())
    assert asked.prompt.input_ids == tuple(segment.input_ids[:first].tolist())
    assert asked.prompt.original == "w7"
    assert asked.prompt.row == {"question": "w5 w6", "answer": "w7", "id": 4}
    assert asked.prompt.question == "w5 w6"
    assert asked.prompt.where.endswith("rows.jsonl:1")


def test_a_policy_that_is_taught_no_end_by_its_template_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = pool(tmp_path, [{"question": "w5"}, {"question": "w6"}])
    made.take([0, 1])
    assert "generation stops at" not in caplog.text
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    tokenizer = TokenizerSpec(str(tmp_path), template).load()
    endless = PromptPool(made.sources, tokenizer)
    endless.take([0, 1])
    endless.take([1])
    assert caplog.text.count("prompts: an answer ends in no token that generation stops at") == 1


def test_settings_of_the_template_reach_what_is_asked(tmp_path: Path) -> None:
    row = {"question": "w5", "chat_template_kwargs": {"mood": "w9"}}
    made = pool(tmp_path, [row, {"question": "w5"}])
    template = "{% for m in messages %}{{ m.content }} <|im_end|>{% endfor %}{{ ' ' + mood | default('') }}"
    asked = PromptPool(made.sources, TokenizerSpec(str(tmp_path), template).load()).take([0, 1])
    assert [one.prompt.text for one in asked] == ["w5 <|im_end|> w9", "w5 <|im_end|> "]


def test_duplicates_are_counted_and_repeats_are_asked_for(tmp_path: Path) -> None:
    rows = [{"question": f"w{5 + n % 4}"} for n in range(6)]
    made = pool(tmp_path, rows, fraction=1.5)
    assert len(made) == 4
    assert made.left_out == {"duplicate": 2}
    assert len(made.order) == 6
    assert sorted(set(made.order.tolist())) == [0, 1, 2, 3]


def test_split_never_overlaps_and_take_keeps_the_order(tmp_path: Path) -> None:
    made = pool(tmp_path, [{"question": f"w{5 + n}"} for n in range(20)])
    apart, rest = made.split(6, seed=1)
    assert sorted(apart + rest) == list(range(20))
    assert made.split(6, seed=1) == (apart, rest)
    assert made.split(6, seed=2) != (apart, rest)
    assert [asked.prompt.question for asked in made.take(rest)] == [f"w{5 + n}" for n in rest]


def add_answer(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "answer": row["question"].upper()}


def test_what_a_transform_adds_reaches_the_judges(tmp_path: Path) -> None:
    made = pool(tmp_path, [{"question": "w5"}], transform=add_answer)
    assert made.take([0])[0].prompt.row["answer"] == "W5"


def test_validated_prompts_are_left_out_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    made = pool(tmp_path, [{"question": "w5"}, {"question": "w6"}])
    without = PromptPool(made.sources, TokenizerSpec(str(tmp_path)).load(), [made.group(0)])
    assert [asked.prompt.question for asked in without.take([0])] == ["w6"]
    with pytest.raises(ValueError, match=r"no prompt is left \(2 validated on\)"):
        PromptPool(made.sources, TokenizerSpec(str(tmp_path)).load(), [made.group(n) for n in range(len(made))])


def test_what_is_found_in_rows_of_prompts_is_counted_and_told(tmp_path: Path) -> None:
    dialogue = "\n\nHuman: w5\n\nAssistant: w6\n\nHuman: w7"
    rows: list[dict[str, Any]] = [
        {"prompt": "w5", "solution": "w6", "id": 1, "label": False},
        {"prompt": "w6"},
        {"chosen": dialogue, "rejected": f"{dialogue} w8"},
    ]
    made = pool(tmp_path, rows, name="questions")
    assert (len(made), made.sizes) == (2, {"questions": 3})
    (cause,) = made.messages["questions"]["left out"]
    assert made.left_out == {cause: 1}
    assert made.messages["questions"]["kept"] == {"solution": 1, "id": 1, "label": 1}
    left_out, plain = made.warnings()
    assert left_out == f"source questions: 1 of 3 rows are left out: {cause}"
    assert plain.startswith("source questions: 2 of 3 rows are plain text, which is read without the tokenizer's chat")
    chat = pool(tmp_path, rows[:2], format="chat")
    assert chat.warnings() == []
    assert [asked.prompt.messages for asked in chat.take([0, 1])] == [
        ({"role": "user", "content": "w5"},),
        ({"role": "user", "content": "w6"},),
    ]


def test_a_column_of_prompts_that_no_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source questions: columns maps system to 'sys', which no row has"):
        pool(tmp_path, [{"question": "w5"}], name="questions", columns={"system": "sys"})


def test_a_picture_beside_a_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: the column 'image' holds an image"):
        pool(tmp_path, [{"question": "w5", "image": "a.png"}])


def test_no_prompt_comes_again_before_all_of_its_source(tmp_path: Path) -> None:
    sources = []
    for name, count, fraction in (("a", 4, 3.0), ("b", 6, 1.0)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"question": f"{name}{number}"}) + "\n" for number in range(count)))
        sources.append(Source(str(path), fraction=fraction))
    made = PromptPool(sources, TokenizerSpec(str(tiny.tokenizer_folder(tmp_path))).load())
    order = made.split(0, seed=1)[1]
    of_a = [position for position in order if position < 4]
    assert [sorted(of_a[start : start + 4]) for start in (0, 4, 8)] == [[0, 1, 2, 3]] * 3
    shuffled = made.order[np.random.default_rng(1).permutation(18)]
    assert [position < 4 for position in order] == [position < 4 for position in shuffled.tolist()]
    assert [position for position in order if position >= 4] == [p for p in shuffled.tolist() if p >= 4]
