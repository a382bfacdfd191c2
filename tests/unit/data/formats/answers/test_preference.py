from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from typing_extensions import override

from lion_lightning.data.formats.answers.preference import recognize_preferences
from lion_lightning.data.formats.pairing import AllPairs, BestRandom, BestWorst, Pairing, PromptAnswers
from lion_lightning.data.formats.sft import Completion, Conversation
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import collect_messages, collect_row_messages
from lion_lightning.data.store.digests import content_digest
from tests.unit.data.pairs import pair_of

Turns = list[dict[str, Any]]


def turns(*contents: str, system: str | None = None) -> Turns:
    """Alternating user and assistant turns, as rows write them."""
    said = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return said if system is None else [{"role": "system", "content": system}, *said]


def answer(content: str) -> Turns:
    return [{"role": "assistant", "content": content}]


def chat(*contents: str, prompt_turns: int = 1, system: str | None = None) -> Conversation:
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns(*contents, system=system))
    return Conversation(messages, prompt_turns)


def recognize(row: dict[str, Any], columns: dict[str, str] | None = None) -> PromptAnswers:
    (preference,) = recognize_preferences(row, columns, BestWorst())
    return preference


GOOD_BAD = pair_of(chat("Hi", "good"), chat("Hi", "bad"))
SYSTEM_GOOD_BAD = pair_of(
    chat("Hi", "good", prompt_turns=2, system="Be kind."), chat("Hi", "bad", prompt_turns=2, system="Be kind.")
)
FORMS: dict[str, tuple[dict[str, Any], PromptAnswers]] = {
    "explicit prompt of messages": (
        {"prompt": turns("Hi"), "chosen": answer("good"), "rejected": answer("bad")},
        GOOD_BAD,
    ),
    "explicit prompt of text": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        pair_of(Completion("The sky is", " blue."), Completion("The sky is", " green.")),
    ),
    "implicit prompt of messages": ({"chosen": turns("Hi", "good"), "rejected": turns("Hi", "bad")}, GOOD_BAD),
    "implicit prompt of text": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        pair_of(Completion("The sky is", " blue."), Completion("The sky is", " green.")),
    ),
    "UltraFeedback: the prompt's text is repeated in whole conversations, with scores": (
        {
            "prompt": "Hi",
            "prompt_id": "7",
            "chosen": turns("Hi", "good"),
            "rejected": turns("Hi", "bad"),
            "messages": turns("Hi", "good"),
            "score_chosen": 8.5,
            "score_rejected": 6,
        },
        GOOD_BAD._replace(values=(8.5, 6.0)),
    ),
    "the repeated prompt stands behind a system turn": (
        {
            "prompt": "Hi",
            "chosen": turns("Hi", "good", system="Be kind."),
            "rejected": turns("Hi", "bad", system="Be kind."),
        },
        SYSTEM_GOOD_BAD,
    ),
    "messages that the whole conversations repeat": (
        {"prompt": turns("Hi"), "chosen": turns("Hi", "good"), "rejected": turns("Hi", "bad")},
        GOOD_BAD,
    ),
    "text as prompt, single messages as answers": (
        {"prompt": "Hi", "chosen": answer("good"), "rejected": answer("bad")},
        GOOD_BAD,
    ),
    "messages as prompt, text as answers": ({"prompt": turns("Hi"), "chosen": "good", "rejected": "bad"}, GOOD_BAD),
    "a lone message is an answer": (
        {"prompt": "Hi", "chosen": answer("good")[0], "rejected": answer("bad")[0]},
        GOOD_BAD,
    ),
    "question and system texts are a chat (Orca)": (
        {"system": "Be kind.", "question": "Hi", "chosen": "good", "rejected": "bad"},
        SYSTEM_GOOD_BAD,
    ),
    "an empty system column is none": (
        {"system": "", "question": "Hi", "chosen": "good", "rejected": "bad"},
        GOOD_BAD,
    ),
    "a null prompt is absent": (
        {"prompt": None, "chosen": turns("Hi", "good"), "rejected": turns("Hi", "bad"), "score_chosen": None},
        GOOD_BAD,
    ),
    "ranked texts under a question": (
        {"question": "Hi", "answers": ["bad", "good", "so so"], "scores": [1, 4, 2]},
        GOOD_BAD._replace(values=(4.0, 1.0)),
    ),
    "ranked texts under a text": (
        {"prompt": "The sky is", "answers": [" green.", " blue."], "scores": [0.0, 1.0]},
        pair_of(Completion("The sky is", " blue."), Completion("The sky is", " green."), 1.0, 0.0),
    ),
    "ranked texts under messages": (
        {"prompt": turns("Hi"), "answers": ["good", "bad"], "scores": [True, False]},
        GOOD_BAD._replace(values=(1.0, 0.0)),
    ),
    "ranked messages under a text": (
        {"prompt": "Hi", "answers": [answer("good")[0], answer("bad")[0]], "scores": [0.5, 0.25]},
        GOOD_BAD._replace(values=(0.5, 0.25)),
    ),
    "ranked lists of messages under messages": (
        {"prompt": turns("Hi"), "answers": [answer("bad"), answer("good")], "scores": [-1, 1]},
        GOOD_BAD._replace(values=(1.0, -1.0)),
    ),
}


