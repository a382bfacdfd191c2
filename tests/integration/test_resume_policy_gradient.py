"""Policy gradients killed anywhere and resumed: the same rounds, logged values and weights, bit for bit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from typing_extensions import override

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.policy import PolicyModel
from lion_lightning.references.cached import OldPolicy
from lion_lightning.types import PackedBatch
from tests.integration.online import EveryOther, Judge, KilledError, PolicyGradientOnline, Sampler, Watch
from tests.marks import exhaustive

pytestmark = pytest.mark.filterwarnings("ignore")


class Logs(Watch):
    """Also keeps what is logged, by optimizer step and by epoch."""

    def __init__(self, kill: tuple[int, int] | None = None, after: Logs | None = None) -> None:
        super().__init__(kill)
        self.logged: dict[str, dict[str, float]] = {} if after is None else dict(after.logged)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._keep(f"step {trainer.global_step}", trainer, "train/")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._keep(f"epoch {trainer.current_epoch}", trainer, "on_policy/")

    def _keep(self, place: str, trainer: Trainer, prefix: str) -> None:
        metrics = trainer.callback_metrics.items()
        found = {name: float(value) for name, value in metrics if name.startswith(prefix)}
        if found:  # none before the first step of a process
            self.logged[place] = {name: value for name, value in found.items() if not math.isnan(value)}


class Result(NamedTuple):
    """What a run ends with."""

    weights: dict[str, Tensor]
    logs: Logs


class Runs(PolicyGradientOnline):
    """Runs of the same settings, killed or not; they write a checkpoint at each step."""

    epochs = 3
    accumulate = 1

    def run(self, name: str, logs: Logs | None = None, sampling: Any = None, module: Any = None) -> Result:
        """Begin a run, or go on with it."""
        logs = logs or Logs()
        options = {"max_epochs": self.epochs, "accumulate_grad_batches": self.accumulate, "log_every_n_steps": 1}
        weights = self.fit(name, sampling or self.sampling(), logs, module, **options)  # type: ignore[arg-type]
        return Result(weights, logs)

    def assert_like(self, whole: Result, name: str, killed: Logs | None = None, **parts: Any) -> None:
        """Go on with a run, which must end as the whole one did."""
        resumed = self.run(name, Logs(after=killed), **parts)
        rounds = [[made.rollouts for made in self.rounds(run)] for run in ("whole", name)]
        assert rounds[0] == rounds[1]
        assert resumed.logs.logged == whole.logs.logged
        assert resumed.weights.keys() == whole.weights.keys()
        assert [key for key, value in whole.weights.items() if not torch.equal(value, resumed.weights[key])] == []


class TwiceRuns(Runs):
    sampling_class = EveryOther
    epochs = 4


class AccumulatedRuns(Runs):
    accumulate = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), every=1)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Result:
    return runs.run("whole")


@pytest.mark.parametrize("place", [(1, 2), *exhaustive(((0, 1),), ((1, 0),), ((2, 3),))])
def test_killed_between_the_steps_of_a_round(runs: Runs, whole: Result, place: tuple[int, int]) -> None:
    name, killed = f"steps {place}", Logs(place)
    with pytest.raises(KilledError):
        runs.run(name, killed)
    sampler = Sampler()
    runs.assert_like(whole, name, killed, sampling=runs.sampling(sampler))
    assert len(sampler.asked) == (2 - place[0]) * 14
    ratios = [values["train/ratio"] for values in whole.logs.logged.values() if "train/ratio" in values]
    assert len(set(ratios)) > 3  # they are compared with a policy of the past


# A round has 10 prompts in 3 chunks, and 4 monitor prompts in another: calls 0-3 are round 0, 4-7 round 1, and so on.
@pytest.mark.slow
@pytest.mark.parametrize("call", [5, *exhaustive(0, 3, 10)])
@pytest.mark.parametrize("killed", ["sampling", "judging"])
def test_killed_while_a_round_is_made(runs: Runs, whole: Result, killed: str, call: int) -> None:
    name, logs = f"{killed} {call}", Logs()
    kills = {"sampler": Sampler(call)} if killed == "sampling" else {"judge": Judge(call)}
    with pytest.raises(KilledError):
        runs.run(name, logs, sampling=runs.sampling(**kills))
    runs.assert_like(whole, name, logs)


class KilledOld(OldPolicy):
    """Is killed in a round, once the log-probs of its first batch are on disk."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds

    @override
    def precompute(self, batches: Iterable[PackedBatch], policy: PolicyModel, ranks: Ranks, title: str) -> None:
        if title == f"round {self.rounds}":
            super().precompute(list(islice(batches, 1)), policy, ranks, title)
            raise KilledError
        super().precompute(batches, policy, ranks, title)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, *exhaustive(0, 2)])
