"""The parser's long reports become one line that names the key, the value and the fix."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import EarlyStopping

from lion_lightning import PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.callbacks import LearningRecord
from lion_lightning.errors import checkpoint_being_restored, explain, is_user_error
from lion_lightning.models.tokenizer import read_template
from lion_lightning.processes.entry_point import run_guarded
from lion_lightning.tools.train.lightning_cli import build_cli
from tests import tiny

BASE = ["--model=lion_lightning.SFTModule", "--data=lion_lightning.SFTDataModule"]
NEEDED = ["--model.policy=gpt2", "--data.sources=[{path: x.jsonl}]"]
CHECKPOINT = "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {%s: x}}]"
ADAM = "{class_path: torch.optim.AdamW, init_args: {lr: x}}"
REFUSED = {
    "a setting that a callback lacks": (
        [CHECKPOINT % "dirpat"],
        "trainer.callbacks: ModelCheckpoint has no setting 'dirpat'; did you mean 'dirpath'?",
    ),
    "a callback's setting of another kind": (
        [CHECKPOINT % "every_n_train_steps"],
        "trainer.callbacks.every_n_train_steps: expected int, got x",
    ),
    "a class that is not there": (
        ["--trainer.callbacks=[lightning.pytorch.callbacks.ModelCheckpt]"],
        "trainer.callbacks: module 'lightning.pytorch.callbacks' has no attribute 'ModelCheckpt'; did you mean "
        "'ModelCheckpoint'?",
    ),
    "an optimizer's setting of another kind": (
        [f"--model.optimizer={ADAM}"],
        "model.optimizer.lr: expected float, got x",
    ),
    "a setting that an optimizer lacks": (
        [f"--model.optimizer={ADAM.replace('lr', 'lrr')}"],
        "model.optimizer: AdamW has no setting 'lrr'; did you mean 'lr'?",
    ),
    "a number that is text": (["--trainer.max_steps=abc"], "trainer.max_steps: expected int, got abc"),
    "a file where sources are a list": (
        ["--data.sources=foo.jsonl"],
        "data.sources: expected a list of sources; for one file write [{path: foo.jsonl}]",
    ),
    "a source's unknown key": (
        ['--data.sources=[{"pth": "a"}]'],
        "data.sources: Source has no setting 'pth'; did you mean 'path'?",
    ),
    "an option without its part": (
        ["--lr", "1e-4"],
        "--lr: there is no such option; did you mean --model.optimizer.lr?",
    ),
    "an option of one part too few": (
        ["--optimizer.lr=1e-4"],
        "--optimizer.lr: there is no such option; did you mean --model.optimizer.lr?",
    ),
    "a setting of the optimizer as one of the module": (
        ["--model.lr", "1e-4"],
        "--model.lr: there is no such option; did you mean --model.optimizer.lr?",
    ),
    "an option of other trainers": (
        ["--num-train-epochs", "3"],
        "--num-train-epochs: there is no such option; did you mean --trainer.max_epochs?",
    ),
    "the rank of other trainers": (
        ["--lora_r", "8"],
        "--lora_r: there is no such option; did you mean --model.policy.lora.r?",
    ),
    "a setting of an optimizer that is not named": (
        ["--model.optimizer.lr", "1e-4"],
        "model.optimizer: no class is given to set 'lr' of; put --model.optimizer torch.optim.AdamW before it",
    ),
    "an unknown option": (
        ["--shuffled", "1"],
        "unrecognized arguments: --shuffled 1; options of a run begin with --model., --data., --trainer. "
        "(such as --model.optimizer.lr, --data.max_length)",
    ),
}


def line(arguments: list[str]) -> str:
    """What is said of a command line that is refused."""
    try:
        build_cli(arguments, run=False)
    except (ValueError, ArgumentError) as error:
        return explain(error)
    pytest.fail("it was taken")


@pytest.mark.parametrize("case", REFUSED)
def test_a_report_of_the_parser_is_one_line(case: str) -> None:
    arguments, said = REFUSED[case]
    assert line([*BASE, *arguments]) == said


@pytest.mark.parametrize(
    ("module", "loss", "said"),
    [
        ("KTOModule", "SigmoidLoss", "is no AnswerLoss; as PreferenceLoss it is for DPOModule"),
        ("GroupModule", "KTOLoss", "is no GroupLoss; as AnswerLoss it is for KTOModule"),
        ("DPOModule", "PlackettLuceLoss", "is no PreferenceLoss; as GroupLoss it is for GroupModule"),
        ("DPOModule", "GRPOLoss", "is no PreferenceLoss; as PolicyGradientLoss it is for PolicyGradientModule"),
        ("DPOModule", "DFTLoss", "is no PreferenceLoss; as TokenLoss it is for SFTModule"),
        ("DPOModule", "ReverseKL", "is no PreferenceLoss; give a subclass of it"),
    ],
)
@pytest.mark.parametrize("form", ["%s", "{class_path: %s, init_args: {}}"], ids=["name", "class_path"])
def test_a_loss_of_another_level_is_told_with_the_module_that_takes_it(
    module: str, loss: str, said: str, form: str
) -> None:
    path = f"lion_lightning.losses.{loss}"
    assert line([f"--model=lion_lightning.{module}", *BASE[1:], *NEEDED, f"--model.loss={form % path}"]) == (
        f"model.loss: {path} {said}"
    )


@pytest.mark.parametrize(("loss", "close"), [("PlackettLuce", "PlackettLuceLoss"), ("KTOLos", "KTOLoss")])
def test_a_misspelled_class_is_told_with_the_one_that_is_meant(loss: str, close: str) -> None:
    told = line(
        ["--model=lion_lightning.GroupModule", *BASE[1:], *NEEDED, f"--model.loss=lion_lightning.losses.{loss}"]
    )
    assert told == f"model.loss: module 'lion_lightning.losses' has no attribute {loss!r}; did you mean {close!r}?"


def test_a_file_that_exists_in_place_of_a_list_of_sources_is_not_read_as_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a short name: long ones are cut in messages
    Path("chats.jsonl").write_text('{"question": "1"}\n{"question": "2"}\n')
    said = "data.sources: expected a list of sources; for one file write [{path: chats.jsonl}]"
    for given in ("chats.jsonl", "[chats.jsonl]", "{path: chats.jsonl}"):
        assert line([*BASE, f"--data.sources={given}"]) == said


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("[a.jsonl, b.jsonl]", "{path: a.jsonl}, {path: b.jsonl}"),
        ("['my/a.jsonl', c/*.gz, d, e]", "{path: my/a.jsonl}, {path: c/*.gz}, {path: d}, ..."),
    ],
)
def test_several_files_in_place_of_sources_are_written_out(given: str, written: str) -> None:
    said = f"data.sources: expected a list of sources; for several files write [{written}]"
    assert line([*BASE, f"--data.sources={given}"]) == said


def test_the_setting_behind_a_file_in_place_of_sources_is_no_file() -> None:
    data = "{class_path: lion_lightning.SFTDataModule, init_args: {sources: a.jsonl, mask: none}}"
    assert line([*BASE, f"--data={data}"]).endswith("for one file write [{path: a.jsonl}]")


def test_a_null_in_place_of_sources_is_no_file() -> None:
    assert "[{path:" not in line([*BASE, "--model.policy=gpt2", "--data.sources=null"])


def test_a_config_without_its_flag_says_so() -> None:
    said = "unrecognized arguments: configs/sft.yaml; name a config with -c configs/sft.yaml"
    assert line([*BASE, *NEEDED, "configs/sft.yaml"]) == said


def test_a_setting_before_the_config_says_so() -> None:
    said = "model: no class_path is given before --model.policy.path; put -c FILE before it"
    assert line(["--model.policy.path=x", *BASE]) == said


def test_an_argument_of_the_configs_optimizer_names_its_type() -> None:
    adamw = "--model.optimizer={class_path: torch.optim.AdamW}"
    found = line([*BASE, *NEEDED, adamw, "--model.optimizer.init_args.eps=x"])
    assert found == "model.optimizer.eps: expected float, got x"


def test_data_without_a_class_is_no_empty_data_module() -> None:
    said = "data: class_path is missing; set it, e.g. to lion_lightning.SFTDataModule"
    assert line([BASE[0], "--model.policy=gpt2", "--data={}"]) == said


def test_a_missing_package_is_told_without_the_settings_around_it() -> None:
    loggers = "[{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: x}}, {class_path: %s}]"
    said = line([*BASE, *NEEDED, "--trainer.logger=" + loggers % "lightning.pytorch.loggers.CometLogger"])
    assert "comet" in said
    assert "Namespace" not in said
    assert len(said) < 400


def test_a_full_disk_is_told_by_the_place_that_is_full_and_not_by_the_draft() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/tmp/temporary", None, "runs/last.ckpt")
    assert explain(error) == "runs/last.ckpt: no space left on device; give a path that exists and that you may use"


@pytest.mark.parametrize("name", ["no\nsuch.ckpt", "no\u2028such.ckpt", "no\r\nsuch.ckpt"])
def test_a_name_with_a_line_end_in_it_is_told_on_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "No such file or directory", name), ValueError(f"{name} is gone")):

        def fail(error: Exception = error) -> None:
            raise error

        assert run_guarded(fail) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lion: error: no such.ckpt")


def test_a_name_of_thousands_of_letters_is_cut() -> None:
    said = explain(OSError(errno.ENAMETOOLONG, "File name too long", "a" * 5000))
    assert said == f"{'a' * 80}...: file name too long; give a path that exists and that you may use"


@pytest.mark.parametrize("name", ["a" * 5000, "./" + "a" * 5000])
def test_a_name_too_long_for_a_file_is_told_by_its_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for key, load in (
        ("policy: ", PolicySpec(config=name).load_config),
        ("tokenizer.path", TokenizerSpec(name).load),
        ("tokenizer.chat_template", lambda: read_template(name)),
    ):
        with pytest.raises(ValueError, match=f"^{key}") as error:
            load()
        assert len(explain(error.value)) < 1000


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert explain(ValueError()) == "ValueError"
    assert explain(ValueError("two\n  lines")) == "two lines"


def test_an_entry_of_a_checkpoint_that_cannot_be_restored_is_told_with_the_file(tmp_path: Path) -> None:
    module = SFTModule(PolicySpec(config=tiny.shallow()), tokenizer=TokenizerSpec(str(tiny.tokenizer_folder(tmp_path))))
    trainer = tiny.trainer(max_steps=1)
    trainer.fit(module, tiny.Rows([tiny.row()]))
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    checkpoint = torch.load(tmp_path / "good.ckpt", weights_only=True)
    checkpoint["optimizer_states"][0]["param_groups"] = 3
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises(TypeError) as caught:
        tiny.trainer(max_steps=2).fit(module, tiny.Rows([tiny.row()]), ckpt_path=tmp_path / "odd.ckpt")
    assert checkpoint_being_restored(caught.value) == str(tmp_path / "odd.ckpt")
    assert explain(caught.value).startswith(f"{tmp_path / 'odd.ckpt'}: the checkpoint is damaged or has another format")
    assert checkpoint_being_restored(TypeError("elsewhere")) is None


@pytest.mark.parametrize(
    ("said", "optimizer", "callbacks"),
    [
        ("SparseAdam does not support dense gradients", torch.optim.SparseAdam, []),
        ("conditioned on metric `nope`", torch.optim.AdamW, [EarlyStopping("nope")]),
        ("more than one stateful callback of type `LearningRecord`", torch.optim.AdamW, [LearningRecord()] * 2),
    ],
)
def test_what_a_named_class_says_of_itself_is_one_line(
    said: str, optimizer: Any, callbacks: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, tokenizer = PolicySpec(config=tiny.config()), TokenizerSpec(str(tiny.tokenizer_folder(tmp_path)))
    module = SFTModule(spec, tokenizer=tokenizer, optimizer=optimizer)
    assert (
        run_guarded(lambda: tiny.trainer(max_epochs=1, callbacks=callbacks).fit(module, tiny.Rows([tiny.row()]))) == 2
    )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said in line


def test_a_fault_of_ours_and_a_full_memory_keep_their_tracebacks() -> None:
    for error in (RuntimeError("ours"), torch.OutOfMemoryError("full")):
        assert not is_user_error(error)


def test_a_file_in_place_of_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    sampler = {"class_path": "lion_lightning.sampling.TransformersSampler"}
    arguments = {"sampler": sampler, "judge": "judge/mine.yaml"}
    callback = {"class_path": "lion_lightning.callbacks.OnPolicySampling", "init_args": arguments}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    assert line([*BASE, "-c", str(tmp_path / "mine.yaml")]) == (
        "trainer.callbacks.judge: there is no file judge/mine.yaml; its path is relative to the config that names it"
    )
