"""The aspect judge of configs/judge: means of four ratings; for N/A, or no rating, no number is made up."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from lion_lightning.data.formats.pairing import BestRandom
from lion_lightning.judges import Judge, RubricLLMJudge, WeightedJudge, score_answers
from lion_lightning.judges.text import last_rating
from lion_lightning.rollouts.files import read_rollouts, write_rollouts
from lion_lightning.rollouts.metrics.rounds import round_metrics
from lion_lightning.rollouts.rewards.scoring import Scoring
from lion_lightning.rollouts.rollout import Rollout, with_pairs, with_usable
from lion_lightning.rollouts.rounds import Round, round_path
from lion_lightning.types import Answer, Prompt
from tests.unit.chat_server import serving

CONFIG = Path(__file__).parents[3] / "configs" / "judge" / "aspects.yaml"
ASPECTS = {"How helpful": 0, "How exactly": 1, "How honest": 2, "How true": 3}
SEEDS: dict[str, Any] = {"one": (5, 4, 3, 4), "two": (5, 5, 5, 5), "three": (4, 4, 4, 4), "four": (4, 4, 4, 4)}
PROMPT = Prompt("ask", (5,), ({"role": "user", "content": "ask"},), {}, where="f:1")


@contextmanager
def aspects(ratings: dict[str, Any], folder: Path) -> Iterator[tuple[WeightedJudge, list[str]]]:
    """The shipped judge before a server that rates each answer so, by aspect; and the questions that it was asked."""
    asked: list[str] = []

    def reply(route: str, body: Any) -> tuple[int, Any]:
        question = body["messages"][0]["content"]
        asked.append(question)
        (answer,) = re.findall(r"<answer \w+>\n(.*)\n</answer", question)
        (aspect,) = (number for words, number in ASPECTS.items() if words in question)
        text = f"Because.\nRating: {ratings[answer][aspect]}"
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    settings = yaml.safe_load(CONFIG.read_text("utf-8"))["init_args"]
    with serving(reply) as url:
        server = {"url": url, "cache_dir": folder / "cache"}
        judges: list[Judge] = [RubricLLMJudge(**{**one["init_args"], **server}) for one in settings["judges"]]
        yield WeightedJudge(**{**settings, "judges": judges}), asked


def test_the_config_is_named_by_its_path_where_a_judge_stands() -> None:
    parser = ArgumentParser()
    parser.add_argument("--judge", type=Judge, sub_configs=True)
    judge = parser.instantiate_classes(parser.parse_object({"judge": str(CONFIG)})).judge
    assert judge.names == ["helpfulness", "instruction_following", "honesty", "truthfulness"]
    assert [(one.lowest, one.highest, one.may_not_apply) for one in judge.judges] == [
        (1, 5, name == "honesty") for name in judge.names
    ]
    assert len({one.template for one in judge.judges}) == 4
    assert judge.may_not_rate == ["honesty"]


def test_the_best_mean_is_chosen_against_any_of_a_lower_one(tmp_path: Path) -> None:
    with aspects(SEEDS, tmp_path) as (judge, asked):
        judged = score_answers(judge, [PROMPT], [list(SEEDS)])
        assert len(asked) == 16  # a request for each answer and aspect
    assert judged.scores == [[4.0, 5.0, 4.0, 4.0]]
    assert judged.by_judge["honesty"] == [[3.0, 5.0, 4.0, 4.0]]
    drawn = {BestRandom(seed).pairs(judged.scores[0], "key")[0] for seed in range(40)}
    assert drawn == {(1, 0), (1, 2), (1, 3)}


def test_equal_means_are_a_tie(tmp_path: Path) -> None:
    with aspects({"one": (5, 3, 4, 4), "two": (4, 4, 4, 4)}, tmp_path) as (judge, _):
        scored = Scoring(judge).score([Rollout(PROMPT, (Answer("one", "stop", (3,)), Answer("two", "stop", (4,))))])
    (rollout,) = (with_usable(one, lambda _: True) for one in scored)
    assert rollout.scores == (4.0, 4.0)
    paired = with_pairs(rollout, lambda prompt, _, scores: BestRandom().pairs(scores, prompt.text))
    assert paired.pairs == ((0, 1),)  # margin 0: the data module leaves it out, and counts "equal scores"
    assert paired.scores[0] == paired.scores[1]


def test_an_aspect_that_does_not_apply_is_left_out_for_all_answers_to_the_prompt_and_counted(tmp_path: Path) -> None:
    ratings = {"one": (5, 4, "N/A", 3), "two": (3, 3, 5, 5)}
    with aspects(ratings, tmp_path) as (judge, _):
        rollouts = [Rollout(PROMPT, tuple(Answer(text, "stop", (3,)) for text in ratings))]
        scored = Scoring(judge).score(rollouts)
    # Means of three: (5 + 4 + 3) / 3 and (3 + 3 + 5) / 3. With -1 or 1 in place of N/A, the other would be chosen.
    assert scored[0].scores == pytest.approx((4.0, 11 / 3))
    path = round_path(tmp_path, 0)
    write_rollouts(path, scored, {"round": 0, "identity": "x"})
    (read,) = read_rollouts(path)
    assert math.isnan(read.by_judge["honesty"][0])
    assert read.by_judge["honesty"][1] == 5.0
    metrics = round_metrics(Round(path))
    assert (metrics["not_rated/honesty"], metrics["reward/honesty"]) == (1.0, 5.0)
    assert "not_rated/truthfulness" not in metrics


def test_no_rating_in_any_reply_is_an_error_and_n_a_is_none_where_it_was_not_offered(tmp_path: Path) -> None:
    for wrong in ("many", "N/A"):
        with (
            aspects({"one": (wrong, 4, 4, 4)}, tmp_path) as (judge, asked),
            pytest.raises(
                ValueError, match=r"f:1: no rating or verdict in 3 replies of judge; the last one ends in .*"
            ),
        ):
            score_answers(judge, [PROMPT], [["one"]])
        assert len(asked) == 3  # of the first aspect, which is asked again


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: N/A", math.nan),
        ("**Rating:** n / a.", math.nan),
        ("Rating: 4\nNo:\nRating: N/A", math.nan),
        ("Rating: N/A\nNo:\nRating: 4", 4.0),
        ("Rating: no answer", None),
        ("N/A", None),
    ],
)
def test_the_last_rating_counts_whether_it_is_a_number_or_none(reply: str, rating: float | None) -> None:
    found = last_rating(reply, 1, 5, may_not_apply=True)
    assert found == rating or (found is not None and rating is not None and math.isnan(found) and math.isnan(rating))
    assert last_rating("Rating: N/A", 1, 5) is None


class Rates:
    """Rates every answer so."""

    def __init__(self, *ratings: float, may_not_apply: bool = False) -> None:
        self.ratings, self.may_not_apply = ratings, may_not_apply

    def score(self, prompts: Any, answers: Any) -> Any:
        return [list(self.ratings) for _ in prompts]


def test_weights_and_standard_scores_are_those_of_the_judges_that_rate() -> None:
    judges: list[Judge] = [Rates(1, 3), Rates(math.nan, 2, may_not_apply=True), Rates(2, 2)]
    scores = score_answers(WeightedJudge(judges, [1, 2, 3], list("abc")), [PROMPT], [["x", "y"]])
    assert scores.scores[0] == pytest.approx([6 / 4 * (1 * 1 + 3 * 2), 6 / 4 * (1 * 3 + 3 * 2)])
    assert json.dumps(scores.by_judge["b"]) == "[[NaN, 2.0]]"
    standard = WeightedJudge(judges, [1, 2, 3], list("abc"), standardize=True)
    assert score_answers(standard, [PROMPT], [["x", "y"]]).scores[0] == pytest.approx([-1.5, 1.5])


def test_not_a_number_is_an_error_from_any_other_judge() -> None:
    with pytest.raises(ValueError, match="b returned the score nan for an answer to f:1"):
        score_answers(WeightedJudge([Rates(1), Rates(math.nan)], names=["a", "b"]), [PROMPT], [["x"]])
    alone = Rates(math.nan, may_not_apply=True)
    with pytest.raises(ValueError, match="Rates returned the score nan"):
        score_answers(alone, [PROMPT], [["x"]])
    with pytest.raises(ValueError, match=r"WeightedJudge: a may leave answers unrated \(may_not_apply\); add a judge"):
        WeightedJudge([alone], names=["a"])
    with pytest.raises(ValueError, match="give all of them weights above 0"):
        WeightedJudge([alone, Rates(1)], [1.0, -1.0])


def test_what_may_not_apply_is_part_of_the_identity() -> None:
    one, other = (RubricLLMJudge("http://x", "m", may_not_apply=may).identity() for may in (True, False))
    assert one != other
