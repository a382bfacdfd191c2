"""The examples in README and docs do what they say."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lion_lightning.cli import main
from lion_lightning.data.formats.sft import recognize
from lion_lightning.judges import VerifierJudge, WeightedJudge, score_answers
from lion_lightning.tools.pipeline.plan import read_plan
from lion_lightning.types import Prompt
from tests.demo import copy_demo
from tests.tiny import VOCABULARY, pairs, policy

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[Any]:
    """Examples of all pages; those of docs/ that are configs, more of the same, run with ``make slow``."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [(page, number, text) for page in PAGES for number, text in enumerate(pattern.findall(page.read_text()))]
    marks = [pytest.mark.slow if language == "yaml" and page.parent != ROOT else () for page, *_ in found]
    return [
        pytest.param(text, id=f"{page.name}-{number}", marks=mark)
        for (page, number, text), mark in zip(found, marks, strict=True)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_demo(tmp_path / "runs" / "demo", train=64, questions=33)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", blocks("python"))
def test_python_examples_run(text: str, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(text, "example", "exec"), names)
    if "FocalLoss" in names:
        # p = 1/2: -(1/2)^2 log(1/2)
        value = names["FocalLoss"]()(torch.tensor([0.5]).log())
        assert value.item() == pytest.approx(0.25 * 0.6931471805599453)
    if "from_seed_task" in names:
        task = {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"input": "2 2", "output": "4"}]}
        answers = [recognize(row).messages[1].content for row in names["from_seed_task"](task)]  # type: ignore[union-attr]
        assert answers == ["2", "4"]
    if "UniformReference" in names:
        batch = pairs((3, 2, 4))
        values = names["UniformReference"]()(batch, policy()).values
        assert values.tolist() == pytest.approx([-math.log(VOCABULARY)] * 6)
    if "names_the_city" in names:
        judge = WeightedJudge([VerifierJudge(names["names_the_city"], 10.0), names["Brevity"]()], [1.0, 0.5])
        prompt = Prompt("Where?", (), row={"city": "Oslo"})
        judged = score_answers(judge, [prompt], [["In Oslo.", "In " + 12 * "the "]])
        assert judged.scores == [[10.5, pytest.approx(0.5 * 0.7)]]  # 13 words
        assert judged.by_judge == {"VerifierJudge": [[10, 0]], "Brevity": [[1, pytest.approx(0.7)]]}
        assert judged.right == [[True, False]]
    if "module" in names:
        assert names["module"].global_step == 5


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_examples_are_valid_configs(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(text)
    (folder / "my_data.py").write_text("def from_seed_task(row): ...\n\n\ndef rows(): ...\n")
    monkeypatch.syspath_prepend(str(folder))  # as the command does
    if "sources" in config:
        config = {"data": {"class_path": "lion_lightning.SFTDataModule", "init_args": config}}
    (folder / "example.yaml").write_text(yaml.safe_dump(config))
    (folder / "configs").symlink_to(ROOT / "configs")  # examples name its files, which are looked for next to a config
    of_pairs = any(word in text for word in ("Preference", "DPO", "reference", "pairing"))
    shipped = str(ROOT / "configs" / ("dpo.yaml" if of_pairs else "sft.yaml"))
    if "OnPolicySampling" in text:
        shipped = str(ROOT / "configs" / "online_dpo.yaml")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", shipped, "-c", "example.yaml", "--print_config"])
    assert stop.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    for section, expected in config.items():
        assert_holds(printed[section], expected)


@pytest.mark.slow
@pytest.mark.parametrize("text", blocks("yaml-pipeline"))
def test_pipeline_examples_are_plans_of_valid_configs(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "mine").mkdir()
    (folder / "mine" / "mine.yaml").write_text(text)
    plan = read_plan(folder / "mine" / "mine.yaml")
    assert [len(chain) for chain in plan.chains] == [3, 3, 3]
    for stage in plan.chains[1]:
        (folder / "stage.yaml").write_text(yaml.safe_dump(stage.config))
        with pytest.raises(SystemExit) as stop:
            main(["fit", "-c", "stage.yaml", "--print_config"])
        assert stop.value.code in (0, None)
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["seed_everything"] == printed["data"]["init_args"]["seed"] == 1
    assert printed["model"]["init_args"]["policy"]["path"] == "runs/mine/seed-1/dpo/export"
    assert printed["trainer"]["default_root_dir"] == "runs/mine/seed-1/online_dpo"


@pytest.mark.slow
@pytest.mark.parametrize("text", blocks("yaml-stages"))
def test_a_judge_is_the_export_of_an_earlier_stage(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "mine").mkdir()
    (folder / "mine" / "mine.yaml").write_text(text)
    sft, reward, online = read_plan(folder / "mine" / "mine.yaml").chains[0]
    assert reward.start == online.start == sft.folder
    (folder / "stage.yaml").write_text(yaml.safe_dump(online.config))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", "stage.yaml", "--print_config"])
    assert stop.value.code in (0, None)
    sampling = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"][0]["init_args"]
    assert sampling["judge"]["init_args"]["model"] == str(reward.folder / "export")


def assert_holds(actual: Any, expected: Any) -> None:
    """Every value that the example gives is there."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert_holds(actual[key], value)
    elif isinstance(expected, list) and isinstance(actual, list) and expected and isinstance(expected[0], dict):
        for one, other in zip(actual, expected, strict=True):
            assert_holds(one, other)
    elif isinstance(actual, dict):  # what the example names the file of
        assert_holds(actual, yaml.safe_load((ROOT / expected).read_text("utf-8")))
    else:
        assert actual == expected


def test_every_shipped_config_is_run_by_a_test() -> None:
    shipped = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    recipes = {name for name in shipped if name.startswith("recipes/")}  # by test_recipes.py
    tested = {"sft.yaml", "dpo.yaml", "online_dpo.yaml", "pipeline.yaml"}  # by test_cli*.py and test_pipeline.py
    tested |= {"sft_stream.yaml"}  # by test_stream_cli.py
    tested |= {
        "kto.yaml",
        "reward.yaml",
        "online_ranked.yaml",
        "grpo.yaml",
    }  # by test_cli_kto.py, _reward.py and _online.py
    tested |= {"ranked.yaml"}  # by test_cli_answers.py
    tested |= {"evaluate.yaml", "logger/wandb.yaml", "own.yaml"}  # by test_evaluate.py, test_cli.py and below
    tested |= {
        "judge/aspects.yaml",
        "judge/demo.yaml",
        "sampler/pool.yaml",
    }  # by test_aspects.py, the demo's, test_pool.py
    tested |= {"model/lora.yaml", "model/qlora.yaml"}  # by test_lora.py
    optimizers = ("adalomo", "adamw8bit", "lomo", "paged_adamw8bit")
    tested |= {f"optimizer/{name}.yaml" for name in optimizers}  # by test_optimizers.py and test_collie.py
    tested |= {f"strategy/{name}.yaml" for name in ("ddp", "fsdp", "fsdp2")}  # by tests/distributed/test_fragments.py
    assert shipped - recipes == tested, "add a run of the new config to the tests, then its name here"
