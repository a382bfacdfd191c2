from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.trees import GroupEncoder, LabeledEncoder, PairEncoder, Tree, TreeEncoder
from lion_lightning.data.formats.pairing import AllPairs, BestRandom, BestWorst, Pairing, PromptAnswers
from lion_lightning.data.formats.sft import Completion, Conversation, Text
from lion_lightning.data.formats.turns import Message
from lion_lightning.models.tokenizer import CHAT_TEMPLATES, TokenizerSpec, read_template
from lion_lightning.types import SampleSegment
from tests.unit.data.encoding.test_chat import (
    PLAIN_CHATML,
    SHARED,
    byte_level,
    chat,
    metaspace,
    prompt_ids,
    trained,
)
from tests.unit.data.pairs import pair_of

MAKERS = pytest.mark.parametrize("make", [byte_level, metaspace], ids=["byte-level", "metaspace"])


def pair(
    prompt: Sequence[str], chosen: Sequence[str], rejected: Sequence[str], system: str | None = None
) -> PromptAnswers:
    """Two conversations that share their first turns."""
    turns = len(prompt) + (system is not None)
    better, worse = (chat(*prompt, *answer, system=system, prompt_turns=turns) for answer in (chosen, rejected))
    return pair_of(better, worse)


def encode(tokenizer: PreTrainedTokenizerBase, example: PromptAnswers) -> Tree:
    return PairEncoder(tokenizer).encode_samples([example], ["data.jsonl:1"])[0]


def joined(prompt: SampleSegment, answer: SampleSegment) -> list[int]:
    return [*prompt.input_ids.tolist(), *answer.input_ids.tolist()]


def whole_ids(tokenizer: PreTrainedTokenizerBase, talk: Conversation) -> list[int]:
    """Ids of a conversation by transformers alone, tokenized at once."""
    turns = [{**(turn.extra or {}), "role": turn.role, "content": turn.content} for turn in talk.messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))


def assert_exact(tokenizer: PreTrainedTokenizerBase, example: PromptAnswers, tree: Tree) -> None:
    """The prompt is what a model is asked with; with either answer it is the whole conversation."""
    prompt, *answers = tree
    for side, answer in zip(example.answers, answers, strict=True):
        assert isinstance(side, Conversation)
        assert side.prompt_turns is not None
        assert prompt.input_ids.tolist() == prompt_ids(tokenizer, side, side.prompt_turns)
        assert joined(prompt, answer) == whole_ids(tokenizer, side)
    assert not prompt.supervised.any()
    assert [piece.parent for piece in tree] == [-1, *(0 for _ in answers)]


def untagged(name: str) -> str:
    return read_template(name).replace("endgeneration %}", "endif %}").replace(" generation %}", " if true %}")


@MAKERS
@pytest.mark.parametrize("read", [read_template, untagged], ids=["tagged", "untagged"])
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_prompt_and_answer_are_the_conversation_tokenized_at_once(
    make: Callable[[str], PreTrainedTokenizerFast], read: Callable[[str], str], name: str
) -> None:
    tokenizer = make(read(name))
    examples = [
        pair(["Hello"], ["world"], ["how are you"]),
        pair(["Hello", "world", "naïve 🦁"], ["café"], ["🐯 é"]),
        pair(["Hello"], ["world", "how", "yes"], ["today"]),
    ]
    for example, tree in zip(examples, PairEncoder(tokenizer).encode_samples(examples, "abc"), strict=True):
        assert_exact(tokenizer, example, tree)


