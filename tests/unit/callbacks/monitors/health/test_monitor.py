"""The callback: what it shows to detectors, what it reports, once, and what it keeps."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lion_lightning.callbacks import HealthMonitor
from lion_lightning.callbacks.monitors.health import Detector, Finding, NonFinite, Sampled, Step, read_findings
from lion_lightning.callbacks.monitors.health.findings import write_findings
from lion_lightning.callbacks.monitors.health.monitor import logged_metrics
from lion_lightning.rollouts.files import write_rollouts
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import Round, round_path
from lion_lightning.types import Answer, Prompt
from tests.unit.callbacks.conftest import Bench, batches


class Sees(Detector):
    """Finds each step in which it is told to, as severe as it is told to."""

    symptom = "seen"
    advice = "Nothing is wrong"

    def __init__(self, severities: dict[int, float] | None = None) -> None:
        super().__init__()
        self.severities = severities or {}

    def on_step(self, step: Step) -> Finding | None:
        self.remember("losses", step.metrics["loss"], 100)
        self.remember("steps", step.number, 100)
        severity = self.severities.get(step.number)
        return None if severity is None else self.finding(step.number, severity, 1.0, "as told", severity=severity)


class Losses(Callback):
    """Losses of all steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


class Breaks(Callback):
    """Makes weights NaN before a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.fill_(math.nan)


def path_of(bench: Bench) -> Path:
    return bench.folder / "run" / "health.jsonl"


def test_each_step_is_shown_with_its_loss_however_seldom_steps_are_logged(bench: Bench) -> None:
    sees, losses = Sees(), Losses()
    bench.fit(bench.trainer(HealthMonitor([sees]), losses, log_every_n_steps=4))
    assert sees.memory == {"losses": losses.losses, "steps": [1, 2, 3, 4, 5, 6]}
    assert path_of(bench).read_text() == ""


def test_a_finding_is_a_line_and_comes_again_only_twice_as_bad(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    monitor = HealthMonitor([Sees({1: 1.0, 2: 1.9, 4: 2.0, 5: 3.9})])
    with caplog.at_level(logging.WARNING):
        bench.fit(bench.trainer(monitor))
    assert [record.message for record in caplog.records if "as told" in record.message] == [
        "seen at step 1: as told. Nothing is wrong.",
        "seen at step 4: as told. Nothing is wrong.",
    ]
    assert read_findings(path_of(bench)) == monitor.findings
    assert [(finding.step, finding.severity) for finding in monitor.findings] == [(1, 1.0), (4, 2.0)]


def test_a_loss_that_is_not_a_number_is_found_though_its_step_is_not_made(bench: Bench) -> None:
    monitor = HealthMonitor([NonFinite()])
    with pytest.raises(ValueError, match="train/loss is nan in step 3"):
        bench.fit(bench.trainer(monitor, Breaks(2)))
    (finding,) = read_findings(path_of(bench))
    assert (finding.step, finding.seen) == (3, "the loss is nan")
    assert math.isnan(finding.value)
    assert json.loads(path_of(bench).read_text())["value"] is None


def test_a_resumed_run_remembers_and_finds_what_one_run_finds(bench: Bench) -> None:
    severities = {2: 1.0, 3: 1.5, 4: 1.5, 5: 2.5}
    options: dict[str, Any] = {"log_every_n_steps": 5, "max_epochs": 2}
    whole = Sees(severities)
    bench.fit(bench.trainer(HealthMonitor([whole]), **options), train=batches(3))
    expected = path_of(bench).read_text()

    save = ModelCheckpoint(bench.folder / "checkpoints", every_n_train_steps=3, save_top_k=-1)
    first = HealthMonitor([Sees(severities)])
    bench.fit(bench.trainer(first, save, **options, enable_checkpointing=True), train=batches(3))
    resumed = Sees(severities)
    checkpoint = bench.folder / "checkpoints" / "epoch=0-step=3.ckpt"
    bench.fit(bench.trainer(HealthMonitor([resumed]), **options), train=batches(3), ckpt_path=checkpoint)
    assert resumed.memory == whole.memory
    assert path_of(bench).read_text() == expected
    assert [finding.step for finding in read_findings(path_of(bench))] == [2, 5]


def test_a_new_run_forgets_the_one_before(bench: Bench) -> None:
    monitor = HealthMonitor([Sees({1: 1.0})])
    for _ in range(2):
        bench.fit(bench.trainer(monitor))
        assert len(monitor.findings) == len(read_findings(path_of(bench))) == 1


class Foreign(LightningModule):
    """Somebody's module, which logs little and under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> Any:
        self.log("train_rewards/margin", float(batch_idx))
        return self.layer(batch[0]).sum() * 0 + (math.nan if batch_idx == 2 else 1.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_foreign_module_is_watched_as_far_as_it_logs(bench: Bench) -> None:
    sees, monitor = Sees(), HealthMonitor([NonFinite()])
    data: Any = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)))
    bench.trainer(HealthMonitor([sees])).fit(Foreign(), data)
    assert sees.memory["losses"] == pytest.approx([1.0, 1.0, math.nan, 1.0], nan_ok=True)
    bench.trainer(monitor).fit(Foreign(), data)
    assert [(finding.step, finding.seen) for finding in monitor.findings] == [(3, "the loss is nan")]


