"""What was written for AlpacaEval 2, Arena-Hard and MT-Bench, read by those tools' own code where it is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.tools.answers.mt_bench import TEMPERATURES
from tests.unit.tools.answers.benchmark_files import ALPACA, ARENA, MT, Echo, lines, listed, served_policy, write


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> RolloutPolicy:
    return served_policy(tmp_path_factory.mktemp("model"))


def test_alpaca_eval_itself_reads_and_merges_the_answers(tmp_path: Path, served: RolloutPolicy) -> None:
    utils = pytest.importorskip("alpaca_eval.utils", reason="needs AlpacaEval: pip install alpaca_eval")
    annotators = pytest.importorskip("alpaca_eval.annotators")
    questions = listed(tmp_path / "q.json", ALPACA)
    for model in ("ours", "theirs"):
        write("alpaca_eval", questions, tmp_path / f"{model}.json", served, Echo())
    frame = utils.load_or_convert_to_dataframe(tmp_path / "ours.json")
    assert utils.get_generator_name(None, frame) == "ours"
    assert frame["instruction"].tolist() == [row["instruction"] for row in ALPACA]
    seen: list[Any] = []

    class Judge(annotators.PairwiseAnnotator):  # type: ignore[name-defined,misc]
        """Everything but the call of the judging model."""

        def __init__(self) -> None:
            self.input_keys, self.output_keys = ["instruction"], ["output_1", "output_2"]

        def __call__(self, to_annotate: Any, **options: Any) -> Any:
            seen.append(to_annotate)
            return to_annotate

    theirs = utils.load_or_convert_to_dataframe(tmp_path / "theirs.json")
    Judge().annotate_head2head(outputs_1=theirs, outputs_2=frame)
    assert len(seen[0]) == 3
    assert set(seen[0]["generator_2"]) == {"ours"}
    assert seen[0]["output_2"].tolist() == [f"to {row['instruction']}" for row in ALPACA]


def test_fastchat_itself_reads_the_questions_and_the_answers(tmp_path: Path, served: RolloutPolicy) -> None:
    common = pytest.importorskip(
        "fastchat.llm_judge.common", reason="needs FastChat: pip install fschat openai anthropic"
    )
    questions = lines(tmp_path / "question.jsonl", MT)
    out = tmp_path / "model_answer" / "ours.jsonl"
    write("mt_bench", questions, out, served, Echo())
    loaded = common.load_questions(str(questions), None, None)
    answers = common.load_model_answers(str(out.parent))
    assert answers.keys() == {"ours"}
    two_turns = loaded[:3]
    common.check_data(two_turns, answers, {}, ["ours"], {})
    matches = [
        common.MatchSingle(question, "ours", answers["ours"][question["question_id"]], None, multi_turn=True)
        for question in two_turns
    ]
    assert [match.answer["choices"][0]["turns"][1] for match in matches] == ["to w4", "to w6", "to w8"]


def test_fastchat_has_the_same_temperatures() -> None:
    common = pytest.importorskip(
        "fastchat.llm_judge.common", reason="needs FastChat: pip install fschat openai anthropic"
    )
    assert {name: common.temperature_config[name] for name in TEMPERATURES} == TEMPERATURES


def test_arena_hard_itself_reads_the_questions_and_the_answers(
    tmp_path: Path, served: RolloutPolicy, monkeypatch: Any
) -> None:
    """It is on no package index, so the test needs a checkout: ``LION_ARENA_HARD=.../arena-hard-auto``."""
    if "LION_ARENA_HARD" not in os.environ:
        pytest.skip("needs LION_ARENA_HARD, the folder of a checkout of lmarena/arena-hard-auto")
    monkeypatch.syspath_prepend(os.environ["LION_ARENA_HARD"])
    tool = pytest.importorskip("utils.completion", reason="Arena-Hard's own requirements are not all installed")
    questions, out = lines(tmp_path / "question.jsonl", ARENA), tmp_path / "model_answer" / "ours.jsonl"
    write("arena_hard", questions, out, served, Echo())
    tool.reorg_answer_file(str(out))
    answers = tool.load_model_answers(str(out.parent))
    assert answers.keys() == {"ours"}
    for question in tool.load_questions(str(questions)):  # what gen_judgment.py puts into the judge's prompt
        answer = answers["ours"][question["uid"]]
        assert answer["messages"][-1]["content"]["answer"] == f"to {question['prompt']}"
        assert answer["model"] == "ours"
    assert write("arena_hard", questions, out, served, Echo()) == 0  # sorted by the tool, and still whole
