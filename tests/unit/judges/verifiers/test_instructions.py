"""Instructions of rows hold as a person would say, by both names, and no row or answer can make one hang."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from lion_lightning.judges import Instructions, VerifierJudge
from lion_lightning.judges.verifiers.constraints import counting
from lion_lightning.judges.verifiers.instructions import IFEVAL, TULU
from lion_lightning.types import Prompt


def asked(**row: Any) -> Prompt:
    return Prompt("?", (), (), row, where="f:1")


def ifeval(name: str, **arguments: Any) -> Prompt:
    return asked(instruction_id_list=[name], kwargs=[{**arguments, "relation": arguments.get("relation")}])


def tulu(name: str, **arguments: Any) -> Prompt:
    unused = {key: None for key in ("N", "quantifier", "word", "options") if key not in arguments}
    return asked(ground_truth=json.dumps({"func_name": name, **arguments, **unused}))


def follows(prompt: Prompt, answer: str) -> bool:
    return Instructions()(prompt, answer)


JSON = "detectable_format:json_format"
PARAGRAPHS = "length_constraints:number_paragraphs"
BULLETS = "detectable_format:number_bullet_lists"
HIGHLIGHTS = "detectable_format:number_highlighted_sections"
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    # name, arguments, answers that follow, answers that do not
    ("keywords:existence", {"keywords": ["cat", "C++"]}, ["Cat, c++!", "c++ (CAT)"], ["concatenate C++", "a cat"]),
    ("keywords:existence", {"keywords": ["new york"]}, ["New\nYork"], ["new-york", "newyork"]),
    ("keywords:forbidden_words", {"keywords": ["bad", "a.c"]}, ["badly, abc"], ["not BAD.", "a.c"]),
    (
        "keywords:frequency",
        {"keyword": "dog", "number": 2, "relation": "at least"},
        ["Dog dog", "a dog, the dog; dog"],
        ["dog dogs hotdog"],
    ),
    ("keywords:frequency", {"keyword": "dog", "number": 1, "relation": "less than"}, ["dogs"], ["dog"]),
    ("keywords:letter_frequency", {"letter": "E", "number": 2, "relation": "at least"}, ["Ee", "bee"], ["be"]),
    ("keywords:letter_frequency", {"letter": "!", "number": 2, "relation": "less than"}, ["a!"], ["a!!"]),
    (
        "length_constraints:number_words",
        {"number": 3, "relation": "at least"},
        ["don't stop now", "well-known is 1"],
        ["* one - two", "well-known one"],
    ),
    ("length_constraints:number_words", {"number": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    (
        "length_constraints:number_sentences",
        {"number": 3, "relation": "at least"},
        ["One. Two! Three?", "1. One.\n2. Two.\n3. Three.", "One\n\nTwo\n\nThree", "他来了。他看了。他走了。"],
        ["Dr. No met Mr. J. Fox at 3.14 p.m. today. It is e.g. Python.", "Wait... what?!", ""],
    ),
    (PARAGRAPHS, {"number": 2}, ["a\n***\nb", "a\n* * *\nb\n***\n"], ["a\n***\n***\nb", "a *** b", "a\n\nb"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"number": 2, "place": 2, "first_word": "Weekend"},
        ["One.\n\n**weekend** comes", 'One.\n \n\n"Weekend," he said'],
        ["One.\n\nWeekends come", "Weekend\n\nOne", "a\n\nb\n\nweekend", "weekend"],
    ),
    (
        "detectable_content:postscript",
        {"marker": "P.S."},
        ["Yes.\nP.S. more", "Yes.\n\n**p. s.** more", "Yes.\nP.S.\nmore"],
        ["Yes. P.S. more", "Yes.\nP.S.", "Yes.\nP.P.S. more"],
    ),
    ("detectable_content:postscript", {"marker": "P.P.S"}, ["Yes.\nP.P.S. more"], ["Yes.\nP.S. more"]),
    (
        "detectable_content:number_placeholders",
        {"number": 2},
        ["[name], [home address]"],
        ["[name] [ ] []", "[name] [a link](http://x)", "[name\n] [x]"],
    ),
    (BULLETS, {"number": 2}, ["* a\n- b", "  + a\n* **b**"], ["* a\n* b\n* c", "* a\n---\n- - -", "*a*\n-5\n* b"]),
    (HIGHLIGHTS, {"number": 2}, ["*a* and **b c**", "* item *a* ***b***"], ["* a\n* b\n* c", "**a**", "*a\nb* *c*"]),
    (
        "detectable_format:multiple_sections",
        {"splitter": "SECTION", "number": 2},
        ["SECTION 1\na\n## SECTION 2:\nb"],
        ["SECTION 1\na\nin SECTION 2", "Section 1\nSection 2", "SECTION A\nSECTION B"],
    ),
    ("detectable_format:title", {}, ["<<poem of joy>>\na", "a <<b>>"], ["<<>>", "<< >>", "<<a\nb>>", ">>a<<", "<a>"]),
    (
        JSON,
        {},
        ['{"a": [1, null]}', '```json\n{"a": 1}\n```', "```\n[]\n```", "1" * 5000],
        ["{'a': 1}", 'Here: {"a": 1}', '{"a": NaN}', "[" * 100_000],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well: My answer is no."],
        ["My answer is yes. My answer is no.", "yes", "my answer is yes."],
    ),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******a******b******"],
        ["a", "a******a", "a******b******c", "a************b"],
    ),
    ("combination:repeat_prompt", {"text": "Say it. "}, ["say it.\nIt."], ["Say it.", "I Say it. It", "Say it, it"]),
    ("startend:end_checker", {"phrase": "Bye now."}, ["So. bye now.\n", '"So. Bye now."'], ["Bye now. So", "Bye now"]),
    ("startend:end_checker", {"phrase": 'Say "bye"'}, ['So say "bye"'], ["Say bye"]),
    ("startend:quotation", {}, ['"a"', ' "a "b" c"\n'], ["'a'", '"a', '"', '""']),
    (
        "change_case:capital_word_frequency",
        {"number": 2, "relation": "at least"},
        ["I am OK", "THE WELL-KNOWN", "(NASA), X1"],
        ["WELL-KNOWN", "NASA's Ok 12 34"],
    ),
    ("change_case:english_capital", {}, ["ALL 3!"], ["All", "3!"]),
    ("change_case:english_lowercase", {}, ["all 3!"], ["All", "3!"]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b", "a，b", "a، b"]),  # noqa: RUF001
]


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_an_instruction_holds_as_a_person_would_say(
    name: str, arguments: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    names = IFEVAL[name].names
    prompt = ifeval(name, **{names[own]: value for own, value in arguments.items()})
    for answer in right:
        assert follows(prompt, answer), answer
    for answer in wrong:
        assert not follows(prompt, answer), answer


def test_both_families_name_the_same_constraints_and_every_one_of_ifevals_is_tried_above() -> None:
    assert {one.check for one in IFEVAL.values()} == {one.check for one in TULU.values()}
    assert {name for name, *_ in CASES} == set(IFEVAL)


@pytest.mark.parametrize(
    ("name", "arguments", "right", "wrong"),
    [
        ("validate_word_constraint", {"N": 3, "quantifier": "at most"}, "a b c", "a b c d"),
        ("validate_word_constraint", {"N": 20, "quantifier": "around"}, "w " * 22, "w " * 23),
        (
            "verify_sentence_constraint",
            {"N": 3, "quantifier": "around"},
            "One. B c. D e. F g.",
            "A b. C d. E f. G h. I j.",
        ),
        ("verify_keyword_frequency", {"N": 2, "word": "dog"}, "dog dog", "dog dog dog"),
        ("verify_letter_frequency", {"N": 2.0, "letter": "a"}, "aA", "aaa"),
        ("verify_keywords", {"keyword_list": ["a", "b"]}, "a b", "a c"),
        ("validate_choice", {"options": ["A", "B", "A and B"]}, "I say A and B", "A or B, a"),
        ("validate_choice", {"options": ["maybe", "not maybe"]}, "It is not maybe.", "Maybe"),
        ("validate_sections", {"N": 2, "section_splitter": "Part"}, "Part 1\nPart 2", "Part 1"),
        ("validate_paragraphs", {"N": 2, "i": 1, "first_word": "In the"}, "In the end\n\nso", "In that\n\nso"),
        ("validate_frequency_capital_words", {"N": 1, "quantifier": "less than"}, "ok", "OK"),
        ("validate_repeat_prompt", {"original_prompt": "Say it"}, "Say it: it", "It"),
    ],
)
def test_the_names_of_tulus_data(name: str, arguments: dict[str, Any], right: str, wrong: str) -> None:
    assert follows(tulu(name, **arguments), right)
    assert not follows(tulu(name, **arguments), wrong)


@pytest.mark.parametrize(
    ("count", "number", "holds"),
    [
        (4, 5, {"at most", "less than", "around"}),
        (5, 5, {"at least", "at most", "exactly", "around"}),
        (7, 5, {"at least", "more than"}),
        (33, 30, {"at least", "more than", "around"}),
    ],
)
def test_relations(count: int, number: int, holds: set[str]) -> None:
    assert {one for one in counting.RELATIONS if counting.compares(count, number, one)} == holds


def test_the_second_answer_to_a_prompt_is_judged_by_the_same_label_as_the_first() -> None:
    label = {"func_name": "validate_lowercase"}
    for given in (label, [label], json.dumps(label)):
        scores = VerifierJudge(Instructions(), reward=10).score([asked(ground_truth=given)], [["yes", "so", "No"]])
        assert scores == [[10.0, 10.0, 0.0]]
    assert label == {"func_name": "validate_lowercase"}


def test_all_instructions_of_a_row_have_to_hold_and_an_empty_answer_follows_none() -> None:
    prompt = asked(instruction_id_list=["punctuation:no_comma", "startend:quotation"], kwargs=[{}, None])
    assert follows(prompt, '"a"')
    assert not follows(prompt, "a")
    assert not follows(prompt, '"a, b"')
    assert not follows(ifeval("punctuation:no_comma"), " \n")
    both = asked(ground_truth=[{"func_name": "validate_title"}, {"func_name": "validate_lowercase"}])
    assert [follows(both, text) for text in ("<<a>>", "<<A>>", "a")] == [True, False, False]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            ifeval("keywords:none"),
            r"f:1: Instructions failed \(the instruction 'keywords:none' is unknown; known are .*",
        ),
        (
            tulu("validate_all"),
            r"'validate_all' is unknown; known are verify_keywords, .*validate_no_commas; give `more`",
        ),
        (tulu("validate_response_language", language="en"), "is unknown.*give `more` a function for it"),
        (tulu("verify_bullet_points"), r"verify_bullet_points needs \['N'\], and the row gives \[\]"),
        (tulu("validate_title", N=3), r"validate_title needs no arguments, and the row gives \['N'\]"),
        (tulu("verify_bullet_points", N=2.5), "N is 2.5; it is an integer, 0 or more"),
        (tulu("verify_bullet_points", N=float("nan")), "N is nan; it is an integer"),
        (tulu("verify_bullet_points", N=-1), "N is -1; it is an integer"),
        (tulu("verify_bullet_points", N=True), "N is True; it is an integer"),
        (tulu("validate_end", end_phrase=""), "end_phrase is ''; it is a text, and none is empty"),
        (tulu("validate_end", end_phrase=["x"]), r"end_phrase is \['x'\]; it is a text"),
        (tulu("verify_keywords", keyword_list="cat"), "keyword_list is 'cat'; it is a list of texts"),
        (
            tulu("verify_keywords", keyword_list=["cat", " "]),
            r"keyword_list is \['cat', ' '\]; it is a list of texts, and none is empty",
        ),
        (tulu("validate_word_constraint", N=1, quantifier="above"), "the relation is 'above'; it is one of at least, "),
        (tulu("verify_letter_frequency", N=1, letter="ab"), "the letter is 'ab'; it is one character"),
        (asked(ground_truth="72"), "an instruction is None with 72; give its name and a mapping"),
        (asked(ground_truth="{a"), "column 'ground_truth' is not JSON"),
        (asked(ground_truth=[]), "names no instructions"),
        (asked(instruction_id_list=["startend:quotation"], kwargs=[]), "names no instructions"),
        (asked(label="x"), "no column 'ground_truth' with the reference answer; its columns are label"),
    ],
)
def test_what_a_row_gets_wrong_is_one_line_that_names_it(prompt: Prompt, message: str) -> None:
    judge = VerifierJudge(Instructions())
    with pytest.raises(ValueError, match=message) as raised:
        judge.check_ready([prompt])  # before anything is sampled
    assert str(raised.value).startswith("f:1: ")
    assert "\n" not in str(raised.value)


def in_language(answer: str, language: str) -> bool:
    return language == "en" and "the" in answer


def test_a_function_of_ones_own_for_another_instruction() -> None:
    verifier = Instructions(more={"validate_response_language": in_language})
    prompt = tulu("validate_response_language", language="en")
    assert verifier(prompt, "the cat")
    assert not verifier(prompt, "le chat")
    more = {"validate_response_language": "in_language"}
    assert verifier.identity() == {"column": "ground_truth", "more": more, "always": None}


def test_patterns_in_a_row_are_text_and_no_answer_takes_long() -> None:
    evil = "(a+)+$"
    answers = ["a" * 50_000 + "!", evil]
    texts: dict[str, Any] = {
        "keywords": [evil],
        "options": [evil, "b"],
        "keyword": evil,
        "letter": "a",
        "relation": "at least",
    }
    texts |= {"number": 1, "place": 1, "first_word": evil, "marker": evil, "splitter": evil, "text": evil}
    texts["phrase"] = evil
    for unit in (
        "a",
        " ",
        "\n",
        "*",
        "* ",
        "**a",
        "[",
        "[a ",
        "<<",
        "<<a",
        '"',
        "....",
        ". ",
        "!a",
        "a. ",
        "\n ",
        "P.S.",
    ):
        answers.append(unit * (60_000 // len(unit)) + "x")
    start = time.perf_counter()
    for instruction in set(TULU):
        check, names, fixed = TULU[instruction]
        for answer in answers:
            check(answer, **{own: texts[own] for own in names}, **fixed)
    assert time.perf_counter() - start < 20  # quadratic time in one of them would take minutes
    assert follows(tulu("verify_keywords", keyword_list=[evil]), f"so {evil} there")
    assert not follows(tulu("verify_keywords", keyword_list=[evil]), "aaa")