def test_killed_while_old_log_probs_are_computed(runs: Runs, whole: Result, number: int) -> None:
    name, logs, module = f"old {number}", Logs(), runs.module()
    module.old = KilledOld(number)
    with pytest.raises(KilledError):
        runs.run(name, logs, module=module)
    stores = list((runs.folder / name / "rounds" / "old_logps").iterdir())
    assert len(stores) == number + 1
    runs.assert_like(whole, name, logs)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [2, *exhaustive(1)])
def test_resumed_from_the_end_of_an_epoch(runs: Runs, whole: Result, epoch: int) -> None:
    """The next round is on disk, and the policy that sampled it is the checkpoint's."""
    name, logs = f"end {epoch}", Logs((epoch, 1))
    saver = ModelCheckpoint(runs.folder / name, "end-{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    trainer = runs.trainer(name, [runs.sampling(), logs], log_every_n_steps=1, every=10**6)
    trainer.callbacks[-1] = saver  # type: ignore[attr-defined]
    with pytest.raises(KilledError):
        trainer.fit(runs.module(), datamodule=runs.data())
    shutil.rmtree(runs.folder / name / "rounds" / "old_logps")
    ends = runs.folder / name / f"end-epoch={epoch - 1}.ckpt"
    shutil.copy(ends, runs.folder / name / "last.ckpt")
    runs.assert_like(whole, name, logs)


def killed_and_equal(runs: Runs, place: tuple[int, int]) -> Result:
    """A run that is not killed, after another was that ended like it."""
    whole, logs = runs.run("whole"), Logs(place)
    with pytest.raises(KilledError):
        runs.run("killed", logs)
    runs.assert_like(whole, "killed", logs)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("place", [(1, 1), *exhaustive(((1, 0),), ((2, 0),), ((3, 2),))])
def test_killed_in_a_round_of_two_epochs(tmp_path: Path, place: tuple[int, int]) -> None:
    whole = killed_and_equal(TwiceRuns(tmp_path, every=1), place)
    steps = [whole.logs.logged[f"epoch {epoch}"]["on_policy/steps_per_round"] for epoch in range(4)]
    assert steps[1] == 2 * steps[0]


@pytest.mark.slow
@pytest.mark.parametrize("place", [(1, 4), *exhaustive(((0, 1),), ((2, 2),))])
def test_killed_within_an_accumulation(tmp_path: Path, place: tuple[int, int]) -> None:
    killed_and_equal(AccumulatedRuns(tmp_path, every=1), place)


@pytest.mark.slow
def test_old_log_probs_that_are_gone_are_named(runs: Runs, whole: Result) -> None:
    with pytest.raises(KilledError):
        runs.run("gone", Logs((1, 2)))
    shutil.rmtree(runs.folder / "gone" / "rounds" / "old_logps")
    with pytest.raises(
        ValueError, match=r"sampled the round are missing.*: bring back .*gone/rounds/old_logps, or res"
    ):
        runs.run("gone")


@pytest.mark.slow
def test_those_of_the_first_round_are_of_the_model_that_the_stage_starts_from(runs: Runs, whole: Result) -> None:
    logs = Logs((0, 2))
    with pytest.raises(KilledError):
        runs.run("first", logs)
    shutil.rmtree(runs.folder / "first" / "rounds" / "old_logps")
    runs.assert_like(whole, "first", logs)