@pytest.mark.parametrize(("row", "expected"), FORMS.values(), ids=FORMS)
def test_each_known_form_is_recognized(row: dict[str, Any], expected: PromptAnswers) -> None:
    assert recognize(row) == expected


def test_columns_reach_every_known_name() -> None:
    orca = {"instructions": "Be kind.", "input": "Hi", "yes": "good", "no": "bad"}
    columns = {"system": "instructions", "question": "input", "chosen": "yes", "rejected": "no"}
    assert recognize(orca, columns) == SYSTEM_GOOD_BAD
    ranked = {"prompt": turns("Hi"), "completions": ["bad", "good"], "ratings": [1, 2]}
    named = {"answers": "completions", "scores": "ratings"}
    assert recognize(ranked, named) == GOOD_BAD._replace(values=(2.0, 1.0))


def test_columns_choose_between_forms_that_both_fit() -> None:
    row = {"prompt": "Hi", "chosen": "good", "rejected": "bad"}
    assert recognize(row) == pair_of(Completion("Hi", "good"), Completion("Hi", "bad"))
    assert recognize(row, {"question": "prompt"}) == GOOD_BAD


def test_tools_go_along_with_both_sides() -> None:
    row = {"question": "Hi", "chosen": "good", "rejected": "bad", "tools": '[{"type": "function"}]'}
    for side in recognize(row).answers:
        assert isinstance(side, Conversation)
        assert side.tools == ({"type": "function"},)


