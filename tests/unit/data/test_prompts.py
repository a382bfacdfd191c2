"""Prompts of any row: what is asked, the row's own answer, and nothing asked that must not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.data.chat import ChatEncoder
from lion_lightning.data.formats import Completion, Conversation
from lion_lightning.data.prompts import PromptPool, recognise_prompt
from lion_lightning.data.sources import Source
from lion_lightning.models.tokenizer import TokenizerSpec
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
    whole = recognise_prompt(row)
    assert isinstance(whole, Conversation)
    turns = [turn.content for turn in whole.messages]
    assert turns == asked + ([answer] if answer else [])
    assert whole.prompt_turns == len(asked)


def test_plain_text_is_continued() -> None:
    assert recognise_prompt({"prompt": "q"}) == Completion("q", "")
    assert recognise_prompt({"prompt": "q", "completion": "a"}) == Completion("q", "a")


@pytest.mark.parametrize("row", [{"text": "q"}, {"messages": [ASK, ASK]}, {"messages": []}, {"question": " "}])
def test_rows_without_a_prompt_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown format|roles out of order|is empty"):
        recognise_prompt(row)


def pool(folder: Path, rows: list[dict[str, Any]], fraction: float = 1.0, **more: Any) -> PromptPool:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(folder))).load()
    return PromptPool([Source(str(path), fraction=fraction, **more)], tokenizer)


def test_prompts_are_the_tokens_before_a_trained_answer(tmp_path: Path) -> None:
    made = pool(tmp_path, [{"question": "w5 w6", "answer": "w7", "id": 4}])
    (asked,) = made.take([0])
    tokenizer = TokenizerSpec(str(tmp_path)).load()
    whole = recognise_prompt({"question": "w5 w6", "answer": "w7"})
    assert whole is not None
    (piece,) = ChatEncoder(tokenizer, mask="completion").encode([whole], [""])
    first = int(piece.supervised.argmax())
    assert asked.prompt.input_ids == tuple(piece.input_ids[:first].tolist())
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
    with pytest.raises(ValueError, match=r"nothing to ask \(2 validated on\)"):
        PromptPool(made.sources, TokenizerSpec(str(tmp_path)).load(), [made.group(n) for n in range(len(made))])
