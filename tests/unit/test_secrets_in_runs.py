"""Keys and passwords reach no file of a run and no line of a command, by whichever way they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_lightning import SFTModule
from lion_lightning.callbacks.provenance import surroundings
from lion_lightning.cli import main
from lion_lightning.judges import VerifierJudge
from lion_lightning.models.checkpoints.export import model_card
from lion_lightning.models.checkpoints.lion_entry import LionEntry
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.rollouts.rounds import identity_of
from lion_lightning.tools.pipeline.plan import read_plan
from tests import tiny
from tests.marks import slow

SECRET = "hunter2-hunter2"

SAMPLER = "lion_lightning.sampling.ServerSampler"
JUDGE = "lion_lightning.judges.RubricLLMJudge"


def online(folder: Path, sampler: dict[str, Any], **trainer: Any) -> Path:
    """A config of an online run that asks a server."""
    judge = {"class_path": JUDGE, "init_args": {"url": "http://127.0.0.1:9", "model": "m"}}
    init = {"sampler": {"class_path": SAMPLER, "init_args": sampler}, "judge": judge}
    callbacks = [{"class_path": "lion_lightning.callbacks.OnPolicySampling", "init_args": init}]
    config = {
        "model": {"class_path": "lion_lightning.OnlineDPOModule", "init_args": {"policy": {"path": "none"}}},
        "data": {"class_path": "lion_lightning.OnPolicyDataModule", "init_args": {"prompts": [{"path": "p.jsonl"}]}},
        "trainer": {"default_root_dir": str(folder / "run"), "callbacks": callbacks, **trainer},
    }
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


WRONG: list[dict[str, Any]] = [
    {"url": f"http://ann:{SECRET}@127.0.0.1:9"},
    {"url": f"http://127.0.0.1:9/v1?api_key={SECRET}"},
    {"url": "http://127.0.0.1:9", "api_key_env": f"{SECRET} x"},
    {"url": "http://127.0.0.1:9", "api_key": SECRET},
]


@pytest.mark.parametrize("sampler", WRONG, ids=lambda given: ",".join(given))
@pytest.mark.parametrize("command", ["fit", *slow("inspect", "plan")])
def test_a_secret_in_a_config_is_said_by_name_before_anything_is_written(
    command: str, sampler: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = online(tmp_path, sampler)
    assert main([command, "-c", str(config)]) == 2
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert any(name in shown.err for name in ("sampler", "api_key"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argument",
    [
        f"--trainer.callbacks.init_args.sampler.init_args.url=http://ann:{SECRET}@127.0.0.1:9",
        f"--trainer.logger=lightning.pytorch.loggers.MLFlowLogger --trainer.logger.tracking_uri=http://a:{SECRET}@h",
        *slow(
            f"--data.prompts=[{{path: 'https://h/p.jsonl?token={SECRET}'}}]",
            f"--model.policy.path=https://ann:{SECRET}@h/m",
        ),
    ],
)
def test_a_secret_on_the_command_line_is_not_shown(
    argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = online(tmp_path, {"url": "http://127.0.0.1:9"})
    assert (
        main(["fit", "-c", str(config), *argument.split(" --")[:1], *(f"--{one}" for one in argument.split(" --")[1:])])
        == 2
    )
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert not (tmp_path / "run").exists()


def test_a_pipeline_writes_no_stage_with_a_secret(tmp_path: Path) -> None:
    config = online(tmp_path, {"url": f"http://ann:{SECRET}@127.0.0.1:9"})
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"out": str(tmp_path / "out"), "stages": {"online": {"config": str(config)}}}))
    with pytest.raises(ValueError, match=r"c\.yaml: trainer\.callbacks\[0\].*url: a URL with a user name") as error:
        read_plan(plan)
    assert SECRET not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_takes_no_secret_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampler = {"class_path": SAMPLER, "init_args": {"url": f"http://ann:{SECRET}@h"}}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"model": "m", "sampler": sampler}))
    assert main(["evaluate", "-c", str(tmp_path / "e.yaml")]) == 2
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert "sampler.init_args.url" in shown.err


def test_a_secret_argument_of_a_module_is_in_no_checkpoint(tmp_path: Path) -> None:
    class Keyed(SFTModule):
        def __init__(self, policy: PolicySpec, tokenizer: TokenizerSpec, api_key: str, temperature: float) -> None:
            super().__init__(policy, tokenizer=tokenizer)
            self.api_key = api_key

    module = Keyed(PolicySpec(config=tiny.shallow()), TokenizerSpec("none"), api_key=SECRET, temperature=0.5)
    assert module.api_key == SECRET
    assert dict(module.hparams)["temperature"] == 0.5
    assert SECRET not in str(module.hparams)


@pytest.mark.parametrize("url", [f"http://ann:{SECRET}@h", f"https://h/v1/sk-{SECRET}/chat", f"https://h?key={SECRET}"])
def test_an_address_with_a_secret_is_in_no_checkpoint_and_on_no_card(url: str) -> None:
    class MultiTurnSampler(SFTModule):
        def __init__(self, policy: PolicySpec, tokenizer: TokenizerSpec, url: str, other: str) -> None:
            super().__init__(policy, tokenizer=tokenizer)

    module = MultiTurnSampler(PolicySpec(config=tiny.config()), TokenizerSpec("none"), url, other="https://h/v1")
    assert module.hparams["other"] == "https://h/v1"
    assert SECRET not in str(module.hparams) + str(module.hparams_initial)
    entry = LionEntry(PolicySpec(url), TokenizerSpec(url), {}, data={"sources": [url]}, module="m")
    assert SECRET not in model_card(entry)


def test_a_round_says_nothing_of_a_judge_s_key() -> None:
    class Asks:
        def __init__(self) -> None:
            self.api_key, self.model = SECRET, "m"

        def __call__(self, prompt: Any, answer: str) -> bool:
            return True

    assert identity_of(VerifierJudge(Asks()))["settings"] == {"api_key": "***", "model": "m"}


def test_provenance_holds_neither_the_environment_nor_keys_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANN_KEY", SECRET)
    monkeypatch.setattr("sys.argv", ["lion", "fit", f"--trainer.logger.api_key={SECRET}", "--password", SECRET])
    found = surroundings()
    assert found["command"] == ["lion", "fit", "--trainer.logger.api_key=***", "--password", "***"]
    assert SECRET not in json.dumps(found)
