"""Answers of the demo's imperfect writers: what they do how often, and what the configs' judge gives for it."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from lion_lightning.judges.base import Judge, score_answers
from lion_lightning.tools.demo import FAMILIES, check, make_pairs, make_prompts, make_ranked, make_written, solve
from lion_lightning.tools.demo.writers import RATES, WEIGHTS, Rates, write
from lion_lightning.types import Prompt

CONFIGS = Path(__file__).parents[4] / "configs"
NEVER, ALWAYS = Rates(0, 0, 0, 0, 0), Rates(1, 0, 1, 1, 1)


@pytest.fixture(scope="module")
def judge() -> Judge:
    """The judge of the demo."""
    config = yaml.safe_load((CONFIGS / "judge" / "demo.yaml").read_text())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--judge", type=Judge)
    built: Judge = parser.instantiate_classes(parser.parse_object({"judge": config})).judge
    return built


@pytest.mark.parametrize(
    ("answer", "parts"),
    [  # content, direct, sure, full stop; 5/8 and three times 1/8
        ("tako.", (1, 1, 1, 1)),
        ("tako", (1, 1, 1, 0)),
        (" tako.\n", (1, 1, 1, 1)),
        ("Well, tako.", (1, 0, 1, 1)),
        ("tako maybe.", (1, 1, 0, 1)),
        ("tako!", (1, 1, 1, 0)),
        ("Well, tako maybe!", (1, 0, 0, 0)),
        ("tkao.", (0, 1, 1, 1)),  # all form and no content: 3/8
        (".", (0, 1, 1, 1)),
        ("I cannot say.", (0, 0, 1, 1)),
        ("Well, I cannot say maybe!", (0, 0, 0, 0)),
        ("tako tako.", (0, 1, 1, 1)),
        ("tako kota fomi.", (0, 1, 1, 1)),  # a list of guesses is no content
        ("", (0, 0, 0, 0)),
    ],
)
def test_parts_of_hand_written_answers(judge: Judge, answer: str, parts: tuple[int, ...]) -> None:
    scored = score_answers(judge, [Prompt("Say tako again.", row={"answer": "tako."})], [[answer]])
    assert [rows[0][0] for rows in scored.by_judge.values()] == list(parts)
    assert list(scored.by_judge) == list(WEIGHTS)
    assert scored.scores == [[5 / 8 * parts[0] + sum(parts[1:]) / 8]]
    assert scored.right == [[bool(parts[0])]]  # its content alone says whether an answer is right


def test_the_judge_scores_as_the_writers_do(judge: Judge) -> None:
    random, prompts, answers, scores = Random(0), [], [], []
    for row, (family, kind) in zip(make_prompts(110, Random(1), set()), list(FAMILIES.items()) * 10, strict=True):
        drawn = kind.draw(random)
        written = [write(family, drawn, random) for _ in range(8)]
        prompts.append(Prompt(row["question"], row={"answer": f"{kind.solve(drawn)}."}))
        answers.append([one.text for one in written])
        scores.append([one.score for one in written])
    assert score_answers(judge, prompts, answers).scores == scores
    assert len({score for row in scores for score in row}) == 8  # from 0 to 1 in steps of 1/8, but 0.5


def test_the_best_answer_of_a_prompt_has_the_whole_score(judge: Judge) -> None:
    rows = make_prompts(len(FAMILIES), Random(0), set())
    scored = score_answers(judge, [Prompt(row["question"], row=row) for row in rows], [[row["answer"]] for row in rows])
    assert scored.scores == [[1.0]] * len(rows)


def test_an_answer_without_slips_and_one_with_all() -> None:
    assert write("repeat", "tako", Random(0), NEVER) == ("tako.", 1.0)
    assert write("repeat", "tako", Random(0), ALWAYS) == ("Well, I cannot say maybe!", 0.0)
    assert write("larger", "3 or 7", Random(0), NEVER._replace(mistake=1)) == ("3.", 0.375)
    assert write("larger", "3 or 7", Random(0), NEVER._replace(refusal=1)) == ("I cannot say.", 0.25)


def test_slips_are_as_frequent_as_their_rates_and_independent() -> None:
    """Each share, of one slip and of two together, within four standard deviations of a binomial's."""
    count = 4400
    texts = [row["messages"][1]["content"] for row in make_written(count, Random(0), set())]
    marks = {"opening": "Well, ", "refusal": "cannot", "closing": " maybe", "mark": "!"}
    rates = RATES._asdict()
    for one, other in product(marks, marks):
        found = sum(marks[one] in text and marks[other] in text for text in texts)
        rate = rates[one] * (1 if one == other else rates[other])
        assert abs(found - count * rate) < 4 * sqrt(count * rate * (1 - rate))
    contents = [text.removeprefix("Well, ").rstrip(".!").removesuffix(" maybe") for text in texts]
    questions = [row["messages"][0]["content"] for row in make_written(count, Random(0), set())]
    right = sum(map(check, questions, contents))
    assert abs(right - 0.7 * count) < 4 * sqrt(count * 0.7 * 0.3)


def test_pairs_are_the_better_and_the_worse_of_two_and_never_tied(judge: Judge) -> None:
    rows = make_pairs(550, Random(0), set())
    prompts = [Prompt("", row={"answer": f"{solved(row)}."}) for row in rows]
    answers = [[row[column][0]["content"] for column in ("chosen", "rejected")] for row in rows]
    chosen, rejected = zip(*score_answers(judge, prompts, answers).scores, strict=True)
    assert all(better > worse for better, worse in zip(chosen, rejected, strict=True))
    assert sum(score == 1 for score in chosen) < 0.1 * len(rows)  # what is chosen is imperfect too


def solved(row: dict[str, Any]) -> str:
    return solve(row["prompt"][0]["content"])


def test_ranked_answers_have_three_scores_in_any_order(judge: Judge) -> None:
    rows = make_ranked(110, Random(3), set())
    prompts = [Prompt("", row={"answer": f"{solved(row)}."}) for row in rows]
    answers = [[turns[0]["content"] for turns in row["answers"]] for row in rows]
    assert score_answers(judge, prompts, answers).scores == [row["scores"] for row in rows]
    assert all(len(set(row["scores"])) == 3 for row in rows)
    orders = Counter(tuple(sorted(range(3), key=row["scores"].__getitem__)) for row in rows)
    assert len(orders) == 6
