"""Which examples count as equal, and which pairs as of one prompt."""

import math

from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import Completion, Conversation, Example, Text
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.store.digests import content_digest, digests, group_digest
from tests.unit.data.pairs import pair_of

ASKED = (Message("system", "Be kind."), Message("user", "Hi"))


def chat(answer: str, *asked: Message, turns: int | None = None) -> Conversation:
    return Conversation((*asked, Message("assistant", answer)), prompt_turns=turns or len(asked))


def test_digests_follow_content_alone() -> None:
    turns = (Message("user", "Hi"), Message("assistant", "Hello"))
    assert content_digest(Conversation(turns)) == content_digest(Conversation(turns, prompt_turns=1))
    different: list[Example] = [
        Conversation(turns),
        Conversation(turns, tools=({"name": "search"},)),
        Conversation((*turns, *turns)),
        Conversation((turns[0], Message("assistant", "Hello", {"name": "x"}))),
        Conversation((turns[0], turns[1]._replace(weight=0.0))),
        Conversation(turns, chat_template_kwargs={"enable_thinking": False}),
        Completion("Hi", "Hello"),
        Completion("HiHe", "llo"),
        Text("HiHello"),
    ]
    assert len({content_digest(example) for example in different}) == len(different)
    first = {"a": 1, "b": 2}
    turned = dict(reversed(first.items()))
    by_key_order = {content_digest(Conversation(turns, tools=(tool,))) for tool in (first, turned)}
    assert len(by_key_order) == 1


def test_scores_are_no_part_of_a_pair_and_its_sides_are_not_interchangeable() -> None:
    good, bad = chat("Hello!", *ASKED), chat("What?", *ASKED)
    pair = content_digest(pair_of(good, bad, 2.0, 0.0))
    assert pair == content_digest(pair_of(good, bad)) == content_digest(pair_of(good, bad, 1.0, 0.5))
    assert pair == content_digest(pair_of(good._replace(prompt_turns=None), bad))
    others = [pair_of(bad, good), pair_of(good, good), pair_of(good, chat("what?", *ASKED))]
    assert len({pair, *map(content_digest, others)}) == 4


def test_labels_and_scores_are_a_part_of_what_has_no_pairs() -> None:
    good, bad = chat("Hello!", *ASKED), chat("What?", *ASKED)
    trees = [
        PromptAnswers((good,), (1.0,)),
        PromptAnswers((good,), (0.0,)),  # two people who disagree are two examples
        PromptAnswers((good, bad), (1.0, 0.0)),
        PromptAnswers((good, bad), (2.0, 0.0)),
        PromptAnswers((bad, good), (1.0, 0.0)),
        PromptAnswers((good, bad), (1.0, 0.0), ((0, 1),)),
        PromptAnswers((good, bad), (1.0, 0.0), ((1, 0),)),
        PromptAnswers((good, bad, good), (1.0, 0.0, 1.0), ((0, 1), (2, 1))),
    ]
    assert len({content_digest(tree) for tree in trees}) == len(trees)
    assert len({group_digest(tree) for tree in trees}) == 1
    again = PromptAnswers((good, bad), (math.nan, math.nan), ((0, 1),))
    assert content_digest(again) == content_digest(trees[5])


def test_pairs_of_one_prompt_are_one_group_whatever_is_answered() -> None:
    one, other = chat("a", *ASKED), chat("b", *ASKED)
    pair = pair_of(one, other, 1.0, 0.0)
    assert group_digest(pair) == group_digest(pair_of(chat("c", *ASKED), one))
    bare = pair_of(chat("a", ASKED[1]), chat("b", ASKED[1]))
    search = ({"name": "search"},)
    tools = pair_of(one._replace(tools=search), other._replace(tools=search))
    marked = [turn._replace(weight=0.0) for turn in ASKED]
    assert group_digest(pair) == group_digest(pair_of(chat("c", *marked), one))
    texts = pair_of(Completion("Hi", "a"), Completion("Hi", "b"))
    assert len({group_digest(pair) for pair in (pair, bare, tools, texts)}) == 4
    assert group_digest(texts) == group_digest(pair_of(Completion("Hi", "x"), Completion("Hi", "y")))
    assert group_digest(texts) != group_digest(pair_of(Completion("Hi a", "x"), Completion("Hi a", "y")))


def test_the_group_of_anything_but_a_pair_is_itself() -> None:
    example = chat("Hello", *ASKED)
    assert group_digest(example) == content_digest(example)


def test_both_digests_at_once_are_those_of_each() -> None:
    one, other = chat("a", *ASKED), chat("b", *ASKED)
    for example in (one, pair_of(one, other, 1.0, 0.0), pair_of(Completion("Hi", "a"), Completion("Hi", "b"))):
        assert digests(example) == (content_digest(example), group_digest(example))
