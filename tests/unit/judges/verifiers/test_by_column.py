"""Each row of mixed data is checked by the verifier that it names."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lion_lightning.judges import ByColumn, ExactMatch, Instructions, Judge, VerifierJudge
from lion_lightning.judges.verifiers import Verifier
from lion_lightning.rollouts.rounds import identity_of
from lion_lightning.types import Prompt


def asked(where: str, **row: Any) -> Prompt:
    return Prompt("?", (), (), row, where=where)


PARTS: dict[str, Verifier] = {"gsm8k": ExactMatch("ground_truth"), "ifeval": Instructions()}
PROMPTS = [
    asked("f:1", dataset="gsm8k", ground_truth="72"),
    asked("f:2", dataset="ifeval", ground_truth={"func_name": "validate_lowercase"}),
]


def test_a_row_is_checked_by_the_verifier_that_it_names() -> None:
    judge = VerifierJudge(ByColumn(PARTS), reward=10)
    assert judge.score(PROMPTS, [["72", "yes"], ["72", "yes"]]) == [[10.0, 0.0], [0.0, 10.0]]
    assert judge.final_answer(PROMPTS[0], " 72 ") == "72"
    caseless = VerifierJudge(ByColumn({**PARTS, "gsm8k": ExactMatch("ground_truth", ignore_case=True)}))
    assert [caseless.final_answer(prompt, " Yes") for prompt in PROMPTS] == ["yes", "Yes"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"dataset": "MATH"},
            r"f:3: ByColumn failed \(column 'dataset' is 'MATH'; there are verifiers for gsm8k, ifeval",
        ),
        ({"part": "gsm8k"}, r"f:3: ByColumn failed \(the row has no column 'dataset'.*its columns are part"),
        ({"dataset": ["gsm8k"]}, r"f:3: ByColumn failed \(column 'dataset' is \['gsm8k'\]; there are verifiers for"),
    ],
)
def test_a_row_without_a_verifier_is_refused_before_anything_is_sampled(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VerifierJudge(ByColumn(PARTS)).check_ready([*PROMPTS, asked("f:3", **row)])


def test_no_verifiers_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="ByColumn: verifiers is empty"):
        ByColumn({})


def test_the_identity_of_a_round_names_every_verifier_with_its_settings() -> None:
    identity = identity_of(VerifierJudge(ByColumn(PARTS), reward=10))
    assert identity["settings"]["verifiers"]["gsm8k"] == {
        "verifier": "ExactMatch",
        "settings": {"column": "ground_truth", "ignore_case": False, "around": []},
    }
    settings: dict[str, object] = {"column": "ground_truth", "more": {}, "always": None}
    assert identity["settings"]["verifiers"]["ifeval"]["settings"] == settings


def test_it_is_made_from_a_config() -> None:
    parser = ArgumentParser()
    parser.add_argument("--judge", type=Judge)
    parts = {
        "gsm8k": {
            "class_path": "lion_lightning.judges.ExactMatch",
            "init_args": {"column": "ground_truth"},
        },
        "ifeval": {
            "class_path": "lion_lightning.judges.Instructions",
            "init_args": {"more": {"say": "tests.unit.judges.verifiers.test_instructions.in_language"}},
        },
    }
    verifier = {"class_path": "lion_lightning.judges.ByColumn", "init_args": {"verifiers": parts}}
    judge = {"class_path": "lion_lightning.judges.VerifierJudge", "init_args": {"verifier": verifier, "reward": 10}}
    made = parser.instantiate_classes(parser.parse_object({"judge": judge})).judge
    assert made.score(PROMPTS, [["72"], ["NO"]]) == [[10.0], [0.0]]
    assert made.verifier.verifiers["ifeval"].more["say"]("the", "en")
