"""What `lion run` finds out before the first stage trains: all that is wrong, a line each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import ModelCheckpoint

from lion_lightning import FrozenReference, PolicySpec, PreferenceDataModule, SFTDataModule, Source, TokenizerSpec
from lion_lightning.cli import main
from lion_lightning.data.decontamination import Decontamination
from lion_lightning.models.lora import LoRASpec
from lion_lightning.references.cached import CachedReference
from lion_lightning.tools.demo import write_demo
from lion_lightning.tools.pipeline.checks import before_training as checks
from lion_lightning.tools.pipeline.checks import sources
from lion_lightning.tools.pipeline.checks.before_training import Checks
from lion_lightning.tools.pipeline.checks.disk import cached_reference_size, space_of
from lion_lightning.tools.pipeline.checks.evaluation import check_evaluation
from lion_lightning.tools.pipeline.configs import with_available_model
from lion_lightning.tools.pipeline.plan import Plan, StagePlan, plan_from_yaml, plan_to_yaml, read_plan
from lion_lightning.tools.pipeline.run import Runner
from tests import tiny

ROOT = Path(__file__).parents[2]
JUDGE = {
    "class_path": "lion_lightning.judges.VerifierJudge",
    "init_args": {"verifier": {"class_path": "lion_lightning.judges.ExactMatch", "init_args": {"column": "answer"}}},
}
ASKED = {"prompts": [{"path": "runs/demo/questions.jsonl"}], "judge": JUDGE, "by": "family"}
STAGES = {name: {"config": str(ROOT / "configs" / f"{name}.yaml")} for name in ("sft", "dpo", "online_dpo")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(str(folder), train=60, validation=12, preferences=60, prompts=60, questions=12)
    return folder


@pytest.fixture
def folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LION_CACHE", str(tmp_path / "cache"))
    shutil.copytree(data, "runs/demo")
    return tmp_path


def found(**changes: Any) -> list[str]:
    """What is wrong with the shipped stages, changed."""
    return Checks(planned(**changes)).run()


def planned(**changes: Any) -> Plan:
    pipeline = {"out": "runs/all", "stages": STAGES, "evaluate": ASKED} | changes
    Path("pipeline.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    return read_plan(Path("pipeline.yaml"))


def changed(name: str, **parts: Any) -> dict[str, Any]:
    return STAGES[name] | parts


@pytest.mark.slow
def test_the_shipped_stages_are_right_though_two_of_them_start_from_models_that_are_still_to_be_made(
    folder: Path,
) -> None:
    assert found() == []
    assert not Path("runs/all").exists()


def test_all_that_is_wrong_is_found_at_once(folder: Path) -> None:
    Path("pairs.jsonl").write_text(
        Path("runs/demo/preferences.jsonl").read_text() + json.dumps({"prompt": "?", "chosen": "x"}) + "\n"
    )
    pairs = {"init_args": {"sources": [{"path": "pairs.jsonl"}]}}
    stages = {
        "sft": changed("sft", data={"init_args": {"sources": [{"path": "none.jsonl"}]}}),
        "dpo": changed("dpo", data=pairs),
        "typo": changed("dpo", data={"init_args": {"max_lenght": 1}}),
        "online_dpo": changed("online_dpo", trainer={"max_epochs": 100}),
        "tokenizer": changed("dpo", model={"init_args": {"tokenizer": {"path": "./none"}}}),
    }
    lines = found(stages=stages)
    assert [line.partition(": ")[0] for line in lines] == [f"stages.{name}" for name in stages]
    for line, said in zip(
        lines,
        (
            "none.jsonl: no such file",
            "pairs.jsonl:61: ",
            "has no setting 'max_lenght'; did you mean 'max_length'?",
            "no prompts left for round 99: 45 prompts (15 more are monitor prompts) make 45 rounds of 1",
            "there is no folder './none'",
        ),
        strict=True,
    ):
        assert said in line
        assert "\n" not in line


def test_a_config_that_changed_is_found_before_an_earlier_stage_trains_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = planned().chains[0][1]
    (stage.folder / "checkpoints").mkdir(parents=True)
    (stage.folder / "checkpoints" / "last.ckpt").touch()
    (stage.folder / "stage.yaml").write_text(yaml.safe_dump(stage.config))
    monkeypatch.setattr(Checks, "_check_chain", lambda self, chain: None)
    (line,) = found(stages=STAGES | {"dpo": changed("dpo", trainer={"max_epochs": 7})})
    assert line.startswith("runs/all/dpo: the config has changed since (trainer.max_epochs: ")


def test_a_mistyped_key_of_a_finished_stage_is_said_to_be_one(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for chain in planned(seeds=[0, 1]).chains:
        for stage in chain:
            stage.folder.mkdir(parents=True)
            (stage.folder / "done.json").write_text("{}")
            (stage.folder / "stage.yaml").write_text(yaml.safe_dump(stage.config))
    typo = STAGES | {"dpo": changed("dpo", data={"init_args": {"max_lenght": 1}})}
    (line,) = found(stages=typo, seeds=[0, 1])
    assert line.startswith("stages.dpo: ")
    assert "has no setting 'max_lenght'; did you mean 'max_length'?" in line
    # all stages are done, and yet they are checked
    monkeypatch.setattr(Runner, "_process", lambda self, command, **streams: 1)
    assert main(["run", "pipeline.yaml"]) == 2
    assert "the checks before training failed themselves (exit code 1)" in capfd.readouterr().err


def test_too_little_disk_is_found_and_a_tight_one_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stages = {"sft": STAGES["sft"]}
    monkeypatch.setattr(checks, "free_space", lambda folder: 1000)
    (line,) = found(stages=stages)
    assert line.startswith("runs/all: 0.0 GiB are free, and the stages write at least 0.0 GiB; make room")
    monkeypatch.setattr(checks, "free_space", lambda folder: 14_000_000)  # 0.8 M weights: 3.3 MB, 9.9 MB a checkpoint
    assert found(stages=stages) == []
    assert "may write up to" in caplog.text


def test_a_start_outside_of_the_run_that_is_not_done_is_named(folder: Path) -> None:
    plan = planned()
    alone = plan._replace(chains=[plan.chains[0][1:2]])  # as a program may run the second stage of another run
    (line,) = Checks(alone).run()
    assert line == (
        "stages.dpo: it starts from runs/all/sft, which is no stage before it and not done; run that one first"
    )


@pytest.mark.slow
def test_a_judge_may_be_the_reward_model_of_an_earlier_stage_and_a_policy_may_not(folder: Path) -> None:
    judge = {"class_path": "lion_lightning.judges.RewardModelJudge", "init_args": {"model": "${reward}/export"}}
    sampling = yaml.safe_load((ROOT / "configs" / "online_dpo.yaml").read_text())["trainer"]["callbacks"]
    for callback in sampling:
        if callback["class_path"].endswith("OnPolicySampling"):
            callback["init_args"] |= {"judge": judge, "prompts_per_round": 10}
    online = STAGES["online_dpo"] | {"trainer": {"callbacks": sampling}}
    own = {"preferences": [{"path": "runs/demo/preferences_validation.jsonl"}], "max_length": 128}
    reward = {"config": str(ROOT / "configs" / "reward.yaml"), "evaluate": own}
    stages = {"sft": STAGES["sft"], "reward": reward, "online_dpo": online | {"start": "sft"}}
    assert found(stages=stages) == []
    wrong = stages | {"online_dpo": online, "reward": {"config": reward["config"]}}
    of_reward, of_online = found(stages=wrong)
    assert "is a reward model, which writes no answers: it takes preferences, and neither" in of_reward
    assert of_online == (
        "stages.online_dpo: it would start from reward, a reward model, which writes no answers; set "
        "stages.online_dpo.start: sft"
    )


def test_warnings_are_printed_with_the_stage_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("texts.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    texts = {"init_args": {"sources": [{"path": "texts.jsonl"}], "validation": None, "batch_size": 1}}
    long = {"max_steps": -1, "max_epochs": 7, "accumulate_grad_batches": 2}
    stages = {"sft": STAGES["sft"], "dpo": changed("dpo", data=texts, trainer=long)}
    checks = Checks(planned(stages=stages, evaluate=None))
    assert checks.run() == []
    (_, text), (_, few) = [warning for warning in checks.warnings.found if warning[0] == "stages.dpo"]
    assert "1 of 1 rows are plain text, which is read without the tokenizer's chat template" in text
    assert few.startswith("the run makes 7 optimizer steps, which is few: raise trainer.max_epochs")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: stages.dpo")]
    assert said == [f"warning: stages.dpo: {text}", f"warning: stages.dpo: {few}"]


def test_what_the_cache_of_a_reference_takes_is_said_where_the_disk_is_small(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checks, "free_space", lambda at: 1000 if at.name == "references" else 2**40)
    assert found(stages={name: STAGES[name] for name in ("sft", "dpo")}, evaluate=None) == []
    assert f"{folder / 'cache' / 'references'}: 0.0 GiB are free, and log-probs of references may take" in caplog.text


def test_a_cached_reference_takes_four_bytes_a_token_of_an_answer_and_some_for_its_key(tmp_path: Path) -> None:
    rows = []
    for question, *answers in (("w3 w4", "w5 w6 w7", "w8"), ("w9", "w8", "w5")):
        sides = [[{"role": "assistant", "content": answer}] for answer in answers]
        rows.append({"prompt": [{"role": "user", "content": question}], "chosen": sides[0], "rejected": sides[1]})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(tmp_path / "tokenizer")))
    data = PreferenceDataModule([Source(str(tmp_path / "pairs.jsonl"))], tokenizer, max_length=32)
    data.prepare_data()
    data.setup()
    # Four answers of 3, 1, 1 and 1 words, each with the token that ends it.
    assert cached_reference_size(SimpleNamespace(reference=CachedReference()), data) == 4 * (6 + 4) + 20 * 4
    assert cached_reference_size(SimpleNamespace(reference=FrozenReference()), data) == 0


# --- the parts


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judg": JUDGE}, "unknown key 'judg'; did you mean 'judge'?"),
        ({"judge": {"class_path": "lion_lightning.judges.Verifier"}}, '"judge"'),
        ({"prompts": []}, "nothing to evaluate"),
        ({"prompts": [{"path": "none.jsonl"}]}, "none.jsonl: no such file"),
        ({"judge": None}, "prompts need a judge"),
        ({"by": "kind"}, "`by` names the column 'kind'"),
        ({"against": "runs/other/export"}, "runs/other/export does not exist"),
        ({"against": "./runs/all/dpo/export"}, "does not exist"),  # of a stage that comes later
        ({"conversations": [{"path": "runs/demo/validation.jsonl"}], "max_length": 4096}, "has positions for 1024"),
        ({"conversations": [{"path": "runs/demo/preferences.jsonl"}], "max_length": 128}, "preferences.jsonl:1: "),
        (
            {"judge": {"class_path": "lion_lightning.judges.RewardModelJudge", "init_args": {"model": "./none"}}},
            "RewardModelJudge: model './none' not found",
        ),
        (
            {
                "judge": {
                    "class_path": "lion_lightning.judges.RubricLLMJudge",
                    "init_args": {
                        "url": "http://127.0.0.1:1",
                        "model": "m",
                        "endpoint": {"api_key_env": "NO_SUCH_KEY"},
                    },
                }
            },
            "the environment variable NO_SUCH_KEY is not set",
        ),
    ],
)
def test_an_evaluation_that_would_fail_after_training_fails_before(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises((ValueError, ArgumentError)) as error:
        evaluated(changes)
    assert said in str(error.value)


def test_an_evaluation_against_an_export_that_is_still_to_be_made_is_right(folder: Path) -> None:
    evaluated({"against": "runs/all/sft/export", "preferences": [{"path": "runs/demo/preferences_validation.jsonl"}]})


def evaluated(changes: dict[str, Any]) -> None:
    asked = {"reference": "runs/all/sft/export", "max_length": 128} | ASKED | changes
    stage = StagePlan("sft", Path("runs/all/sft"), {}, None, asked)
    tokenizer = TokenizerSpec("runs/demo/model", chat_template="chatml")
    exports = {Path("runs/all/sft/export").absolute()}
    check_evaluation(stage, tokenizer, PolicySpec(config="runs/demo/model"), exports)


def test_of_many_rows_the_first_ones_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ALL_ROWS", 5)
    monkeypatch.setattr(sources, "FIRST_ROWS", 3)
    tokenizer = TokenizerSpec("runs/demo/model", chat_template="chatml")
    lines = Path("runs/demo/train.jsonl").read_text().splitlines()
    Path("rows.jsonl").write_text("\n".join([*lines[:3], '{"a": 1}', *lines[3:6]]))
    sources.check_data(SFTDataModule([Source("rows.jsonl")], tokenizer, max_length=128))
    monkeypatch.setattr(sources, "FIRST_ROWS", 4)
    with pytest.raises(ValueError, match=r"rows.jsonl:4: "):
        sources.check_data(SFTDataModule([Source("rows.jsonl")], tokenizer, max_length=128))
    assert not Path("cache/tokens").exists()
    monkeypatch.setattr(sources, "FIRST_ROWS", 3)
    rule = Decontamination([Source("nowhere.jsonl")])
    with pytest.raises(ValueError, match=r"nowhere.jsonl"):
        sources.check_data(SFTDataModule([Source("rows.jsonl")], tokenizer, document_filters=[rule]))


def test_a_stage_is_looked_at_with_the_model_and_the_tokenizer_that_its_chain_starts_from() -> None:
    first = {"model": {"init_args": {"policy": {"config": "a", "dtype": "bfloat16"}, "tokenizer": {"path": "b"}}}}
    later = {"model": {"init_args": {"policy": {"path": "sft/export", "lora": {"r": 4}}, "loss": 1}}}
    assert with_available_model(later, first)["model"]["init_args"] == {
        "policy": {"config": "a", "lora": {"r": 4}},
        "tokenizer": {"path": "b"},
        "loss": 1,
    }
    named = {"model": {"init_args": {"policy": "hub/model"}}}
    assert with_available_model(later, named)["model"]["init_args"]["policy"] == {"path": "hub/model", "lora": {"r": 4}}


def test_a_plan_is_the_same_in_another_process(folder: Path) -> None:
    plan = planned(seeds=[0, 1], workers=2)
    assert plan_from_yaml(plan_to_yaml(plan)) == plan


def test_bytes_on_disk_are_those_of_weights_and_two_moments() -> None:
    """A model of 10,400 weights (embedding 101 * 32, as the head; two layers; norms)."""
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32
    weights = 2 * 101 * 32 + 2 * layer + 32
    spec = PolicySpec(config=tiny.config())
    once = space_of(spec, tiny.trainer(enable_checkpointing=True, callbacks=[ModelCheckpoint()]))
    assert once == (4 * (3 * weights + weights), 4 * (2 * 3 * weights + weights))
    last = space_of(spec, tiny.trainer(enable_checkpointing=True, callbacks=[ModelCheckpoint(save_last=True)]))
    assert last.most - once.most == 4 * 3 * weights
    none = space_of(PolicySpec(config=tiny.config(), dtype="bfloat16"), tiny.trainer())
    assert none == (2 * weights, 2 * weights)


def test_a_lora_checkpoint_takes_what_it_trains(tmp_path: Path) -> None:
    tiny.policy().causal_lm.save_pretrained(tmp_path)
    spec = PolicySpec(path=str(tmp_path), lora=LoRASpec(r=2, target_modules=["q_proj"]))
    space = space_of(spec, tiny.trainer(enable_checkpointing=True, callbacks=[ModelCheckpoint()]))
    trained = 2 * 2 * (32 + 32)  # layers, rank, both factors
    assert space.most - space.least == 4 * 3 * trained


@pytest.mark.slow
def test_nothing_is_begun_where_something_is_wrong(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stages = {"sft": STAGES["sft"], "dpo": changed("dpo", data={"init_args": {"sources": [{"path": "none.jsonl"}]}})}
    planned(stages=stages, evaluate=ASKED | {"by": "kind"})
    assert main(["run", "pipeline.yaml"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("lion: error: ")]
    assert len(lines) == 2
    assert "evaluate: runs/demo/questions.jsonl:1: `by` names the column 'kind'" in lines[0]
    assert "stages.dpo: none.jsonl: no such file" in lines[1]
    assert not Path("runs/all/sft").exists()
