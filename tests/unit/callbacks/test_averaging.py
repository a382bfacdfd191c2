"""Averaged weights are what validation, answers and exports see, whatever the order of the callbacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from safetensors.torch import load_file
from torch import Tensor

from lion_lightning.callbacks import BeforeAfter, HuggingFaceExport, SampleTable
from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules import SFTModule
from tests.marks import slow
from tests.tiny import policy
from tests.unit.callbacks.conftest import Bench

DECAY = 0.5


class Mean(Callback):
    """The average by its definition, from the weights after each step."""

    def __init__(self, decay: float) -> None:
        self.decay, self.value, self.raw = decay, {}, {}  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.raw = {name: p.detach().clone() for name, p in module.policy_model.causal_lm.named_parameters()}
        before = self.value or self.raw
        self.value = {name: self.decay * before[name] + (1 - self.decay) * p for name, p in self.raw.items()}


class Doubles(Callback):
    """Somebody's own callback that changes the weights when training ends."""

    def on_train_end(self, trainer: Any, module: Any) -> None:
        with torch.no_grad():
            for parameter in module.policy_model.parameters():
                parameter.mul_(2.0)


def exported(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("first", "lora"), [(True, None), (False, LoRASpec(r=2)), *slow((True, LoRASpec(r=2)), (False, None))]
)
def test_the_export_is_the_average_and_what_the_checkpoint_gives(
    first: bool, lora: LoRASpec | None, bench: Bench
) -> None:
    mean = Mean(DECAY)
    export, averaging = HuggingFaceExport(), EMAWeightAveraging(decay=DECAY)
    saving = ModelCheckpoint(bench.folder / "saved", save_last=True)
    order = [export, averaging] if first else [averaging, export]
    trainer = bench.trainer(mean, *order, saving, enable_checkpointing=True)
    bench.fit(trainer, bench.module(lora))
    written = exported(bench.folder / "run" / "export")
    again = exported(export_checkpoint(bench.folder / "saved" / "last.ckpt", bench.folder / "again"))
    assert written.keys() == again.keys()
    assert all(torch.equal(written[name], again[name]) for name in written)
    if lora is None:
        name = "model.layers.0.self_attn.q_proj.weight"
        torch.testing.assert_close(written[name], mean.value[name], rtol=1e-5, atol=1e-7)
        assert not torch.allclose(written[name], mean.raw[name], atol=1e-4)


def test_what_a_callback_does_when_training_ends_is_exported_wherever_the_export_is_listed(bench: Bench) -> None:
    mean = Mean(DECAY)
    bench.fit(bench.trainer(mean, HuggingFaceExport(), Doubles()))
    name = "model.norm.weight"
    torch.testing.assert_close(exported(bench.folder / "run" / "export")[name], 2.0 * mean.raw[name])


@pytest.mark.parametrize("first", [True, False])
def test_answers_are_those_of_the_weights_that_are_validated(first: bool, bench: Bench) -> None:
    """After a run each answer must be what the averaged module says; raw weights say something else."""
    averaging = WeightAveraging()
    watching: list[Callback] = [SampleTable(["w3 w4"], 12), BeforeAfter(["w3 w4"], 12)]
    order = [*watching, averaging] if first else [averaging, *watching]
    trainer = bench.trainer(*order, val_check_interval=1.0)
    torch.manual_seed(0)
    module = bench.module()
    module.optimizer_factory = lambda groups: torch.optim.SGD(groups, lr=3.0)
    bench.fit(trainer, module)
    from lion_lightning.models.generation.greedy import generate_answers

    expected = generate_answers(module, ["w3 w4"], 12)[0]  # Lightning has put the average into the module
    samples = [json.loads(line) for line in (bench.folder / "run" / "samples.jsonl").read_text("utf-8").splitlines()]
    report = json.loads((bench.folder / "run" / "before_after.json").read_text("utf-8"))
    assert samples[-1]["answers"] == {"w3 w4": expected}
    assert report["answers"][0]["after"] == expected
    assert report["answers"][0]["before"] == samples[0]["answers"]["w3 w4"] != expected


def test_averaging_that_would_average_nothing_is_refused(bench: Bench) -> None:
    with pytest.raises(MisconfigurationException, match=r"WeightAveraging \(equal weights, as SWA\) or EMAWeight"):
        bench.fit(bench.trainer(StochasticWeightAveraging(swa_lrs=0.1)))


def test_an_average_that_never_begins_is_said_to_undo_the_run(bench: Bench) -> None:
    averaging = EMAWeightAveraging(decay=DECAY, update_starting_at_step=100)
    before = {name: p.detach().clone() for name, p in _policy(bench).named_parameters()}
    with pytest.warns(UserWarning, match="EMAWeightAveraging has never updated its average"):
        module = bench.fit(bench.trainer(averaging))
    assert all(torch.equal(p, before[name]) for name, p in module.policy_model.named_parameters())


def _policy(bench: Bench) -> Any:
    torch.manual_seed(0)
    module = bench.module()
    module.configure_model()
    return module.policy_model


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["all weights", "adapters alone"])
def test_a_run_with_averages_resumes_to_the_same_export(kept: str, bench: Bench) -> None:
    def module() -> SFTModule:
        if kept == "all weights":
            return bench.module()
        return SFTModule(PolicySpec(str(bench.folder / "base"), lora=LoRASpec(r=2)), tokenizer=bench.tokenizer)

    def fit(name: str, epochs: int, **options: Any) -> Path:
        saving = ModelCheckpoint(bench.folder / name, save_last=True)
        export = HuggingFaceExport(str(bench.folder / name / "export"))
        given = (EMAWeightAveraging(decay=DECAY), export, saving)
        bench.fit(bench.trainer(*given, enable_checkpointing=True, max_epochs=epochs), module(), **options)
        return bench.folder / name / "export"

    policy().causal_lm.save_pretrained(bench.folder / "base")
    whole, _ = exported(fit("whole", 2)), fit("part", 1)
    resumed = exported(fit("resumed", 2, ckpt_path=bench.folder / "part" / "last.ckpt"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