def test_a_tool_call_can_be_the_answer() -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
    }
    preference = recognize({"prompt": "Hi", "chosen": [call], "rejected": answer("No.")})
    assert preference.answers[0].messages[1] == Message(  # type: ignore[union-attr]
        "assistant", "", {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
    )


# --- an implicit prompt


def test_the_prompt_is_all_messages_that_the_sides_share() -> None:
    preference = recognize({"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "b", "c", "e")})
    assert preference == pair_of(chat("a", "b", "c", "d", prompt_turns=3), chat("a", "b", "c", "e", prompt_turns=3))


def test_sides_that_part_early_keep_their_later_turns_as_answer() -> None:
    preference = recognize({"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "x")})
    assert preference == pair_of(chat("a", "b", "c", "d"), chat("a", "x"))


def test_equal_conversations_are_split_before_the_last_answer_and_are_no_error() -> None:
    talk = chat("a", "b", "c", "d", prompt_turns=3)
    assert recognize({"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "b", "c", "d")}) == pair_of(
        talk, talk
    )


def test_a_side_that_the_other_continues_still_has_an_answer() -> None:
    preference = recognize({"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "b")})
    assert preference == pair_of(chat("a", "b", "c", "d"), chat("a", "b"))


def test_a_repeated_prompt_may_be_an_earlier_user_turn() -> None:
    row = {"prompt": "a\n", "chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "b", "c", "e")}
    assert recognize(row).answers[0] == chat("a", "b", "c", "d", prompt_turns=3)


HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Really?\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (f"{HH} I think so", f"{HH} I doubt it", HH),  # the shared "I" is answer, not prompt
        (f"{HH} yes", f"{HH} yes", HH),
        (f"{HH}", f"{HH} no", HH),  # the empty answer is left out later, by the rules for pairs
        (f"{HH} no", f"{HH} ", HH),
        ("Q: 1+1\nA: two", "Q: 1+1\nA: three", "Q: 1+1\nA:"),  # not "A: t"
        ("Q: 1+1\nA: two", "Q: 1+1\nA: two", "Q: 1+1\nA:"),
        ("Sum:\n\n  2", "Sum:\n\n  3", "Sum:"),  # all white space between goes with the answer
        ("The sky is", "The sky is blue", "The sky"),  # both answers keep a word
        ("The end\n", "The end\n", "The"),
    ],
)
def test_a_prompt_shared_by_texts_ends_at_the_assistants_mark_or_a_whole_word(
    chosen: str, rejected: str, prompt: str
) -> None:
    sides = Completion(prompt, chosen.removeprefix(prompt)), Completion(prompt, rejected.removeprefix(prompt))
    assert recognize({"chosen": chosen, "rejected": rejected}) == pair_of(*sides)


# --- pairing

RANKED = {"question": "Hi", "answers": ["c", "a", "d", "b"], "scores": [2.0, 4.0, 1.0, 3.0]}


def paired(pairing: Pairing, row: dict[str, Any] = RANKED) -> list[tuple[str, str, float]]:
    """The words of chosen and rejected, and by how much the one scores above the other."""
    found: list[tuple[str, str, float]] = []
    for tree in recognize_preferences(row, None, pairing):
        texts = [answer.messages[-1].content for answer in tree.answers if isinstance(answer, Conversation)]
        found += [(texts[i], texts[j], tree.values[i] - tree.values[j]) for i, j in tree.pairs]
    return found


def test_best_and_worst_make_one_pair() -> None:
    assert paired(BestWorst()) == [("a", "d", 3.0)]


def test_all_pairs_have_the_better_answer_first() -> None:
    found = paired(AllPairs())
    assert sorted(found) == [
        ("a", "b", 1.0),
        ("a", "c", 2.0),
        ("a", "d", 3.0),
        ("b", "c", 1.0),
        ("b", "d", 2.0),
        ("c", "d", 1.0),
    ]


def test_best_and_random_draws_each_lower_answer_about_as_often() -> None:
    drawn = Counter(paired(BestRandom(seed))[0] for seed in range(300))
    assert drawn.keys() == {("a", "b", 1.0), ("a", "c", 2.0), ("a", "d", 3.0)}
    assert min(drawn.values()) > 60  # 100 are expected of each; 60 is almost five standard deviations below


def test_best_and_random_depends_on_seed_and_content_alone() -> None:
    rows = [RANKED | {"question": f"Hi {number}"} for number in range(20)]
    draws = [paired(BestRandom(3), row) for row in rows]
    assert draws == list(reversed([paired(BestRandom(3), row) for row in reversed(rows)]))
    assert len({draw[0][1] for draw in draws}) == 3
    assert draws != [paired(BestRandom(4), row) for row in rows]


def test_best_and_random_never_draws_a_tie_where_a_lower_answer_is() -> None:
    row = {"question": "Hi", "answers": ["a", "b", "c"], "scores": [2, 2, 1]}
    assert {paired(BestRandom(seed), row)[0] for seed in range(20)} == {("a", "c", 1.0)}


def test_equal_scores_make_pairs_of_different_answers_and_margin_zero() -> None:
    row = {"question": "Hi", "answers": ["a", "b", "c"], "scores": [1, 1, 1]}
    assert paired(BestWorst(), row) == [("a", "c", 0.0)]
    assert {paired(BestRandom(seed), row)[0] for seed in range(20)} == {("a", "b", 0.0), ("a", "c", 0.0)}
    assert paired(AllPairs(), row) == [("a", "b", 0.0), ("a", "c", 0.0), ("b", "c", 0.0)]


def test_equal_scores_of_two_sides_are_values_of_their_own() -> None:
    row = {"question": "Hi", "chosen": "good", "rejected": "bad", "score_chosen": 3, "score_rejected": 3}
    assert recognize(row).values == (3.0, 3.0)


def test_a_rejected_side_that_scores_higher_keeps_its_values() -> None:
    row = {"question": "Hi", "chosen": "good", "rejected": "bad", "score_chosen": 1, "score_rejected": 3}
    assert recognize(row) == GOOD_BAD._replace(values=(1.0, 3.0))


def test_an_answer_in_several_pairs_is_there_once_and_those_in_none_are_not() -> None:
    class Neighbors(Pairing):
        """The best against the second, and the second against the third."""

        @override
        def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
            first, second, third = sorted(range(len(scores)), key=lambda answer: -scores[answer])[:3]
            return [(first, second), (second, third)]

    (tree,) = recognize_preferences(RANKED, None, Neighbors())
    assert tree == PromptAnswers((chat("Hi", "a"), chat("Hi", "b"), chat("Hi", "c")), (4.0, 3.0, 2.0), ((0, 1), (1, 2)))
    (whole,) = recognize_preferences(RANKED, None, AllPairs())
    # In the order of the pairs: c is rejected by a, and so on.
    assert [answer.messages[1].content for answer in whole.answers] == ["a", "c", "d", "b"]  # type: ignore[union-attr]
    assert whole.pairs == ((0, 1), (1, 2), (3, 1), (0, 2), (0, 3), (3, 2))


def test_a_pair_is_the_same_example_in_a_row_of_its_own_and_out_of_a_ranked_row() -> None:
    (pair,) = recognize_preferences({"question": "Hi", "chosen": "a", "rejected": "d"}, None, BestWorst())
    (best_worst,) = recognize_preferences(RANKED, None, BestWorst())
    assert (pair.answers, pair.pairs) == (best_worst.answers, best_worst.pairs)
    assert content_digest(pair) == content_digest(best_worst)


WRONG_PAIRS: list[tuple[list[tuple[int, int]], str]] = [
    ([(0, 0)], "^Wrong pairs the answers 0 and 0 of 4; return two different positions"),
    ([(0, 1), (0, 4)], "^Wrong pairs the answers 0 and 4 of 4; return two different positions"),
    ([(-1, 0)], "^Wrong pairs the answers -1 and 0 of 4; return two different positions"),
    ([(0, 1), (1, 0), (0, 1)], "^Wrong pairs the answers 0 and 1 2 times; return a pair once$"),
]


@pytest.mark.parametrize(("made", "complaint"), WRONG_PAIRS)
def test_a_pairing_of_answers_that_are_not_there_or_of_a_pair_twice_is_refused(
    made: list[tuple[int, int]], complaint: str
) -> None:
    class Wrong(Pairing):
        @override
        def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
            return made

    with pytest.raises(ValueError, match=complaint):
        recognize_preferences(RANKED, None, Wrong())


def test_a_row_of_which_the_pairing_makes_nothing_is_left_out_and_counted() -> None:
    class Clear(BestWorst):
        @override
        def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
            return super().pairs(scores, key) if max(scores) > 4 else []

    with collect_messages() as messages, collect_row_messages():
        assert recognize_preferences(RANKED, None, Clear()) == []
    assert messages["left out"] == {"Clear makes no pair of the answers": 1}


def test_the_label_of_a_row_with_one_answer_may_be_named() -> None:
    with pytest.raises(ValueError, match=r"^the row has one answer, and pairs need two: .*UnpairedDataModule"):
        recognize({"prompt": "a", "reply": "b", "rating": 1}, {"completion": "reply", "label": "rating"})


def test_identities_tell_pairings_and_their_settings_apart() -> None:
    class Own(BestWorst):
        pass

    pairings: list[Pairing] = [BestWorst(), BestRandom(), BestRandom(1), AllPairs(), Own()]
    assert len({repr(pairing.identity()) for pairing in pairings}) == 5
    assert BestRandom(1).identity() == BestRandom(1).identity()


# --- bad rows

TEXTS = {"prompt": "a", "chosen": "b", "rejected": "c"}
PAIR = {"chosen": turns("a", "b"), "rejected": turns("a", "c")}
LISTED = {"prompt": "Hi", "answers": ["a", "b"], "scores": [1, 2]}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "a", "chosen": "b"}, "prompt [+] chosen [+] rejected lacks rejected; .*transform"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, r"chosen \(null\).*rejected lacks chosen"),
        (
            {"dialogue": "a"},
            "unknown format: the row's keys are dialogue; known: prompt[|]question[|].* [+] chosen [+] rejected; ",
        ),
        ({"messages": turns("a", "b")}, "the row has one answer, and pairs need two: .*UnpairedDataModule .*KTOModule"),
        ({"prompt": "a", "completion": "b", "label": True}, "the row has one answer, and pairs need two"),
        ({"prompt": "a", "response": "b", "thumbs_up": 1}, "the row has one answer, and pairs need two"),
        ({"prompt": "a", "answers": ["b", "c"]}, "prompt [+] answers [+] scores lacks scores"),
        (PAIR | {"chosen": []}, "chosen is empty"),
        (PAIR | {"rejected": "b"}, "rejected is text and chosen is not; make all of them text"),
        (PAIR | {"rejected": turns("x", "c")}, "share no first message to be the prompt"),
        ({"chosen": answer("b"), "rejected": answer("c")}, "share no first message to be the prompt"),
        (
            {"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "b", "x", "d")},
            "prompt differs between the answers, from message 2 on",
        ),
        (PAIR | {"rejected": turns("a", "b", "c")}, "rejected holds, after the prompt, the turns assistant, user"),
        (PAIR | {"prompt": "z"}, "prompt is none of the user turns that the answers begin with"),
        (PAIR | {"prompt": turns("z")}, "chosen holds, after the prompt, the turns user, assistant; .*transform"),
        (PAIR | {"prompt": turns("a"), "rejected": turns("a")}, "rejected holds, after the prompt, the turns none"),
        ({"prompt": turns("a", "b"), "chosen": "c", "rejected": "d"}, "message 2 is assistant after assistant"),
        ({"prompt": "a", "chosen": turns("a", "b"), "rejected": answer("c")}, "share no first message"),
        ({"chosen": "one", "rejected": "two"}, "share no first words to be the prompt; give the row a prompt column"),
        ({"chosen": " a", "rejected": " b"}, "share no first words"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "system": "d"},
            "column 'system' .*no place for it.*format: chat",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{"type": "function"}]},
            "column 'tools' .*no place for it",
        ),
        (PAIR | {"score_chosen": 1}, "only score_chosen is given"),
        (PAIR | {"score_chosen": 1, "score_rejected": "two"}, "score_rejected is 'two', not a number"),
        (PAIR | {"score_chosen": math.nan, "score_rejected": 2}, "score_chosen is nan, not a finite number"),
        (LISTED | {"scores": [1]}, "answers has 2 entries and scores 1; give each answer its score"),
        (LISTED | {"scores": [1, []]}, r"scores\[1\] is list, not a number"),
        (LISTED | {"scores": [10**400, 2]}, r"scores\[0\] is '1000.*, not a number"),
        (LISTED | {"scores": [math.inf, 2]}, r"scores\[0\] is inf, not a finite number"),
        (LISTED | {"scores": [None, 2]}, r"scores\[0\] is NoneType, not a number"),
        (LISTED | {"scores": 3}, "scores is int, not a list"),
        (LISTED | {"answers": "ab"}, "answers is str, not a list"),
        (LISTED | {"answers": ["a"], "scores": [1]}, "a pair needs two answers, and answers has 1; skip the row"),
        (LISTED | {"answers": ["a", answer("b")]}, r"answers\[0\] is text and answers\[1\] is not"),
        (
            LISTED | {"answers": [{"reply": "a"}, {"reply": "b"}]},
            r"answers\[0\]\[0\] has no role; .* \(its other keys are reply\)",
        ),
    ],
)
def test_a_bad_row_gets_one_line_that_says_what_is_wrong(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        recognize(row)
    assert "\n" not in str(caught.value)


def test_a_misspelt_known_column_is_named() -> None:
    with pytest.raises(ValueError, match="unknown column 'choosen'; known are answers, chat_template_kwargs, chosen"):
        recognize({"prompt": "a"}, {"choosen": "good"})
