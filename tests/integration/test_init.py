"""Configs of `lion init` train as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.cli import main
from lion_lightning.tools.init.config import STAGES
from tests.demo import copy_start
from tests.marks import slow_but

ROWS: dict[str, dict[str, Any]] = {
    "conversations": {"question": "Spell tako.", "answer": "t a k o"},
    "pairs": {"prompt": "Spell tako.", "chosen": "t a k o", "rejected": "t a k"},
    "answers": {"question": "Spell tako.", "answer": "t a k o"},
    "groups": {"question": "Spell tako.", "answers": ["t a k o", "t a k"], "scores": [1, 0]},
    "prompts": {"question": "Spell tako.", "target": "t a k o"},
}
SMALL = [
    "--trainer.max_steps=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_start(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for use, row in ROWS.items():
        made = [json.loads(json.dumps(row).replace("tako", f"tako{letter}")) for letter in "abcdefghij"]
        if use == "answers":
            made = [{**each, "liked": bool(number % 2)} for number, each in enumerate(made)]
        (tmp_path / f"{use}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in made))
    return tmp_path


@pytest.mark.parametrize("stage", slow_but(STAGES, "dpo"))
def test_the_config_of_a_stage_trains(stage: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"{STAGES[stage]}.jsonl"
    assert main(["init", stage, "--model", "model", "--data", data, "-o", "my.yaml"]) == 0
    said = capsys.readouterr().err
    assert f"{data}: 10 rows, read as {STAGES[stage]}" in said
    assert "model: it has its own chat template" in said
    if stage in ("grpo", "online_dpo"):
        Path("my.yaml").write_text(with_lengths(Path("my.yaml").read_text()))
    assert main(["fit", "-c", "my.yaml", *SMALL]) == 0
    assert (folder / "runs" / stage / "export" / "model.safetensors").exists()


def with_lengths(text: str) -> str:
    """A config whose judge is the length of short answers: no word of a random model is right."""
    Path("my_judges.py").write_text(
        "class Longest:\n"
        "    def score(self, prompts, answers):\n"
        "        return [[float(len(text)) for text in texts] for texts in answers]\n"
    )
    config = yaml.safe_load(text)
    sampling = config["trainer"]["callbacks"][0]["init_args"]
    assert sampling["judge"]["init_args"]["verifier"]["init_args"] == {"column": "target"}
    sampling |= {"judge": {"class_path": "my_judges.Longest"}, "keep_unfinished": True, "monitor_prompts": 2}
    sampling["sampler"]["init_args"]["sampling"]["max_new_tokens"] = 8
    return str(yaml.safe_dump(config))


@pytest.mark.exhaustive  # test_pipeline.py runs what `lion init pipeline` writes, with its lines edited
@pytest.mark.timeout(600)
def test_the_config_of_a_pipeline_runs(folder: Path) -> None:
    data = [f"{use}.jsonl" for use in ("conversations", "pairs", "prompts")]
    assert main(["init", "pipeline", "--model", "model", "--data", *data, "-o", "my.yaml"]) == 0
    config = yaml.safe_load(Path("my.yaml").read_text())
    online = config["stages"]["online_dpo"]
    config["stages"]["online_dpo"] = yaml.safe_load(with_lengths(yaml.safe_dump(online)))
    Path("my.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    small = [f"--{stage}.trainer.max_steps=1" for stage in ("sft", "dpo", "online_dpo")]
    assert main(["run", "my.yaml", "--no-report", *small]) == 0
    assert Path("runs/own/online_dpo/export/model.safetensors").exists()
