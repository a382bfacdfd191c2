"""Policy gradients over rounds: what a round is used for, and what is kept of the policy that sampled it."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lion_lightning import PolicyGradientModule
from lion_lightning.losses import GRPOLoss
from lion_lightning.references.store import AnswerStore
from tests.integration.online import EveryOther, Judge, PolicyGradientOnline, Sampler, Watch

pytestmark = pytest.mark.filterwarnings("ignore")

ONE_STEP: dict[str, Any] = {"accumulate_grad_batches": 64}


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> PolicyGradientOnline:
    return PolicyGradientOnline(tmp_path_factory.mktemp("policy gradient"))


class SeesOld(Watch):
    """Keeps the policy's log-probs of an epoch's answers as it begins, and what the module says they were later."""

    def __init__(self) -> None:
        super().__init__()
        self.sampled: list[dict[tuple[int, ...], Tensor]] = []
        self.differences: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        """Before the module's own hook."""
        found = {}
        with torch.no_grad():
            for batch in trainer.train_dataloader:  # type: ignore[union-attr]
                found[tuple(batch.input_ids.tolist())] = module.policy_model(batch).values.clone()
        self.sampled.append(found)

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        expected = self.sampled[-1][tuple(batch.input_ids.tolist())]
        old = module.compared_with(batch)[1].values
        self.differences.append(float((old - expected).abs().max()))


def fit(online: PolicyGradientOnline, name: str, **options: Any) -> list[dict[str, float]]:
    """Run, and read what was logged."""
    log = CSVLogger(online.folder / name)
    online.fit(name, logger=log, log_every_n_steps=1, **options)
    with (Path(log.log_dir) / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def column(rows: list[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def test_the_log_probs_of_the_policy_that_sampled_a_round_are_kept(online: PolicyGradientOnline) -> None:
    watch = SeesOld()
    rows = fit(online, "several", watch=watch, max_epochs=2)
    staleness, ratios = column(rows, "train/staleness"), column(rows, "train/ratio")
    steps = column(rows, "on_policy/steps_per_round")
    assert staleness == [*range(int(steps[0])), *range(int(steps[1]))]
    assert min(steps) > 1
    assert max(watch.differences) < 1e-6
    exactly_one = [ratio == 1.0 for ratio in ratios]
    assert exactly_one == [age == 0 for age in staleness]
    assert len(list((online.folder / "several/rounds/old_logps").iterdir())) == 2


def test_a_round_of_one_step_keeps_nothing_and_says_so_once(
    online: PolicyGradientOnline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        rows = fit(online, "one step", **ONE_STEP)
    assert column(rows, "on_policy/steps_per_round") == [1.0, 1.0, 1.0]
    assert column(rows, "train/ratio") == [1.0, 1.0, 1.0]
    assert not (online.folder / "one step/rounds/old_logps").exists()
    assert caplog.text.count("each round is used for one optimizer step") == 1
    assert "old log-probs" not in caplog.text


def test_a_round_of_two_epochs_compares_the_second_with_the_policy_that_sampled(online: PolicyGradientOnline) -> None:
    sampling = EveryOther(Sampler(), Judge(), num_samples=4, monitor_prompts=4, keep_unfinished=True)
    rows = fit(online, "twice", sampling=sampling, max_epochs=4, **ONE_STEP)
    assert column(rows, "train/staleness") == [0.0, 1.0, 0.0, 1.0]
    assert column(rows, "on_policy/steps_per_round") == [1.0, 2.0, 1.0, 2.0]
    assert [ratio == 1.0 for ratio in column(rows, "train/ratio")] == [True, False, True, False]


@pytest.mark.slow
def test_a_limited_round_that_is_used_again_has_the_log_probs_of_later_answers(online: PolicyGradientOnline) -> None:
    """A second epoch trains on other rows than the first; ``max_steps`` ends that of round 2 after one of two steps.

    The policy of round 0 is the one that the run starts from, which could be built again.
    """
    sampling, watch = EveryOther(Sampler(), Judge(), num_samples=4, monitor_prompts=4, keep_unfinished=True), Watch()
    rows = fit(
        online, "limited, twice", sampling=sampling, watch=watch, max_epochs=4, limit_train_batches=2, max_steps=7
    )
    assert watch.trained[3] - watch.trained[2]
    assert column(rows, "train/staleness") == [0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0]
    assert column(rows, "on_policy/steps_per_round") == [2.0, 4.0, 2.0, 3.0]


def test_a_round_that_was_not_known_to_be_used_again_is_refused(online: PolicyGradientOnline) -> None:
    """A user's own rounds, without the callback: the second epoch has nothing to compare with."""
    made = online.rounds("one step")[0]
    data = online.data()
    data.rounds = lambda epoch: made
    trainer = online.trainer("own rounds", [], **ONE_STEP)
    with pytest.raises(ValueError, match=r"log-probs of the policy that sampled the round are missing.* as such when"):
        trainer.fit(online.module(), datamodule=data)
    data = online.data()
    data.rounds, data.is_used_again = (lambda epoch: made), (lambda epoch: True)
    module = online.module()
    online.trainer("own rounds", [], **ONE_STEP).fit(module, datamodule=data)
    assert isinstance(module, PolicyGradientModule)
    assert module.old.weights is not None


def test_only_the_batches_of_a_limited_epoch_are_computed_before(online: PolicyGradientOnline) -> None:
    watch = Watch()
    rows = fit(online, "limited", watch=watch, max_epochs=2, limit_train_batches=2)
    assert column(rows, "train/staleness") == [0.0, 1.0, 0.0, 1.0]
    stores = [
        AnswerStore(folder, json.loads((folder / "identity.json").read_text()))
        for folder in (online.folder / "limited/rounds/old_logps").iterdir()
    ]
    assert sorted(map(len, stores)) == sorted(len(answers) for answers in watch.trained.values())


def test_several_steps_without_clipping_are_warned_of(
    online: PolicyGradientOnline, caplog: pytest.LogCaptureFixture
) -> None:
    module = online.module(loss=GRPOLoss(clip_low=None))
    online.fit("unclipped", module=module, max_epochs=2)
    assert caplog.text.count("GRPOLoss does not clip the ratio") == 1
    caplog.clear()
    online.fit("unclipped, once", module=online.module(loss=GRPOLoss(clip_low=None)), max_epochs=1, **ONE_STEP)
    assert "does not clip" not in caplog.text
