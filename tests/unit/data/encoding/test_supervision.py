"""What is trained, message by message: masks, weights and reasoning, every mark worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.supervision import Mask
from lion_lightning.data.encoding.trees import PairEncoder
from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import Completion, Conversation, Example, Text, recognize
from lion_lightning.data.formats.turns import Message
from lion_lightning.types import SampleSegment
from tests.unit.data.encoding.test_chat import ASKING, byte_level, chat, encode, trained
from tests.unit.data.letters import byte_tokenizer
from tests.unit.data.pairs import pair_of

TALK = chat("Hello", "world", "how", "are you")
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n"
    "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
)
"""Every answer has a block for its reasoning, also where it is empty."""


def weighted(talk: Conversation, *weights: float) -> Conversation:
    """A conversation whose messages have these weights."""
    turns = zip(talk.messages, weights, strict=True)
    return talk._replace(messages=tuple(turn._replace(weight=weight) for turn, weight in turns))


def without_reasoning(example: Example, template: str, mask: Mask = "assistant") -> list[str]:
    """Text of each stretch of trained tokens, where reasoning is not trained."""
    tokenizer = byte_level(template)
    encoder = ChatEncoder(tokenizer, mask, train_reasoning=False)
    return trained(tokenizer, encoder.encode([example], ["data.jsonl:1"])[0])


# --- masks


@pytest.mark.parametrize(
    ("mask", "prompt_turns", "expected"),
    [
        ("assistant", 1, ["world<|im_end|>", "are you<|im_end|>"]),
        ("completion", 1, ["world<|im_end|>", "are you<|im_end|>"]),
        ("completion", None, ["are you<|im_end|>"]),
        ("last_turn", 1, ["are you<|im_end|>"]),
        ("last_turn", None, ["are you<|im_end|>"]),
    ],
)
def test_the_last_turn_alone_is_trained_whatever_the_prompt_is(
    mask: Mask, prompt_turns: int | None, expected: list[str]
) -> None:
    tokenizer = byte_level()
    assert trained(tokenizer, encode(tokenizer, TALK._replace(prompt_turns=prompt_turns), mask)) == expected


def test_a_last_turn_that_the_row_excludes_trains_nothing() -> None:
    tokenizer = byte_level()
    assert trained(tokenizer, encode(tokenizer, weighted(TALK, 1, 1, 1, 0), "last_turn")) == []


@pytest.mark.parametrize("mask", ["assistant", "last_turn", "none"])
def test_all_of_a_text_is_trained_and_of_a_completion_what_the_mask_says(mask: Mask) -> None:
    tokenizer = byte_level()
    assert trained(tokenizer, encode(tokenizer, Text("Hello world"), mask)) == ["Hello world</s>"]
    completion = trained(tokenizer, encode(tokenizer, Completion("Hello", " world"), mask))
    assert completion == ["Hello world</s>" if mask == "none" else " world</s>"]


# --- weights


def test_each_token_of_an_answer_has_the_weight_of_its_message() -> None:
    talk = weighted(chat("a", "bc", "d", "e", "f", "g"), 1, 0.5, 1, 2, 1, 0)
    piece = encode(byte_tokenizer(), talk)  # one token a byte, and one for each marker
    user, header = len("<user\na>\n"), len("<assistant\n")
    unit = user + header
    expected = np.zeros(unit + 3 + 1 + unit + 2 + 1 + unit + 2 + 1)
    expected[unit : unit + 3] = 0.5  # "bc" and <|im_end|>, not the line end behind it
    second = unit + 4 + unit
    expected[second : second + 2] = 2
    assert piece.weights is not None
    assert piece.weights.dtype == np.float32
    assert (piece.weights * piece.supervised).tolist() == expected.tolist()
    assert piece.supervised.tolist() == (expected > 0).tolist()


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 0, 1, 1), (1, 1, 1, 0)])
def test_weights_of_0_and_1_are_a_mask_and_nothing_more(weights: Sequence[float]) -> None:
    assert encode(byte_tokenizer(), weighted(TALK, *weights)).weights is None


def test_a_weight_that_fp32_cannot_hold_is_0() -> None:
    piece = encode(byte_tokenizer(), weighted(TALK, 1, 1e-60, 1, 1))
    assert (piece.weights, int(piece.supervised.sum())) == (None, len("are you>"))


def test_a_weight_is_that_of_a_row_and_only_where_the_mask_trains_its_message() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0.5},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "loss_weight": "3", "train": True},
        ]
    }
    piece = encode(byte_tokenizer(), recognize(row), "last_turn")
    assert piece.weights is not None
    assert piece.weights[piece.supervised].tolist() == [3, 3]


def test_everything_is_trained_alike_or_a_message_has_a_weight() -> None:
    with pytest.raises(ValueError, match=r"data.jsonl:1: the row gives a turn a weight .* mask: none"):
        encode(byte_level(), weighted(TALK, 1, 0.5, 1, 1), "none")


def test_answers_of_pairs_have_no_weights_and_prompts_do_not_mind() -> None:
    def pair(*weights: float) -> PromptAnswers:
        chosen, rejected = (weighted(chat("a", "b", "c", word, prompt_turns=3), *weights) for word in ("yes", "no"))
        return pair_of(chosen, rejected)

    encoder = PairEncoder(byte_tokenizer())
    with pytest.raises(ValueError, match=r"^data.jsonl:1: a message of an answer has a weight other than 0 and 1"):
        encoder.encode_samples([pair(1, 1, 1, 0.5)], ["data.jsonl:1"])
    ((_, chosen, _),) = encoder.encode_samples([pair(1, 0.5, 1, 1)], ["data.jsonl:1"])
    assert (chosen.weights, chosen.supervised.tolist()) == (None, [True] * 4 + [False])


# --- reasoning

ASKED = Message("user", "Hello")
SAID = Message("assistant", "yes", {"reasoning_content": "hm"})


@pytest.mark.parametrize(
    "said", [SAID, SAID._replace(extra={"thinking": "hm"}), SAID._replace(extra=None), SAID._replace(extra={"id": "7"})]
)
def test_reasoning_is_context_with_its_marks_and_so_is_an_empty_block_of_the_template(said: Message) -> None:
    talk = Conversation((ASKED, said, ASKED, said))
    assert without_reasoning(talk, THINKING + ASKING) == ["yes<|im_end|>"] * 2
    assert without_reasoning(talk, THINKING + ASKING, "last_turn") == ["yes<|im_end|>"]
    block = "<think>\nhm\n</think>\n\n" if said.extra and "id" not in said.extra else "<think>\n\n</think>\n\n"
    whole = trained(byte_level(), encode(byte_level(THINKING + ASKING), talk))
    assert whole == [f"{block}yes<|im_end|>"] * 2


def test_an_empty_block_that_the_prompt_opens_is_context_to_its_end() -> None:
    opened = ASKING.replace("assistant\n", "assistant\n<think>\n")
    talk = Conversation((ASKED, Message("assistant", "yes")))
    assert without_reasoning(talk, THINKING + opened) == ["yes<|im_end|>"]
    tokenizer = byte_level(THINKING + opened)
    assert trained(tokenizer, encode(tokenizer, talk)) == ["\n</think>\n\nyes<|im_end|>"]


def test_reasoning_in_the_text_of_an_answer_is_context_too() -> None:
    talk = chat("Hello", "<think>\nhm\n</think>\n\nworld", "how", "yes")
    assert without_reasoning(talk, byte_level().chat_template) == ["world<|im_end|>", "yes<|im_end|>"]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Completion("Hello", "<think>hm</think>\nyes"), ["yes</s>"]),
        (Completion("Hello<think>", "hm</think> yes"), [" yes</s>"]),  # opened by the prompt; a token has the space
        (Completion("Hello", " a <think>hm</think>b"), [" a ", "b</s>"]),
        (Completion("Hello", " <think>hm"), [" <think>hm</s>"]),  # never closed: no reasoning to tell apart
        (Text("Hello<think>hm</think>\nyes<think>no</think>you"), ["Hello", "yes", "you</s>"]),
    ],
)
def test_reasoning_in_plain_text_stands_before_its_closing_mark(example: Example, expected: list[str]) -> None:
    assert without_reasoning(example, byte_level().chat_template) == expected


def test_a_weight_stays_with_what_is_left_of_an_answer() -> None:
    tokenizer = byte_level(THINKING + ASKING)
    encoder = ChatEncoder(tokenizer, train_reasoning=False)
    (piece,) = encoder.encode([Conversation((ASKED, SAID._replace(weight=0.5)))], ["data.jsonl:1"])
    assert piece.weights is not None
    assert set(piece.weights[piece.supervised].tolist()) == {0.5}
    assert trained(tokenizer, piece) == ["yes<|im_end|>"]


def test_answers_of_pairs_are_compared_without_their_reasoning() -> None:
    tokenizer = byte_level(THINKING + ASKING)
    chosen = Conversation((ASKED, SAID), prompt_turns=1)
    pair = pair_of(chosen, chosen._replace(messages=(ASKED, SAID._replace(content="world"))))
    for train_reasoning, before in ((True, "<think>\nhm\n</think>\n\n"), (False, "")):
        encoder = PairEncoder(tokenizer, train_reasoning=train_reasoning)
        ((prompt, *answers),) = encoder.encode_samples([pair], ["data.jsonl:1"])
        assert not prompt.supervised.any()
        texts = [trained(tokenizer, answer) for answer in answers]
        assert texts == [[f"{before}yes<|im_end|>"], [f"{before}world<|im_end|>"]]


def test_what_is_trained_is_part_of_the_fingerprint() -> None:
    tokenizer = byte_level()
    settings: list[dict[str, Any]] = [{}, {"mask": "last_turn"}, {"mask": "completion"}, {"train_reasoning": False}]
    assert len({ChatEncoder(tokenizer, **each).fingerprint() for each in settings}) == 4
    assert PairEncoder(tokenizer).fingerprint() != PairEncoder(tokenizer, train_reasoning=False).fingerprint()


def test_nothing_can_be_left_out_where_nothing_is_masked() -> None:
    with pytest.raises(ValueError, match="train_reasoning: false leaves something out, and mask: none trains all"):
        ChatEncoder(byte_level(), "none", train_reasoning=False)


def test_a_part_of_a_segment_keeps_its_weights() -> None:
    weights, reasoning = np.array([1, 2, 3, 4], np.float32), np.arange(4) == 2
    part = SampleSegment(np.arange(4, dtype=np.int32), reasoning, 5, weights, reasoning).part(1, 3)
    assert part.weights is not None
    assert part.reasoning is not None
    assert (part.input_ids.tolist(), part.supervised.tolist(), part.parent) == ([1, 2], [False, True], 5)
    assert (part.weights.tolist(), part.reasoning.tolist()) == ([2, 3], [False, True])