def test_metrics_of_a_stage_lose_its_name() -> None:
    names = ("train/loss", "train_kl", "lr", "val/loss", "val_loss", "on_policy/kl", "perf/mfu")
    trainer: Any = SimpleNamespace(callback_metrics={name: torch.tensor(1.0) for name in names})
    assert [*logged_metrics(trainer, "train")] == ["loss", "kl", "lr"]
    assert [*logged_metrics(trainer, "val")] == ["lr", "loss"]


class SeesRounds(Detector):
    """Finds every round and every validation."""

    symptom = "seen"
    advice = "Nothing is wrong"

    def on_round(self, sampled: Sampled) -> Finding | None:
        self.remember("rounds", sampled.number, 100)
        return self.finding(sampled.step, 2.0**sampled.number, 1.0, "a round", severity=2.0**sampled.number)

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> Finding | None:
        self.remember("validations", step, 100)
        self.remember("losses", metrics["loss"], 100)
        return None


def stored_round(folder: Path, number: int, prompts: int) -> Round:
    """A round whose prompts have two scored answers; a monitor prompt comes last."""
    answers = (Answer("a", token_ids=(3,)), Answer("b", token_ids=(4,)))
    made = [Rollout(Prompt(f"{n}"), answers, scores=(0.0, 1.0), monitor=n == prompts) for n in range(prompts + 1)]
    write_rollouts(round_path(folder, number), made, {"round": number, "identity": "x"})
    return Round(round_path(folder, number))


def test_each_round_is_shown_once_and_a_small_one_not_at_all(bench: Bench) -> None:
    sees = SeesRounds()
    monitor, trainer = HealthMonitor([sees]), bench.trainer()
    monitor.setup(trainer, Foreign(), "fit")
    for number, prompts in ((0, 16), (0, 16), (1, 15), (2, 16)):
        finished = stored_round(bench.folder, number, prompts)
        trainer.datamodule = SimpleNamespace(current_round=finished)  # type: ignore[attr-defined]
        monitor.on_train_epoch_start(trainer, Foreign())
    assert sees.memory == {"rounds": [0, 2]}
    assert monitor.state_dict() == {"reported": {"seen": 4.0}, "round": 2, "memories": {"SeesRounds": sees.memory}}


def test_validations_are_shown_the_one_before_training_too(bench: Bench) -> None:
    sees = SeesRounds()
    bench.fit(bench.trainer(HealthMonitor([sees]), max_epochs=2))
    assert sees.memory["validations"] == [0, 6, 12]
    assert sees.memory["losses"][0] > sees.memory["losses"][2]


def test_a_fast_dev_run_writes_nothing(bench: Bench) -> None:
    monitor = HealthMonitor([Sees({1: 1.0})])
    bench.fit(bench.trainer(monitor, fast_dev_run=True))
    assert len(monitor.findings) == 1
    assert not path_of(bench).exists()


def test_two_detectors_of_a_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"HealthMonitor\.detectors has two of one class \(Sees, Sees\)"):
        HealthMonitor([Sees(), Sees()])


def test_an_odd_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state of HealthMonitor is odd"):
        HealthMonitor().load_state_dict({"reported": 3})


def test_names_of_rows_may_hold_any_character(tmp_path: Path) -> None:
    odd = Finding("ties", 0, 1.0, 1.0, "a\x85b\u2028c", "Look", rows=("\u2029.jsonl:1", "\udcff.jsonl:2"))
    write_findings(tmp_path / "health.jsonl", [odd, odd])
    kept = odd._replace(rows=("\u2029.jsonl:1", "?.jsonl:2"))
    assert read_findings(tmp_path / "health.jsonl") == [kept, kept]


@pytest.mark.parametrize("line", ["[]\n", "{}\n", "{\n"])
def test_another_file_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "health.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"health\.jsonl:1: not a finding of HealthMonitor; remove the file"):
        read_findings(path)
