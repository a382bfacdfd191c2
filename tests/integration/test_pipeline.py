"""`lion run`: stages chained from one file, resumed after a stop, never repeated, never mixed up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning.cli import main
from lion_lightning.models.checkpoints.export_files import new_export
from lion_lightning.tools.pipeline.configs import differences, merged
from lion_lightning.tools.pipeline.main import stage_options
from lion_lightning.tools.pipeline.plan import read_plan
from lion_lightning.tools.pipeline.run import Runner
from lion_lightning.tools.pipeline.stage import begin, exported, finish, require_start
from tests.demo import copy_demo

ROOT = Path(__file__).parents[2]
BAD_NAMES = [
    "../../escape",
    "/tmp/escape",
    "a/b",
    "a\\b",
    ".",
    "..",
    "",
    " ",
    ".hidden",
    "a.",
    "-x",
    "a b",
    "a\0b",
    1,
    None,
]
BAD_NAMES += ["seed-0", "report.html", "run.json", "nul", "x" * 65]
QUICK = {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the demo's data and a pipeline of two short stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(Runner, "_check", lambda self: None)  # test_pipeline_checks.py
    copy_demo("runs/demo", train=60, validation=12, preferences=60, prompts=60, questions=12)
    write_pipeline(tmp_path)
    return tmp_path


def write_pipeline(folder: Path, **changes: Any) -> None:
    stages = {
        name: {"config": str(ROOT / "configs" / f"{name}.yaml"), "trainer": QUICK | {"callbacks": []}}
        for name in ("sft", "dpo")
    }
    pipeline = {"out": "runs/all", "stages": stages} | changes
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))


def run(*arguments: str) -> int:
    return main(["run", "pipeline.yaml", "--no-report", *arguments])


def stamp(path: str) -> tuple[int, bytes]:
    return Path(path).stat().st_mtime_ns, Path(path).read_bytes()


@pytest.mark.slow
def test_stages_are_chained_and_one_that_is_done_is_not_repeated(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    started = yaml.safe_load(Path("runs/all/dpo/stage.yaml").read_text())
    assert started["model"]["init_args"]["policy"] == {"path": "runs/all/sft/export"}
    done = json.loads(Path("runs/all/dpo/done.json").read_text())
    assert done["start"] == json.loads(Path("runs/all/sft/done.json").read_text())["export"]
    entry = json.loads(Path("runs/all/dpo/provenance.json").read_text())[-1]
    assert entry["seed"] == 0
    assert len(entry["model"]["data"]["sources"][0]["digest"]) == 32
    assert entry["packages"]["torch"]
    before = [stamp(f"runs/all/{name}/export/model.safetensors") for name in ("sft", "dpo")]
    capfd.readouterr()
    assert run() == 0
    assert capfd.readouterr().out.splitlines() == ["runs/all/sft: done before", "runs/all/dpo: done before"]
    assert [stamp(f"runs/all/{name}/export/model.safetensors") for name in ("sft", "dpo")] == before


def test_a_config_that_changed_is_refused_with_the_keys_where_something_was_trained(folder: Path) -> None:
    write_pipeline(folder, stages={"sft": str(ROOT / "configs" / "sft.yaml")})
    stage = read_plan(folder / "pipeline.yaml").chains[0][0]
    assert begin(stage)
    (stage.folder / "checkpoints").mkdir()
    (stage.folder / "checkpoints" / "last.ckpt").touch()
    callbacks = stage.config["trainer"]["callbacks"]
    one = {"config": str(ROOT / "configs" / "sft.yaml"), "trainer": {"max_epochs": 7, "callbacks": callbacks[:-1]}}
    write_pipeline(folder, stages={"sft": one})
    with pytest.raises(ValueError, match="runs/all/sft: the config has changed since") as refused:
        begin(read_plan(folder / "pipeline.yaml").chains[0][0])
    error = str(refused.value)
    assert "trainer.max_epochs: 3 -> 7" in error
    assert "remove runs/all/sft" in error
    assert len(error.splitlines()) == 1
    assert len(error) < 500


def test_a_stage_that_never_trained_begins_again_with_a_config_that_changed(folder: Path) -> None:
    (before,) = read_plan(folder / "pipeline.yaml").chains[0][:1]
    assert begin(before)
    logs = before.folder / "lightning_logs" / "version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("step,train/loss\n40,1.0\n")  # ended before its first checkpoint
    config = merged(before.config, {"trainer": {"max_steps": 5}})
    assert begin(before._replace(config=config))
    assert yaml.safe_load((before.folder / "stage.yaml").read_text())["trainer"]["max_steps"] == 5
    assert not list(before.folder.glob("lightning_logs/*/metrics.csv"))  # or the report would show its steps
    assert list(before.folder.glob("lightning_logs.before-1/*/metrics.csv"))


def test_a_single_callback_and_a_class_by_its_name_alone_keep_their_settings(folder: Path) -> None:
    data = {
        "data": "lion_lightning.SFTDataModule",
        "trainer": {"callbacks": "lion_lightning.callbacks.TokenThroughput"},
    }
    write_pipeline(folder, stages={"sft": data}, seeds=[3])
    config = read_plan(folder / "pipeline.yaml").chains[0][0].config
    assert config["data"] == {"class_path": "lion_lightning.SFTDataModule", "init_args": {"seed": 3}}
    assert config["trainer"]["callbacks"][0] == {"class_path": "lion_lightning.callbacks.TokenThroughput"}


def test_loggers_write_into_the_stages_folder_where_the_report_looks(folder: Path) -> None:
    loggers = yaml.safe_load((ROOT / "configs" / "logger" / "wandb.yaml").read_text())["trainer"]["logger"]
    write_pipeline(folder, stages={"sft": {"trainer": {"logger": loggers}}})
    placed = read_plan(folder / "pipeline.yaml").chains[0][0].config["trainer"]["logger"]
    assert [logger["init_args"]["save_dir"] for logger in placed] == ["runs/all/sft"] * 2
    assert placed[1]["init_args"]["project"] == "lion"


def test_options_are_laid_over_one_stage_or_all(folder: Path) -> None:
    given = ["--trainer.max_steps", "3", "--dpo.model.init_args.loss.init_args.beta=1e-2", "--dpo.trainer.max_steps=4"]
    sft, dpo = read_plan(folder / "pipeline.yaml", options=stage_options(given)).chains[0]
    assert (sft.config["trainer"]["max_steps"], dpo.config["trainer"]["max_steps"]) == (3, 4)
    assert dpo.config["model"]["init_args"]["loss"]["init_args"]["beta"] == 0.01
    assert sft.config["model"] == read_plan(folder / "pipeline.yaml").chains[0][0].config["model"]


def test_options_may_leave_out_the_init_args_of_classes_as_those_of_lion_fit_may(folder: Path) -> None:
    given = {"dpo.model.loss.beta": "0.25", "dpo.model.optimizer.lr": "1e-6", "data.max_length": "99"}
    long = {
        "dpo.model.init_args.loss.init_args.beta": "0.25",
        "dpo.model.init_args.optimizer.init_args.lr": "1e-6",
        "data.init_args.max_length": "99",
    }
    found, wanted = (read_plan(folder / "pipeline.yaml", options=options).chains[0] for options in (given, long))
    assert [stage.config for stage in found] == [stage.config for stage in wanted]
    assert found[1].config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-6


def test_the_config_of_a_single_stage_is_for_lion_fit(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("sft.yaml").write_text("model: {}\ntrainer: {}\n")
    assert main(["run", "sft.yaml"]) == 2
    said = "sft.yaml: this is the config of a single stage; train it with `lion fit -c sft.yaml`"
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--max_steps", "3"], "--max_steps: there is no such option; did you mean --sft.trainer.max_steps?"),
        (["--dpo.lr", "3"], "--dpo.lr: there is no such option; did you mean --dpo.model.optimizer.lr?"),
        (["--shuffle", "3"], "--shuffle: begin with a stage (sft, dpo), or with one of data, model, seed_everything"),
        (["--sft.config", "x"], "--sft.config: behind the name of a stage comes one of data, model"),
        (["-c"], "-c: lion run takes the file as it is"),
        (["--trainer.max_steps"], "--trainer.max_steps: give an option of a stage with its value"),
        (["more.yaml"], "more.yaml: give an option of a stage with its value"),
        (["--trainer.max_steps", "{"], "--trainer.max_steps: '{' is not a YAML value"),
    ],
)
def test_an_option_of_no_stage_gets_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert run(*given) == 2
    error = capfd.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_differences_name_the_key_within_a_list_and_are_short() -> None:
    old = {"trainer": {"callbacks": [{"class_path": "A", "init_args": {"n": 32, "text": "x" * 900}}]}}
    new = {
        "trainer": {"callbacks": [{"class_path": "A", "init_args": {"n": 4, "text": "x" * 900}}, {"class_path": "B"}]}
    }
    found = list(differences(old, new))
    assert found == ["trainer.callbacks[0].init_args.n: 32 -> 4", "trainer.callbacks[1]: None -> B"]
    (long,) = differences({"a": "x" * 900}, {"a": "y"})
    assert len(long) < 80


def export(folder: Path, weights: bytes) -> None:
    (folder / "export").mkdir(exist_ok=True)
    with new_export(folder / "export") as temporary:
        (temporary / "config.json").touch()
        (temporary / "model.safetensors").write_bytes(weights)


def test_a_stage_without_a_whole_export_is_never_done(folder: Path) -> None:
    (sft,) = read_plan(folder / "pipeline.yaml").chains[0][:1]
    assert begin(sft)
    export(sft.folder, b"weights")
    (sft.folder / "export" / "lion_export.json").unlink()  # which comes last
    with pytest.raises(ValueError, match="the export is missing or incomplete, so the stage is not done"):
        finish(sft.folder, None, {})
    assert begin(sft)


def test_an_export_that_changed_or_is_gone_is_no_start(folder: Path) -> None:
    (sft,) = read_plan(folder / "pipeline.yaml").chains[0][:1]
    require_start(sft.folder)  # still to be done
    assert begin(sft)
    export(sft.folder, b"weights")
    finish(sft.folder, None, {})
    require_start(sft.folder)
    export(sft.folder, b"weighty")
    with pytest.raises(ValueError, match="runs/all/sft/export: the stage is done, and its export has changed since"):
        require_start(sft.folder)
    (sft.folder / "export" / "config.json").unlink()
    with pytest.raises(
        ValueError,
        match=r"its export is incomplete \(config.json is gone\); bring it back, or remove",
    ):
        require_start(sft.folder)


def test_a_stage_done_from_another_start_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sft, dpo = read_plan(folder / "pipeline.yaml").chains[0]
    for stage in (sft, dpo):
        assert begin(stage)
        export(stage.folder, b"weights")
        finish(stage.folder, stage.start, {})
    assert not begin(dpo)
    export(sft.folder, b"other weights")
    finish(sft.folder, None, {})
    with pytest.raises(ValueError, match="started from another model than runs/all/sft"):
        begin(dpo)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": {}}, "`stages` is missing"),
        ({"stages": {"sft": {"confg": "x"}}}, "stages.sft: unknown key 'confg'; it takes config"),
        ({"stages": {"sft": {"config": "none.yaml"}}}, "none.yaml: no such file or directory"),
        ({"stages": {"sft": 3}}, "stages.sft is 3"),
        ({"seeds": [0, 0]}, "seeds is [0, 0]; give a list of different integers"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": True}, "workers is True"),
        ({"seeds": [True]}, "seeds is [True]"),
        ({"stages": {"sft": {"config": 3}}}, "stages.sft.config is 3; give a config file, or a list of them"),
        ({"stages": {"sft": {"trainer": 3}}}, "stages.sft.trainer is 3; give a mapping of the Trainer's arguments"),
        (
            {"stages": {"sft": {"trainer": {"callbacks": [3]}}}},
            "stages.sft.trainer.callbacks[0] is 3; give a class_path",
        ),
        ({"stages": {"sft": {"model": []}}}, "stages.sft.model is []; give a class_path"),
        ({"stages": {"sft": {"data": {"init_args": [1]}}}}, "stages.sft.data.init_args is [1]; give a mapping"),
        ({"out": ""}, "out is ''; give the path of a folder"),
        ({"evaluate": 3}, "evaluate is 3; give a mapping"),
        ({"evaluate": {"model": "x"}}, "evaluate.model is set to each stage's export"),
        *(({"stages": {name: "x.yaml"}}, "cannot name a stage") for name in BAD_NAMES),
        ({"stages": {"SFT": "x.yaml", "sft": "x.yaml"}}, "'SFT' and 'sft' are the same folder where case is ignored"),
        ({"speed": 3}, "unknown key 'speed'"),
    ],
)
def test_a_wrong_pipeline_file_gets_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    write_pipeline(folder, **changes)
    assert run() == 2
    error = capfd.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_stage_that_fails_names_its_log_and_the_cause(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "my_callbacks.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Fails(Callback):\n"
        "    def on_train_start(self, trainer, pl_module):\n"
        "        raise ValueError('none.jsonl is gone')\n"
    )
    trainer = QUICK | {"callbacks": [{"class_path": "my_callbacks.Fails"}]}
    stage = {"config": str(ROOT / "configs" / "sft.yaml"), "trainer": trainer}
    write_pipeline(folder, stages={"sft": stage}, seeds=[3], workers=2)
    assert run() == 2
    error = capfd.readouterr().err.strip()
    assert "runs/all/seed-3/sft: the stage failed (see runs/all/seed-3/sft/log.txt: " in error
    assert "none.jsonl" in error


@pytest.mark.slow
def test_a_killed_stage_goes_on_and_ends_at_the_same_weights(folder: Path) -> None:
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": 2, "save_last": "link"},
    }
    trainer = QUICK | {"max_steps": 40, "max_epochs": 100, "callbacks": [checkpoint]}
    stage = {"config": str(ROOT / "configs" / "sft.yaml"), "trainer": trainer}
    for out in ("killed", "whole"):
        write_pipeline(folder, out=f"runs/{out}", stages={"sft": stage})
        if out == "killed":
            kill_after_a_checkpoint(folder / "runs/killed/sft")
        assert run() == 0
    killed, whole = (Path(f"runs/{out}/sft/export/model.safetensors").read_bytes() for out in ("killed", "whole"))
    assert killed == whole
    assert len(json.loads(Path("runs/killed/sft/provenance.json").read_text())) == 2


def kill_after_a_checkpoint(stage: Path) -> None:
    command = [sys.executable, "-m", "lion_lightning", "run", "pipeline.yaml", "--no-report"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (stage / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not exported(stage)


# --- the file that a person edits for a model and data of their own

OWN = ROOT / "configs" / "own.yaml"


def mine() -> dict[str, Any]:
    """The shipped file with its marked lines edited, and steps, lengths and precision for a test."""
    given: dict[str, Any] = yaml.safe_load(OWN.read_text())
    sft, dpo, online = (given["stages"][name] for name in ("sft", "dpo", "online_dpo"))
    sft["model"]["init_args"] |= {"policy": {"config": "runs/demo/model"}, "tokenizer": {"path": "runs/demo/model"}}
    sft["data"]["init_args"]["sources"] = [{"path": "runs/demo/train.jsonl"}]
    dpo["data"]["init_args"]["sources"] = [{"path": "runs/demo/preferences.jsonl"}]
    online["data"]["init_args"]["prompts"] = [{"path": "runs/demo/prompts.jsonl"}]
    sampling = online["trainer"]["callbacks"][0]["init_args"]
    sampling["sampler"]["init_args"]["sampling"]["max_new_tokens"] = 4
    sampling |= {"num_samples": 3, "monitor_prompts": 4, "judge": {"class_path": "my_judges.Longest"}}
    sampling["keep_unfinished"] = True
    for stage in (sft, dpo):
        stage["data"]["init_args"]["validation_share"] = 0.2
    for stage in (sft, dpo, online):
        stage["trainer"] |= {"precision": "32-true", "accelerator": "cpu", "accumulate_grad_batches": 1}
        stage["data"]["init_args"] |= {"max_length": 128} | (
            {} if stage is sft else {"row_length": 256, "max_prompt_length": 64}
        )
    return given


@pytest.mark.slow
def test_the_file_for_a_run_of_ones_own_is_valid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in read_plan(OWN).chains[0]:
        Path("stage.yaml").write_text(yaml.safe_dump(stage.config))
        with pytest.raises(SystemExit) as stop:
            main(["fit", "-c", "stage.yaml", "--print_config"])
        assert stop.value.code in (0, None)
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["model"]["class_path"] == stage.config["model"]["class_path"]


@pytest.mark.slow
def test_the_file_for_a_run_of_ones_own_runs_with_its_marked_lines_edited(folder: Path) -> None:
    Path("my_judges.py").write_text(
        "class Longest:\n"
        "    def score(self, prompts, answers):\n"
        "        return [[float(len(text)) for text in texts] for texts in answers]\n"
    )
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(mine(), sort_keys=False))
    assert run() == 0
    for name in ("sft", "dpo", "online_dpo"):
        assert Path(f"runs/own/{name}/export/model.safetensors").exists()
        assert json.loads(Path(f"runs/own/{name}/startup.json").read_text())["run"]["steps"] > 0
    assert len(list(Path("runs/own/online_dpo/rounds").glob("round-*.json"))) == 2


@pytest.mark.exhaustive  # test_cli_online.py trains by this config, and a test above chains stages
def test_policy_gradients_end_a_pipeline(folder: Path) -> None:
    Path("my_judges.py").write_text(
        "class Longest:\n"
        "    def score(self, prompts, answers):\n"
        "        return [[float(len(text)) for text in texts] for texts in answers]\n"
    )
    grpo = yaml.safe_load((ROOT / "configs" / "grpo.yaml").read_text())
    sampling = grpo["trainer"]["callbacks"][0]
    sampling["init_args"] |= {"judge": "my_judges.Longest", "keep_unfinished": True, "prompts_per_round": 8}
    last = {"config": str(ROOT / "configs" / "grpo.yaml"), "trainer": QUICK | {"callbacks": [sampling]}}
    pipeline = yaml.safe_load((folder / "pipeline.yaml").read_text())
    write_pipeline(folder, stages=pipeline["stages"] | {"grpo": last})
    assert run() == 0
    started = yaml.safe_load(Path("runs/all/grpo/stage.yaml").read_text())
    assert started["model"]["init_args"]["policy"] == {"path": "runs/all/dpo/export"}
    assert Path("runs/all/grpo/export/model.safetensors").exists()
    assert list(Path("runs/all/grpo/rounds").glob("round-*.json"))
