"""Tasks of lm-evaluation-harness: which ones, with how many shots, and what its results say, by hand and for real."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.tools.harness.main import main
from lion_lightning.tools.harness.tasks import (
    Figure,
    HarnessSettings,
    Task,
    _language_model,
    parse_task,
    read_figures,
    run_tasks,
)
from tests import tiny

REAL = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: pip install 'lion-lightning[harness]'"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny.tokenizer_folder(tmp_path_factory.mktemp("model"))
    RolloutPolicy(tiny.policy(), TokenizerSpec(str(made)).load()).write(made)
    return made


def test_a_task_has_the_shots_of_the_paper_unless_others_are_given() -> None:
    assert parse_task("hellaswag") == Task("hellaswag", 10)
    assert parse_task("truthfulqa_mc2") == Task("truthfulqa_mc2", 0)
    assert parse_task("hellaswag=0") == Task("hellaswag", 0)
    assert parse_task("my_task") == Task("my_task", None)
    with pytest.raises(ValueError, match="'five' is no number of shots; write mmlu=5"):
        parse_task("mmlu=five")


def test_the_numbers_of_a_task_are_read_with_their_errors() -> None:
    result = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "sample_len": 40,
                "exact_match,strict-match": 0.25,
                "exact_match_stderr,strict-match": 0.07,
                "exact_match,flexible-extract": 0.5,
                "exact_match_stderr,flexible-extract": "N/A",
            }
        },
        "n-shot": {"gsm8k": 5},
        "n-samples": {"gsm8k": {"original": 1319, "effective": 40}},
    }
    assert read_figures(Task("gsm8k", 5), result) == [
        Figure("gsm8k", "exact_match", "strict-match", 0.25, 0.07, 5, 40),
        Figure("gsm8k", "exact_match", "flexible-extract", 0.5, None, 5, 40),
    ]


def test_a_group_gives_its_own_number_or_else_those_of_its_tasks() -> None:
    parts: dict[str, Any] = {name: {"acc,none": value} for name, value in (("a", 0.5), ("b", 1.0))}
    shared = {"n-shot": {"a": 5, "b": 5}, "n-samples": {}}
    whole = {"results": {**parts, "both": {"acc,none": 0.75, "acc_stderr,none": 0.1}}, **shared}
    assert read_figures(Task("both"), whole) == [Figure("both", "acc", "none", 0.75, 0.1, None, None)]
    bare = {"results": {**parts, "both": {"alias": "both"}}, **shared}
    assert [(figure.task, figure.value) for figure in read_figures(Task("both"), bare)] == [("a", 0.5), ("b", 1.0)]


def test_without_the_harness_one_line_says_what_to_install(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lion-lightning\[harness\]'"):
        main([str(folder)])


def test_a_model_that_lacks_weights_is_refused_before_the_harness_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    module = ModuleType("lm_eval.models.huggingface")
    module.HFLM = lambda pretrained, **_: made.append(pretrained)  # type: ignore[attr-defined]
    for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface"):
        monkeypatch.setitem(sys.modules, name, module)
    tiny.policy().causal_lm.save_pretrained(tmp_path)
    _language_model(str(tmp_path), HarnessSettings())
    assert made == [str(tmp_path)]
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing model\.norm\.weight"):
        _language_model(str(tmp_path), HarnessSettings())
    assert made == [str(tmp_path)]


# --- for real: tasks in files of our own, a tiny model, no network

QUESTIONS: list[dict[str, Any]] = [
    {"q": f"w{3 + n} w{17 + 2 * n}", "c": [f"w{40 + n}", f"w{60 + n}"], "a": n % 2} for n in range(12)
]
SHOT = {"q": "w90 w91", "c": ["w92", "w93"], "a": 1}


def task_files(folder: Path, spoken: Sequence[str]) -> Path:
    """A task of choices with a split for shots, one of generated text, and a group of the first one with its twin."""
    made = folder / "tasks"
    made.mkdir()
    rows = [{**row, "t": text} for row, text in zip(QUESTIONS, spoken, strict=True)]
    (made / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "shots.jsonl").write_text(json.dumps({**SHOT, "t": "w3"}) + "\n")
    data = {"data_files": {"test": str(made / "test.jsonl"), "train": str(made / "shots.jsonl")}}
    metric = {"aggregation": "mean", "higher_is_better": True}
    common: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": data,
        "test_split": "test",
        "training_split": "train",
    }
    choice = {**common, "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{c}}"}
    choice |= {"doc_to_target": "{{a}}", "metric_list": [{"metric": "acc", **metric}]}
    generated = {**common, "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{t}}"}
    generated |= {"generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 2, "do_sample": False}}
    generated |= {"metric_list": [{"metric": "exact_match", **metric}]}
    group: dict[str, Any] = {"group": "lions", "task": ["lion_choice", "lion_twin"]}
    group |= {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    files = {"lion_choice": choice, "lion_twin": choice, "lion_words": generated}
    for name, content in files.items():
        (made / f"{name}.yaml").write_text(json.dumps({"task": name, **content}))  # JSON is YAML
    (made / "lions.yaml").write_text(json.dumps(group))
    return made


@torch.no_grad()
def chosen(folder: Path, before: str) -> list[int]:
    """The choice of larger log-probability after each question, by plain forwards."""
    served = tiny.policy()
    tokenizer = TokenizerSpec(str(folder)).load()

    def logp(context: str, word: str) -> float:
        ids = torch.tensor([tokenizer.encode(context, add_special_tokens=False)])
        (target,) = tokenizer.encode(word, add_special_tokens=False)
        return float(served.causal_lm(input_ids=ids).logits[0, -1].log_softmax(-1)[target])

    logps = [[logp(before + str(row["q"]), choice) for choice in row["c"]] for row in QUESTIONS]
    return [max((0, 1), key=pair.__getitem__) for pair in logps]


def spoken_by(folder: Path) -> list[str]:
    """Two greedy words after each question."""
    served, tokenizer, texts = tiny.policy(), TokenizerSpec(str(folder)).load(), []
    for row in QUESTIONS:
        ids = tokenizer.encode(str(row["q"]), add_special_tokens=False)
        for _ in range(2):
            ids.append(int(served.causal_lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        texts.append(str(tokenizer.decode(ids[-2:])))
    return texts


@REAL
@pytest.mark.slow
def test_the_harness_itself_finds_what_plain_forwards_find(tmp_path: Path, folder: Path, capsys: Any) -> None:
    said = spoken_by(folder)
    own = task_files(tmp_path, [text if place % 3 else "w3 w3 w3" for place, text in enumerate(said)])
    bare, after_one = chosen(folder, ""), chosen(folder, "w90 w91 w93\n\n")
    assert bare != after_one  # else this could not tell whether the shot was given
    share = [sum(a == row["a"] for a, row in zip(each, QUESTIONS, strict=True)) / 12 for each in (bare, after_one)]
    out = tmp_path / "results" / "harness.json"
    tasks = [Task("lion_choice", 0), Task("lion_twin", 1), Task("lion_words", 0), Task("lions", 0)]
    figures = run_tasks(str(folder), tasks, out, HarnessSettings(include_path=str(own), batch_size=4))
    named = {figure.task: figure for figure in figures}
    assert named["lion_choice"].value == pytest.approx(share[0])
    assert named["lion_choice"].error == pytest.approx((share[0] * (1 - share[0]) / 11) ** 0.5)
    assert (named["lion_choice"].shots, named["lion_choice"].questions) == (0, 12)
    assert named["lion_twin"].value == pytest.approx(share[1])
    assert named["lion_twin"].shots == 1
    assert named["lion_words"].metric == "exact_match"
    assert named["lion_words"].value == pytest.approx(8 / 12)  # every third one was given another target
    assert named["lions"].value == pytest.approx(share[0])  # the mean of two equal tasks
    written = json.loads(out.read_text())
    assert list(written["tasks"]) == ["lion_choice", "lion_twin", "lion_words", "lions"]
    assert [figure["value"] for figure in written["figures"]] == [figure.value for figure in figures]


@REAL
@pytest.mark.slow
def test_the_command_prints_a_table_and_names_an_unknown_task(tmp_path: Path, folder: Path, capsys: Any) -> None:
    own, out = task_files(tmp_path, spoken_by(folder)), tmp_path / "out.json"
    common = [str(folder), "--include-path", str(own), "--out", str(out), "--limit", "4"]
    main([*common, "--tasks", "lion_words=0"])
    shown = capsys.readouterr().out
    assert "lion_words" in shown
    assert "exact_match" in shown
    assert "1.0000" in shown
    with pytest.raises(ValueError, match=rf"task 'lion_wrds' is not in lm-evaluation-harness .* nor in {own}"):
        main([*common, "--tasks", "lion_wrds"])
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        main([str(folder), "--include-path", str(tmp_path / "nowhere")])
