"""`lion init`: configs from a model, rows and a stage, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.cli import main
from lion_lightning.tools.init.config import STAGES, write_config
from lion_lightning.tools.init.rows import look
from tests import tiny

ROOT = Path(__file__).parents[4]


def rows(folder: Path, *written: dict[str, Any]) -> str:
    """A file with these rows."""
    path = folder / f"rows{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return str(path)


def test_the_shipped_file_for_a_run_of_ones_own_is_what_init_writes() -> None:
    text, said = write_config("pipeline", None, [], "own.yaml", "bf16-mixed")
    assert (ROOT / "configs" / "own.yaml").read_text("utf-8") == text
    assert said == []


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SOURCES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "messages": (
        "conversations",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {},
    ),
    "question and answer": ("conversations", {"question": "a", "answer": "b"}, {}),
    "plain prompt": ("conversations", {"prompt": "a", "completion": "b"}, {"format": "chat"}),
    "a text": ("conversations", {"text": "a b"}, {}),
    "plain pair": ("pairs", {"prompt": "a", "chosen": "b", "rejected": "c"}, {"format": "chat"}),
    "other names": (
        "pairs",
        {"query": "a", "better": "b", "worse": "c"},
        {"columns": {"question": "query", "chosen": "better", "rejected": "worse"}},
    ),
    "a label": ("answers", {"question": "a", "answer": "b", "thumbs_up": True}, {}),
    "scores": ("groups", {"question": "a", "responses": ["b", "c"], "scores": [1, 0]}, {}),
    "a prompt": ("prompts", {"prompt": "a", "answer": "b"}, {"format": "chat"}),
}


@pytest.mark.parametrize(("use", "row", "settings"), SOURCES.values(), ids=SOURCES)
def test_rows_say_what_their_source_needs(
    use: str, row: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    path = rows(tmp_path, row, row)
    found = look(path, use)
    assert found.source == {"path": path, **settings}
    assert found.rows == 2
    assert f"2 rows, read as {use}" in found.line


def test_rows_that_do_not_fit_name_who_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path, {"question": "a", "answer": "b"})
    assert main(["init", "dpo", "--data", path]) == 2
    error = capsys.readouterr().err
    assert f"{path}:1: the row has one answer" in error
    assert "SFTDataModule" in error


def test_rows_that_a_setting_would_mend_say_where_it_goes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`transform`; `lion init` without --data writes a config to say that in$"):
        look(rows(tmp_path, {"Frage": "a", "Antwort": "b"}), "conversations")


def test_a_pipeline_takes_the_data_of_its_stages_in_their_order(tmp_path: Path) -> None:
    chats = rows(tmp_path, {"question": "a", "answer": "b"})
    pairs = rows(tmp_path, {"question": "a", "chosen": "b", "rejected": "c"})
    prompts = rows(tmp_path, {"question": "a", "target": "4"})
    stages = yaml.safe_load(write_config("pipeline", None, [chats, pairs, prompts])[0])["stages"]
    assert stages["sft"]["data"]["init_args"]["sources"] == [{"path": chats}]
    assert stages["dpo"]["data"]["init_args"]["sources"] == [{"path": pairs}]
    assert stages["online_dpo"]["data"]["init_args"]["prompts"] == [{"path": prompts}]
    judge = stages["online_dpo"]["trainer"]["callbacks"][0]["init_args"]["judge"]["init_args"]["verifier"]
    assert judge["init_args"] == {"column": "target"}
    with pytest.raises(ValueError, match="takes conversations and pairs and prompts, one file each"):
        write_config("pipeline", None, [chats, pairs, prompts, prompts])


def test_few_rows_make_more_than_one_step(tmp_path: Path) -> None:
    few = rows(tmp_path, *[{"question": f"a{number}", "answer": "b"} for number in range(20)])
    trainer = yaml.safe_load(write_config("sft", None, [few])[0])["trainer"]
    assert (trainer["max_epochs"], trainer["accumulate_grad_batches"]) == (3, 1)
    trainer = yaml.safe_load(write_config("sft", None, [])[0])["trainer"]
    assert (trainer["max_epochs"], trainer["accumulate_grad_batches"]) == (1, 8)


def test_the_model_is_looked_at(tmp_path: Path) -> None:
    folder = tiny.tokenizer_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(tiny.config()))
    text, said = write_config("sft", str(folder), [])
    config = yaml.safe_load(text)
    assert config["model"]["init_args"]["policy"] == {
        "config": str(folder),
        "recompute": "none",
    }  # no weights
    assert config["data"]["init_args"]["max_length"] == 64  # the model's positions
    assert "tokenizer" not in config["model"]["init_args"]
    assert any("it has its own chat template" in line for line in said)
    (folder / "chat_template.jinja").unlink()
    spec = yaml.safe_load(write_config("sft", str(folder), [])[0])["model"]["init_args"]["tokenizer"]
    assert spec == {"path": str(folder), "chat_template": "chatml"}  # whose tokens the tokenizer has


@pytest.mark.parametrize("stage", [*STAGES, "pipeline"])
def test_every_line_to_edit_is_marked_and_short(stage: str) -> None:
    text, _ = write_config(stage, None, [])
    lines = text.splitlines()
    assert sum("# <-- edit" in line for line in lines) >= 2
    assert max(map(len, lines)) <= 120
    assert "@" not in text


def test_a_file_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my.yaml"
    assert main(["init", "sft", "-o", str(out)]) == 0
    assert f"lion fit -c {out}" in capsys.readouterr().err
    assert main(["init", "sft", "-o", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["init", "sft", "--model", "./nowhere"]) == 2
    assert "--model: there is no folder ./nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "verifier"),
    [
        (["15", "1,000", "-3.5", "1/2", "20%", "$4"], "MathAnswer"),
        (["2 + 3 = 5\n#### 5"], "MathAnswer"),
        (["15", "fifteen"], "ExactMatch"),
        (["It is 15."], "ExactMatch"),
        ([15, 2.5], "MathAnswer"),
        ([None], "ExactMatch"),
    ],
)
def test_answers_that_are_numbers_are_compared_as_values(tmp_path: Path, answers: list[Any], verifier: str) -> None:
    asked = rows(tmp_path, *[{"prompt": "a", "answer": answer} for answer in answers])
    config = yaml.safe_load(write_config("online_dpo", None, [asked])[0])
    judge = config["trainer"]["callbacks"][0]["init_args"]["judge"]["init_args"]["verifier"]
    assert judge == {"class_path": f"lion_lightning.judges.{verifier}", "init_args": {"column": "answer"}}
