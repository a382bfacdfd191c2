"""What samplers of any make give: texts and tokens that can be trained on, or one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lion_lightning.sampling.answers import sample_one_each, to_answer
from lion_lightning.types import Answer, Prompt

CONFIG = SimpleNamespace(vocab_size=12)
POLICY: Any = SimpleNamespace(tokenizer=range(11), model=SimpleNamespace(config=CONFIG))  # a row more than tokens


def test_answers_texts_and_look_alikes_are_taken() -> None:
    assert to_answer("x", "f:1", POLICY) == Answer("x")
    assert to_answer(Answer("x", "length", (11,)), "f:1", POLICY) == Answer("x", "length", (11,))
    assert to_answer(SimpleNamespace(text="x", token_ids=[3]), "f:1", POLICY) == Answer("x", "stop", (3,))


@pytest.mark.parametrize("given", [None, 3, SimpleNamespace(text=None), SimpleNamespace(), b"x", "half \ud83d"])
def test_what_is_no_text_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^f:1: the sampler returned .*; return a string"):
        to_answer(given, "f:1", POLICY)


@pytest.mark.parametrize("token", [-1, 12, 10**20])
def test_a_token_that_the_policy_has_not_is_named(token: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^f:1: the sampler returned token id {token}, but the policy.s vocabulary has 12"
    ):
        to_answer(Answer("x", "stop", (3, token)), "f:1", POLICY)


@pytest.mark.parametrize("rows", [[], [["x", "y"]], [["x"], ["y"]]])
def test_other_counts_than_one_each_are_refused(rows: Any) -> None:
    sampler: Any = SimpleNamespace(sample=lambda *_: rows)
    with pytest.raises(ValueError, match="answers for 1 prompts and n=1"):
        sample_one_each(sampler, [Prompt("a", (1,), where="f:1")], 0, POLICY)
