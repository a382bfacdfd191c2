"""`lion evaluate`, whole: the shipped config on a small demo, and what it says when it cannot do what is asked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lion_lightning import PolicySpec, Source, TokenizerSpec
from lion_lightning.cli import main
from lion_lightning.judges import Length, VerifierJudge, WeightedJudge
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.sampling import SamplingSettings, TransformersSampler
from lion_lightning.tools.demo import FAMILIES
from lion_lightning.tools.evaluate.main import parse
from lion_lightning.tools.evaluate.run import Evaluation, evaluate
from lion_lightning.types import Answer, Prompt
from tests import tiny
from tests.demo import copy_demo
from tests.integration.test_docs import assert_holds

ROOT = Path(__file__).parents[2]
CONFIG, PAGE = ROOT / "configs" / "evaluate.yaml", ROOT / "docs" / "evaluation.md"
SHORT = TransformersSampler(SamplingSettings(temperature=0.0, max_new_tokens=3))


class NaN:
    """A judge that gives no scores."""

    def score(self, prompts: Any, answers: Any) -> Any:
        return [[float("nan")] for _ in prompts]


class Saying:
    """A sampler that says what it was told to."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = answers

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        return [[one] for one in self.answers]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo task in little, and exports of random weights where the stages' own would be."""
    folder = tmp_path_factory.mktemp("demo")
    shape = str(folder / "runs" / "demo" / "model")
    copy_demo(folder / "runs" / "demo", questions=22)
    for seed, stage in enumerate(("sft", "dpo")):
        torch.manual_seed(seed)
        policy = PolicySpec(config=shape).build()
        RolloutPolicy(policy, TokenizerSpec(shape).load()).write(folder / "runs" / stage / "export")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.tokenizer_folder(tmp_path_factory.mktemp("model"))
    RolloutPolicy(tiny.policy(), TokenizerSpec(str(folder)).load()).write(folder)
    return folder


def questions(folder: Path, *rows: dict[str, Any]) -> Source:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path))