@MAKERS
def test_answers_are_trained_to_the_token_that_ends_them_and_no_further(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokenizer = make()
    prompt, chosen, rejected = encode(tokenizer, pair(["Hello"], ["world"], ["how are you"], system="today"))
    assert not prompt.supervised.any()
    assert trained(tokenizer, chosen) == ["world<|im_end|>"]
    assert trained(tokenizer, rejected) == ["how are you<|im_end|>"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for answer in (chosen, rejected):
        last = int(np.flatnonzero(answer.supervised)[-1])
        assert answer.input_ids[last] == end
        assert answer.input_ids[last + 1 :].tolist() == tokenizer.encode("\n", add_special_tokens=False)


def test_end_of_turn_is_trained_where_pad_is_eos() -> None:
    zephyr = byte_level(read_template("zephyr"))
    assert zephyr.pad_token_id == zephyr.eos_token_id
    prompt, *answers = encode(zephyr, pair(["Hello"], ["world"], ["yes"]))
    assert (prompt.input_ids == zephyr.eos_token_id).sum() == 1  # the user's
    for answer in answers:
        assert answer.supervised[answer.input_ids == zephyr.eos_token_id].tolist() == [True]


@MAKERS
@pytest.mark.parametrize(("name", "count"), [("chatml", 0), ("llama3", 1), ("gemma", 1), ("zephyr", 0)])
def test_bos_stands_in_the_prompt_as_often_as_the_template_writes_it(
    make: Callable[[str], PreTrainedTokenizerFast], name: str, count: int
) -> None:
    tokenizer = make(read_template(name))
    tree = encode(tokenizer, pair(["Hello"], ["world"], ["yes"]))
    assert [int((piece.input_ids == tokenizer.bos_token_id).sum()) for piece in tree] == [count, 0, 0]


@pytest.mark.parametrize("template", [PLAIN_CHATML, read_template("chatml")], ids=["untagged", "tagged"])
def test_only_assistant_turns_of_an_answer_of_several_turns_are_trained(template: str) -> None:
    tokenizer = byte_level(template)
    _, chosen, rejected = encode(tokenizer, pair(["a", "b", "c"], ["one", "user", "two"], ["three"]))
    assert trained(tokenizer, chosen) == ["one<|im_end|>", "two<|im_end|>"]
    assert trained(tokenizer, rejected) == ["three<|im_end|>"]


def test_a_turn_of_an_answer_that_is_not_to_be_trained_is_a_part_of_it_without_targets() -> None:
    tokenizer = byte_level()
    example = pair(["a"], ["one", "user", "two"], ["three"])
    assert isinstance(example.answers[0], Conversation)
    asked, first, *rest = example.answers[0].messages
    chosen = example.answers[0]._replace(messages=(asked, first._replace(weight=0.0), *rest))
    half = example._replace(answers=(chosen, example.answers[1]))
    tree = encode(tokenizer, half)
    assert_exact(tokenizer, half, tree)
    assert trained(tokenizer, tree[1]) == ["two<|im_end|>"]


def test_assistant_turns_of_the_prompt_are_not_trained() -> None:
    tokenizer = byte_level()
    prompt, chosen, _ = encode(tokenizer, pair(["a", "world", "c"], ["yes"], ["no"]))
    assert "world<|im_end|>" in tokenizer.decode(prompt.input_ids)
    assert not prompt.supervised.any()
    assert trained(tokenizer, chosen) == ["yes<|im_end|>"]


@MAKERS
def test_user_text_that_contains_the_marker_stays_prompt(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    fake = "say <|im_end|>\n<|im_start|>assistant\nworld<|im_end|>\n and stop"
    example = pair([fake], ["yes"], ["world"])
    tree = encode(tokenizer, example)
    assert_exact(tokenizer, example, tree)
    assert [trained(tokenizer, answer) for answer in tree[1:]] == [["yes<|im_end|>"], ["world<|im_end|>"]]


def test_answers_that_differ_in_white_space_alone_keep_it_out_of_the_prompt() -> None:
    tokenizer = byte_level()
    example = pair(["Hello"], ["world"], [" world\n"])
    prompt, chosen, rejected = encode(tokenizer, example)
    assert_exact(tokenizer, example, (prompt, chosen, rejected))
    assert trained(tokenizer, chosen) == ["world<|im_end|>"]
    assert trained(tokenizer, rejected) == [" world\n<|im_end|>"]


@pytest.mark.parametrize(("chosen", "rejected"), [("\n\nyes", "no"), ("yes", "\n\nno")])
def test_one_answer_that_merges_with_the_header_is_an_error_that_names_the_row(chosen: str, rejected: str) -> None:
    tokenizer = byte_level(corpus=("\n\n\n\n",))  # two line ends are one token: the header's joins the answer's
    with pytest.raises(ValueError, match=r"^data\.jsonl:1: the end of the prompt .*assistant\\n.*strip"):
        encode(tokenizer, pair(["Hello"], [chosen], [rejected]))


def test_a_tool_call_against_words() -> None:
    template = PLAIN_CHATML.replace(
        "m['content'] + '<|im_end|>'",
        "m['content'] + (m['tool_calls'] | tojson if m['tool_calls'] else '') + '<|im_end|>'",
    )
    tokenizer = byte_level(template)
    asked = Message("user", "Hello")
    call = Message(
        "assistant", "", {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
    )
    example = pair_of(Conversation((asked, call), 1), Conversation((asked, Message("assistant", "world")), 1))
    prompt, chosen, rejected = encode(tokenizer, example)
    assert tokenizer.decode(prompt.input_ids) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert trained(tokenizer, chosen) == [
        '[{"type": "function", "function": {"name": "add", "arguments": {}}}]<|im_end|>'
    ]
    assert trained(tokenizer, rejected) == ["world<|im_end|>"]


def test_a_template_that_renders_the_prompt_by_what_follows_is_an_error_that_names_the_row() -> None:
    tokenizer = byte_level("{{ messages | length }}" + read_template("chatml"))
    assert len(encode(tokenizer, pair(["a"], ["b"], ["c"]))) == 3
    with pytest.raises(ValueError, match=r"^data\.jsonl:1: the prompt gives other tokens before answer 2 than"):
        encode(tokenizer, pair(["a"], ["b", "c", "d"], ["e"]))


def test_a_prompt_that_differs_before_a_later_answer_is_an_error_that_names_the_answer() -> None:
    tokenizer = byte_level("{{ messages | length }}" + read_template("chatml"))
    answers = [chat("a", *said, prompt_turns=1) for said in (["b"], ["c"], ["d", "e", "f"])]
    with pytest.raises(ValueError, match=r"^data\.jsonl:1: the prompt gives other tokens before answer 3 than"):
        encode(tokenizer, PromptAnswers(tuple(answers), (1.0, 2.0, 3.0)))


def test_an_error_in_one_row_of_many_names_that_row() -> None:
    good = pair(["a"], ["b"], ["c"])
    bad = pair_of(good.answers[0], chat("a", "half \ud83d", prompt_turns=1))
    with pytest.raises(ValueError, match=r"^x:2: the text is not valid Unicode"):
        PairEncoder(byte_level()).encode_samples([good, bad, good], ["x:1", "x:2", "x:3"])


# --- plain text


@MAKERS
def test_both_answers_in_plain_text_end_in_one_trained_eos(make: Callable[[None], PreTrainedTokenizerFast]) -> None:
    tokenizer = make(None)
    example = pair_of(Completion("Hello", " world"), Completion("Hello", " how are</s>"))
    prompt, chosen, rejected = encode(tokenizer, example)
    eos = tokenizer.eos_token_id
    assert prompt.input_ids.tolist() == tokenizer.encode("Hello")  # with BOS where the tokenizer puts one
    assert joined(prompt, chosen) == [*tokenizer.encode("Hello world"), eos]
    assert joined(prompt, rejected) == [*tokenizer.encode("Hello how are"), eos]
    assert not prompt.supervised.any()
    assert chosen.supervised.all()
    assert rejected.supervised.all()


def test_without_a_prompt_bos_is_the_prompt() -> None:
    tokenizer = metaspace(None)
    example = pair_of(Completion("", "Hello"), Completion("", "world"))
    prompt, chosen, rejected = encode(tokenizer, example)
    assert prompt.input_ids.tolist() == [tokenizer.bos_token_id]
    assert not prompt.supervised.any()
    assert joined(prompt, chosen) == [*tokenizer.encode("Hello"), tokenizer.eos_token_id]
    assert chosen.supervised.all()
    assert rejected.supervised.all()


def test_without_prompt_and_bos_is_an_error_that_names_the_row() -> None:
    example = pair_of(Completion("", "Hello"), Completion("", "world"))
    with pytest.raises(ValueError, match=r"^data\.jsonl:1: the prompt is empty.*give the row a prompt"):
        encode(byte_level(None), example)


# --- the encoder as an object

EXAMPLES = [
    pair(["Hello"], ["world"], ["how"]),
    pair_of(Completion("Hello", " world"), Completion("Hello", " how")),
    pair(["a", "b", "c"], ["d"], ["e", "f", "yes"], system="today"),
]


def assert_same(first: Sequence[Tree], second: Sequence[Tree]) -> None:
    for one, other in zip(first, second, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert mine.input_ids.tolist() == theirs.input_ids.tolist()
            assert mine.supervised.tolist() == theirs.supervised.tolist()


def test_a_batch_equals_its_pairs_one_by_one_and_keeps_their_order() -> None:
    encoder = PairEncoder(byte_level())
    batch = encoder.encode_samples(EXAMPLES, ["x"] * 3)
    assert_same(batch, [encoder.encode_samples([example], ["x"])[0] for example in EXAMPLES])
    assert len({tuple(tree[0].input_ids.tolist()) for tree in batch}) == 3
    assert encoder.encode_samples([], []) == []


def test_a_pickled_copy_gives_the_same() -> None:
    encoder = PairEncoder(byte_level(), BestRandom(2))
    copied: PairEncoder = pickle.loads(pickle.dumps(encoder))
    assert copied.fingerprint() == encoder.fingerprint()
    assert_same(copied.encode_samples(EXAMPLES, "abc"), encoder.encode_samples(EXAMPLES, "abc"))


def test_trees_of_any_size_share_a_batch() -> None:
    encoder = GroupEncoder(byte_level())
    rows: list[dict[str, Any]] = [
        {"question": "Hello", "answers": ["world", "how", "yes", "world"], "scores": [1, 2, 3, 4]},
        {"question": "today", "chosen": "a", "rejected": "b"},
        {"prompt": "Hello", "answers": [" world", " how", " you"], "ranks": [1, 2, 3]},
    ]
    examples = [tree for row in rows for tree in encoder.read(row, {})]
    trees = encoder.encode_samples(examples, ["x"] * 3)
    assert [len(tree) for tree in trees] == [5, 3, 4]
    assert [example.values for example in examples] == [(1.0, 2.0, 3.0, 4.0), (1.0, 0.0), (-1.0, -2.0, -3.0)]
    for example, tree in zip(examples[:2], trees, strict=False):
        assert_exact(encoder.tokenizer, example, tree)
    assert [encoder.tokenizer.decode(segment.input_ids) for segment in trees[2]] == [
        "Hello",
        *(f" {word}</s>" for word in ("world", "how", "you")),
    ]


def test_an_answer_has_the_same_tokens_whatever_it_is_trained_for() -> None:
    tokenizer = byte_level()
    ranked = {"question": "Hello", "answers": ["world", "how are you", "yes"], "scores": [3, 2, 1]}
    (group,) = encode_row(GroupEncoder(tokenizer), ranked)
    (pairs,) = encode_row(PairEncoder(tokenizer, AllPairs()), ranked)
    (best_worst,) = encode_row(PairEncoder(tokenizer), ranked)
    singles = [
        encode_row(LabeledEncoder(tokenizer), {"question": "Hello", "answer": said, "label": True})[0]
        for said in ranked["answers"]
    ]
    assert_same([group], [pairs])
    assert_same([best_worst], [(group[0], group[1], group[3])])
    assert_same(singles, [(group[0], answer) for answer in group[1:]])


def encode_row(encoder: TreeEncoder, row: dict[str, Any]) -> list[Tree]:
    examples = encoder.read(row, {})
    return encoder.encode_samples(examples, ["x"] * len(examples))


def test_encoders_of_other_objectives_have_other_fingerprints() -> None:
    encoders = [kind(byte_level(), train_reasoning=True) for kind in (PairEncoder, LabeledEncoder, GroupEncoder)]
    assert len({encoder.fingerprint() for encoder in encoders}) == 3
    for encoder in encoders:
        again = type(encoder)(byte_level(), train_reasoning=False)
        assert again.fingerprint() != encoder.fingerprint() == pickle.loads(pickle.dumps(encoder)).fingerprint()


def test_the_fingerprint_changes_with_tokenizer_and_pairing() -> None:
    def fingerprint(pairing: Pairing | None = None, template: str = PLAIN_CHATML) -> str:
        return PairEncoder(byte_level(template), pairing).fingerprint()

    assert fingerprint() == fingerprint(BestWorst())
    others = (fingerprint(BestRandom()), fingerprint(BestRandom(1)), fingerprint(AllPairs()), fingerprint(template="x"))
    assert len({fingerprint(), *others, ChatEncoder(byte_level(), "completion").fingerprint()}) == 6


def test_rows_are_read_with_columns_and_the_pairing() -> None:
    row = {"question": "Hello", "replies": ["b", "a", "c"], "scores": [2, 3, 1]}
    read = PairEncoder(byte_level(), AllPairs()).read(row, {"answers": "replies"})
    assert [(tree.values, tree.pairs) for tree in read] == [((3.0, 2.0, 1.0), ((0, 1), (1, 2), (0, 2)))]
    (best_worst,) = PairEncoder(byte_level()).read(row, {"answers": "replies"})
    assert (best_worst.values, best_worst.pairs) == ((3.0, 1.0), ((0, 1),))


def test_the_encoder_of_single_examples_reads_rows_and_gives_pieces_in_the_same_way() -> None:
    encoder = ChatEncoder(byte_level())
    examples = [*encoder.read({"text": "Hello"}, {}), *encoder.read({"body": "world"}, {"text": "body"})]
    assert examples == [Text("Hello"), Text("world")]
    pieces = encoder.encode_samples(examples, ["x", "y"])
    assert [len(sample) for sample in pieces] == [1, 1]
    encoded = encoder.encode(examples, ["x", "y"])
    assert [sample[0].input_ids.tolist() for sample in pieces] == [piece.input_ids.tolist() for piece in encoded]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": " "},
        {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": ""},
        {"question": "a", "answers": ["b", ""], "scores": [1, 0]},
    ],
)
def test_an_answer_without_text_is_no_error_and_has_no_target(row: dict[str, Any]) -> None:
    encoder = PairEncoder(byte_level())
    ((_, chosen, rejected),) = encoder.encode_samples(encoder.read(row, {}), ["data.jsonl:1"])
    assert chosen.supervised.any()
    assert not rejected.supervised.any()


# --- a real tokenizer on real data

SOLUTIONS = SHARED / "data/gsm8k/example_model_solutions.jsonl"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def right_against_wrong() -> Iterator[dict[str, Any]]:
    """The first right solution of each problem against the first wrong one, where it has both."""
    with SOLUTIONS.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            right = [row[model]["solution"] for model in MODELS if row[model]["is_correct"]]
            wrong = [row[model]["solution"] for model in MODELS if not row[model]["is_correct"]]
            if right and wrong:
                yield {"question": row["question"], "chosen": right[0], "rejected": wrong[0]}


@pytest.mark.slow
@pytest.mark.parametrize("template", [None, "chatml"])
def test_real_pairs_are_exact(template: str | None) -> None:
    folder = os.environ.get("LION_SMOLLM2", "")
    if not Path(folder, "tokenizer.json").is_file() or not SOLUTIONS.is_file():
        pytest.skip("needs LION_SMOLLM2 (a SmolLM2-135M-Instruct folder) and the real data in ../shared/data")
    tokenizer = TokenizerSpec(folder, template).load()
    encoder = PairEncoder(tokenizer)
    examples = [preference for row in right_against_wrong() for preference in encoder.read(row, {})]
    assert len(examples) == 561
    for example, tree in zip(examples, encoder.encode_samples(examples, [""] * 561), strict=True):
        assert_exact(tokenizer, example, tree)
        for side, answer in zip(example.answers, tree[1:], strict=True):
            assert isinstance(side, Conversation)
            assert trained(tokenizer, answer) == [side.messages[-1].content + "<|im_end|>"]


def solutions() -> Iterator[dict[str, Any]]:
    """Each problem with all of its solutions, which are scored 1 if they are right."""
    with SOLUTIONS.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            entries = [{"text": row[model]["solution"], "score": row[model]["is_correct"]} for model in MODELS]
            yield {"question": row["question"], "completions": entries}


@pytest.mark.slow
def test_real_groups_are_exact_and_their_answers_those_of_single_rows() -> None:
    folder = os.environ.get("LION_SMOLLM2", "")
    if not Path(folder, "tokenizer.json").is_file() or not SOLUTIONS.is_file():
        pytest.skip("needs LION_SMOLLM2 (a SmolLM2-135M-Instruct folder) and the real data in ../shared/data")
    tokenizer = TokenizerSpec(folder).load()
    rows, encoder = list(solutions()), GroupEncoder(tokenizer)
    groups = [tree for row in rows for tree in encoder.read(row, {})]
    trees = encoder.encode_samples(groups, [""] * len(groups))
    assert ([len(tree) for tree in trees], sum(sum(group.values) for group in groups)) == ([5] * 1000, 1541.0)
    labeled = LabeledEncoder(tokenizer)
    singles = []
    for row in rows[:50]:
        for entry in row["completions"]:
            said = {"question": row["question"], "answer": entry["text"], "is_correct": entry["score"]}
            singles += labeled.read(said, {})
    assert [value for single in singles for value in single.values] == [
        v for group in groups[:50] for v in group.values
    ]
    alone = labeled.encode_samples(singles, [""] * len(singles))
    assert_same(alone, [(prompt, answer) for prompt, *answers in trees[:50] for answer in answers])
