"""The benchmarks of trees: what both sides train on, the operations that they do, and that each table is made."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.benchmarks import ROOT, benchmark

LENGTHS = [[3, 9], [4, 8]]
TINY = {
    "num_hidden_layers": 1,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
PER_TOKEN = 6 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8)
PER_POSITION = 2 * 4 * 49152
"""Of the head, in one direction."""
PER_PAIR = 12 * 2 * 2


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return benchmark


def test_ranked_answers_are_the_same_for_both_sides_and_taken_apart_for_one(scripts: Any) -> None:
    batches = scripts("batches")
    job = {"data": "ranked", "trees": 2, "answers": 3, "lengths": LENGTHS, "steps": 3, "accumulate": 1}
    trees = batches.steps_of(job)
    assert [len(step) for step in trees] == [2, 2, 2]
    assert {(len(tree.prompt), *map(len, tree.answers)) for tree in trees[0]} == {(3, 4, 4, 4)}  # warms up
    assert all(3 <= len(tree.prompt) <= 9 for step in trees for tree in step)
    apart = batches.steps_of(job | {"steps": 9, "accumulate": 3, "apart": True})  # six pairs a turn, two at once
    assert [len(step) for step in apart] == [2] * 9
    one, _ = trees[1]
    first, second, third = one.answers
    pairs = [(item.prompt, item.answers) for step in apart[3:6] for item in step][:3]
    assert pairs == [(one.prompt, (first, second)), (one.prompt, (first, third)), (one.prompt, (second, third))]


def test_groups_are_the_same_for_both_sides_and_have_half_of_their_answers_right(scripts: Any) -> None:
    batches = scripts("batches")
    job = {"data": "groups", "trees": 2, "answers": 4, "lengths": LENGTHS, "steps": 4, "accumulate": 2}
    trees = batches.steps_of(job)
    assert [len(micro_batch) for micro_batch in trees] == [1] * 4  # two turns, a prompt in each micro-batch
    assert all(sum(tree.labels) == 2 for (tree,) in trees)
    alone = batches.steps_of(job | {"steps": 8, "accumulate": 4, "apart": True})  # eight answers a turn, two at once
    assert [len(micro_batch) for micro_batch in alone] == [2] * 8
    (tree,) = trees[3]
    found = [(item.prompt, item.answers, item.labels) for micro_batch in alone[6:] for item in micro_batch]
    pairs = zip(tree.answers, tree.labels, strict=True)
    assert found == [(tree.prompt, (answer,), (label,)) for answer, label in pairs]


def test_rewards_of_a_group_are_its_labels_and_it_has_no_pairs(scripts: Any) -> None:
    item = scripts("batches").Item([5, 6], ([7], [8, 9], [10]), (True, False, True))
    (batch,) = scripts("training_workers").loader([[item]])
    assert (list(batch.values), list(batch.pairs)) == ([1.0, 0.0, 1.0], [])


def test_a_mismatched_answer_is_of_another_prompt_in_the_same_turn(scripts: Any) -> None:
    batches = scripts("batches")
    job = {"data": "labeled", "trees": 4, "lengths": LENGTHS, "steps": 2, "accumulate": 1}
    for step in batches.steps_of(job):
        assert [item.labels for item in step] == [(True,), (False,), (True,), (False,)]
        matched = [tuple(item.answers[0]) for item in step]
        assert [item.mismatched for item in step] == [matched[-1], *matched[:-1]]


def test_operations_of_a_tree_and_of_padded_pairs(scripts: Any) -> None:
    item = scripts("batches").Item
    costs = scripts("operations").Costs(TINY, has_head=True)
    tree = item([1] * 2, ([1] * 3, [1]))
    # prompt 1 + 2; first answer 2 x 3 with the prompt, 1 + 2 + 3 own; second 2 and 1
    assert costs.of_tree(tree) == 6 * PER_TOKEN + 4 * 3 * PER_POSITION + (3 + 12 + 3) * PER_PAIR
    # two sequences of five, four positions each; logits twice
    assert costs.of_padded([tree]) == pytest.approx(2 * (5 * PER_TOKEN + 4 * 4 * PER_POSITION + 15 * PER_PAIR))
    without = scripts("operations").Costs(TINY, has_head=False)
    assert without.of_tree(tree) == 6 * PER_TOKEN + 18 * PER_PAIR


def test_operations_of_mismatched_answers_are_those_of_a_forward_pass(scripts: Any) -> None:
    item = scripts("batches").Item
    costs = scripts("operations").Costs(TINY, has_head=True)
    plain, both = item([1] * 2, ([1],)), item([1] * 2, ([1],), (True,), (1, 1))
    forward = (4 * PER_TOKEN + 2 * 3 * PER_POSITION + (3 + 4 + 3) * PER_PAIR) / 3
    assert costs.of_tree(both) - costs.of_tree(plain) == pytest.approx(forward)
    padded = (4 * PER_TOKEN + 3 * 3 * PER_POSITION + 10 * PER_PAIR) / 3
    assert costs.of_padded([both]) - costs.of_padded([plain]) == pytest.approx(padded)


def test_operations_of_a_round_are_padded_to_its_longest_prompt_and_answer(scripts: Any) -> None:
    item, costs = scripts("batches").Item, scripts("operations").Costs(TINY, has_head=True)
    answers = [item([1] * 2, ([1],), (True,)), item([1], ([1] * 3,), (False,))]
    # two sequences of 2 + 3, four positions each: logits twice in training, once in a pass forward
    training = 2 * (5 * PER_TOKEN + 4 * 4 * PER_POSITION + 15 * PER_PAIR)
    forward = 2 * (5 * PER_TOKEN + 4 * 3 * PER_POSITION + 15 * PER_PAIR) / 3
    assert costs.of_round(answers, passes=0) == pytest.approx(training)
    assert costs.of_round(answers, passes=2) == pytest.approx(training + 2 * forward)


def test_a_bound_of_grpo_counts_the_passes_of_both_sides(scripts: Any) -> None:
    operations = scripts("operations")
    job = {"stage": "grpo", "data": "groups", "trees": 1, "answers": 2, "lengths": [[2, 2], [3, 3]], "shape": TINY}
    ours = job | {"steps": 2, "accumulate": 1, "beta": 0.1, "updates": 2}
    found = operations.bound(ours, ours | {"steps": 4, "accumulate": 2, "apart": True})
    # ours: 8 tokens, 6 targets, pairs 3 + 2 x (3 x 2 + 6); a pass of the reference and one of the policy that sampled
    own = (8 * PER_TOKEN + 6 * 3 * PER_POSITION + 27 * PER_PAIR) * (1 + 2 / 3)
    theirs = 2 * (5 * PER_TOKEN * 5 / 3 + 4 * 6 * PER_POSITION + 15 * PER_PAIR * 5 / 3)
    assert found["GFLOP a step, ours"] == pytest.approx(own / 1e9)
    assert found["GFLOP a step, TRL"] == pytest.approx(theirs / 1e9)


def test_a_table_goes_into_its_file_and_its_page(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees, page, out = scripts("trees"), tmp_path / "page.md", tmp_path / "new" / "before.json"
    page.write_text("<!-- before begins -->\n<!-- before ends -->\n", encoding="utf-8")
    asked = []

    def measure(table: str, place: Any) -> list[Any]:
        asked.append((table, place.rounds, place.precision, place.commit))
        return [trees.Measurement("DPO", "s a turn", [1.0, 1.0], [2.0, 4.0], most=1.03)]

    monkeypatch.setattr(trees, "measure", measure)
    files = ["--out", str(out), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["trees.py", "before", "--precision", "32-true", "--commit", "abc", *files])
    trees.main()
    assert asked == [("before", trees.ROUNDS["before"], "32-true", "abc")]
    assert "| DPO, s a turn |  | 1 | 3 | 0.375 (0.25-0.5) | <= 1.03 | met |" in page.read_text(encoding="utf-8")
    assert json.loads(out.read_text(encoding="utf-8"))["measurements"][0]["ratio"] == 0.375


def tables(trees: ModuleType, table: str, folder: Path) -> dict[str, Any]:
    place = trees.Place(folder, 1, "32-true")
    shape = TINY | {"hidden_size": 16}
    return {found.what: found for found in trees.measure(table, place, shape=shape, lengths=LENGTHS)}


@pytest.mark.slow
@pytest.mark.exhaustive  # test_trl_losses.py compares the losses of pairs, and the groups below the whole steps
@pytest.mark.timeout(600)
def test_all_pairs_of_ranked_answers_are_what_trl_trains(scripts: Any, tmp_path: Path) -> None:
    speed, memory, tokens = tables(scripts("trees"), "ranked", tmp_path).values()
    assert speed.against.startswith("TRL, micro-batches of ")
    assert speed.extra["largest difference of a step's losses"] < 1e-5
    assert tokens.ours == tokens.peer  # every prompt and answer once
    assert memory.peer


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_labeled_answers_and_rewards_are_what_trl_trains(scripts: Any, tmp_path: Path) -> None:
    found = tables(scripts("trees"), "answers", tmp_path)
    speeds = [measurement for measurement in found.values() if measurement.unit.endswith("/s")]
    # the other side computes an answer once for each of its pairs, so that answers do not compare
    assert [measurement.unit for measurement in speeds] == ["answers/s", "pairs/s", "pairs/s"]
    assert [measurement.against[:3] for measurement in speeds] == ["TRL"] * 3
    for measurement in speeds:
        assert measurement.extra["largest difference of a step's losses"] < 1e-5, measurement.what


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rounds_of_own_answers_are_what_trl_trains(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = scripts("trees")
    stages = [stage for stage in trees.TABLES["grpo"] if stage.name in ("grpo", "grpo-kl-old")]
    one = {"micro-batches of 2": stages[1].settings["micro-batches of 2"]}
    monkeypatch.setitem(trees.TABLES, "grpo", [replace(stage, settings=one) for stage in stages])
    speed, _, tokens, later, memory = tables(trees, "grpo", tmp_path).values()
    assert tokens.ours == tokens.peer
    assert memory.peer
    for measurement in (speed, later):
        assert measurement.against == "TRL, micro-batches of 2"
        assert measurement.extra["largest difference of a step's losses"] < 1e-6
        assert measurement.extra["largest relative difference of a step's gradient norms"] < 1e-5


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_an_earlier_commit_trains_the_same_pairs(scripts: Any, tmp_path: Path) -> None:
    trees = scripts("trees")
    known = subprocess.run(["git", "cat-file", "-e", trees.COMMIT], cwd=ROOT, capture_output=True, check=False)
    if known.returncode:
        pytest.skip(f"the checkout lacks commit {trees.COMMIT}")
    found = tables(trees, "before", tmp_path)
    assert len(found) == 9  # time and memory of four stages, tokens of one
    (tokens,) = (measurement for what, measurement in found.items() if "tokens" in what)
    assert tokens.ratio < 0.5  # five answers and a prompt, for twenty and ten