def failing(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command fails with."""
    assert main(["evaluate", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lion: error:")]
    return line.removeprefix("lion: error: ")


# --- the shipped config


@pytest.mark.slow
def test_the_shipped_config_runs_leaves_nothing_about_and_goes_on(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo)
    out = demo / "runs" / "dpo" / "evaluation"
    arguments = ["evaluate", "-c", str(CONFIG)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["model", "loss", "rewards", "accuracy", "win_rate"]
    assert results["loss"]["conversations"] == results["rewards"]["pairs"] == 11
    assert results["accuracy"]["count"] == results["win_rate"]["win_rate"]["count"] == 22
    assert list(results["accuracy"]["by"]) == list(FAMILIES)
    assert all(one["count"] == 2 for one in results["accuracy"]["by"].values())
    scored = [json.loads(line) for line in (out / "scored.jsonl").read_text("utf-8").split("\n")[:-1]]
    asked = [json.loads(line) for line in (demo / "runs" / "demo" / "questions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in scored] == asked
    assert sum(row["score"] for row in scored) / 22 == results["accuracy"]["estimate"]
    assert "sort numbers" in shown
    assert "wrote runs/dpo/evaluation/results.json" in shown
    assert os.listdir(demo) == ["runs"]
    assert sorted(path.name for path in out.iterdir()) == [
        "answers.jsonl",
        "answers_against.jsonl",
        "results.json",
        "scored.jsonl",
    ]
    assert main([*arguments, "--conversations=[]", "--preferences=[]"]) == 0
    assert capsys.readouterr().err.count("22 of 22 answers found") == 2
    again = json.loads((out / "results.json").read_text())
    assert again == {name: results[name] for name in ("model", "accuracy", "win_rate")}


def test_the_example_of_the_docs_is_a_valid_config(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo)
    (example,) = re.findall(r"^```yaml-evaluate\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (demo / "runs" / "example.yaml").write_text(example)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "-c", "runs/example.yaml", "--print_config"])
    assert not stop.value.code
    assert_holds(yaml.safe_load(capsys.readouterr().out), yaml.safe_load(example))


def test_a_judge_is_named_by_the_path_of_its_file() -> None:
    judge = parse(["--model", "m", "--out", "o", "--judge", str(ROOT / "configs" / "judge" / "aspects.yaml")]).judge
    assert isinstance(judge, WeightedJudge)
    assert judge.names == ["helpfulness", "instruction_following", "honesty", "truthfulness"]


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("config", *Evaluation.__dataclass_fields__))


# --- answers


def test_unfinished_and_empty_answers_are_counted(model: Path, tmp_path: Path) -> None:
    said = [Answer("w3"), Answer(""), Answer("  "), Answer("w4 w5", "length")]
    prompts = questions(tmp_path, *({"question": f"w{number}"} for number in range(3, 7)))
    judge = VerifierJudge(Length(1))
    found = evaluate(Evaluation(str(model), tmp_path / "out", prompts=[prompts], judge=judge, sampler=Saying(*said)))[
        "accuracy"
    ]
    assert (found["unfinished"], found["empty"], found["length"]) == (0.25, 0.5, (2 + 0 + 2 + 5) / 4)
    assert found["estimate"] == 0.5


def test_a_judge_of_comparisons_alone_gives_a_win_rate_alone(model: Path, tmp_path: Path) -> None:
    asked = Evaluation(
        str(model),
        tmp_path / "out",
        prompts=[questions(tmp_path, {"question": "w3"})],
        against=str(model),
        against_judge=VerifierJudge(Length(1)),
        sampler=SHORT,
    )
    results = evaluate(asked)
    assert list(results) == ["model", "win_rate"]
    assert results["win_rate"]["ties"] == 1.0


def test_a_model_without_a_chat_template_continues_plain_prompts_and_takes_no_questions(
    model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    tokenizer = TokenizerSpec(str(model)).load()
    tokenizer.chat_template = None
    RolloutPolicy(tiny.policy(), tokenizer).write(bare)
    judge = VerifierJudge(Length(3, 3))
    plain = Evaluation(str(bare), tmp_path / "out", judge=judge, sampler=SHORT)
    plain.prompts = [questions(tmp_path, {"prompt": "w3 w4"})]
    assert evaluate(plain)["accuracy"]["estimate"] == 1.0
    plain.prompts = [questions(tmp_path, {"question": "w3 w4"})]
    with pytest.raises(ValueError, match=r"questions\.jsonl:1: .*chat template"):
        evaluate(plain)


# --- one line


def test_a_judge_that_gives_no_number_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = questions(tmp_path, {"question": "w3"})
    config = {
        "model": str(model),
        "out": str(tmp_path / "out"),
        "prompts": [{"path": source.path}],
        "judge": {"class_path": f"{__name__}.NaN"},
        "sampler": {
            "class_path": "lion_lightning.sampling.TransformersSampler",
            "init_args": {"sampling": {"temperature": 0.0, "max_new_tokens": 2}},
        },
    }
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config))
    said = failing(["-c", str(tmp_path / "evaluate.yaml")], capsys)
    assert said == f"NaN returned the score nan for an answer to {source.path}:1; return finite numbers"
    assert not (tmp_path / "out" / "results.json").exists()
    assert (tmp_path / "out" / "answers.jsonl").exists()


def test_a_missing_column_is_found_before_anything_is_asked(model: Path, tmp_path: Path) -> None:
    source = questions(tmp_path, {"question": "w3", "kind": "a"}, {"question": "w4"})
    asked = Evaluation(str(model), tmp_path / "out", prompts=[source], judge=NaN(), sampler=Saying(), by="kind")
    with pytest.raises(ValueError, match=r"questions\.jsonl:2: `by` names the column 'kind', but the row has quest"):
        evaluate(asked)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "nothing to evaluate; give conversations, preferences or prompts"),
        (["--preferences+.path", "f.jsonl"], "preferences need a reference model"),
        (["--prompts+.path", "f.jsonl"], "prompts need a judge to score the answers"),
        (["--conversations+.path", "f.jsonl", "--against", "other"], "against needs prompts, which both models answer"),
        (["--conversations+.path", "f.jsonl", "--reference", "./none"], "./none does not exist; give the folder"),
    ],
    ids=["nothing", "no reference", "no judge", "no prompts", "no model"],
)
def test_what_cannot_be_answered_is_one_line(
    arguments: list[str], expected: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(["--model", str(model), *arguments], capsys).startswith(expected)


def test_a_hub_id_without_a_network_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talks = tmp_path / "talks.jsonl"
    talks.write_text('{"question": "w3", "answer": "w4"}\n')
    said = failing(["--model", "nobody/nothing", "--conversations+.path", str(talks)], capsys)
    assert said.startswith("policy: cannot load nobody/nothing: ")
