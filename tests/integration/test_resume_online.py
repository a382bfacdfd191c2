"""Online runs killed anywhere and resumed: the same rounds, the same pairs, the same weights, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch import Tensor

from lion_lightning import FrozenReference, OnlineDPOModule, RefreshedReference
from lion_lightning.rollouts.prompts import plan as round_plan
from lion_lightning.rollouts.prompts.plan import RoundPrompts
from tests.integration.online import Judge, KilledError, Online, Sampler, Watch
from tests.marks import exhaustive

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Online:
    return Online(tmp_path_factory.mktemp("online"), every=1)


@pytest.fixture(scope="module")
def whole(online: Online) -> dict[str, Tensor]:
    """The run that nobody stops."""
    return online.fit("whole")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def same_rounds(online: Online, name: str) -> bool:
    pairs = [[made.rollouts for made in online.rounds(run)] for run in ("whole", name)]
    return pairs[0] == pairs[1]


# A round has 10 prompts in 3 chunks, and 4 monitor prompts in another: calls 0-3 are round 0, 4-7 round 1, and so on.
@pytest.mark.slow
@pytest.mark.parametrize("call", [2, *exhaustive(0, 5, 11)])
@pytest.mark.parametrize("killed", ["sampling", "judging"])
def test_killed_while_a_round_is_made(online: Online, whole: dict[str, Tensor], killed: str, call: int) -> None:
    name = f"{killed} {call}"
    kills = {"sampler": Sampler(call)} if killed == "sampling" else {"judge": Judge(call)}
    with pytest.raises(KilledError):
        online.fit(name, online.sampling(**kills))
    sampler, judge = Sampler(), Judge()
    resumed = online.fit(name, online.sampling(sampler, judge))
    assert same_rounds(online, name)
    assert same(resumed, whole)
    number, chunk = divmod(call, 4)
    sizes = [4, 4, 2, 4]
    done = sum(sizes[:chunk])
    assert len(judge.scored) == (3 - number) * 14 - (done if killed == "judging" else 0)
    assert len(sampler.asked) == (3 - number) * 14 - (done if killed == "sampling" else 14)


@pytest.mark.parametrize(("epoch", "batch"), [(1, 0), *exhaustive((0, 2), (1, 1), (2, 2))])
def test_killed_while_training(online: Online, whole: dict[str, Tensor], epoch: int, batch: int) -> None:
    name = f"training {epoch} {batch}"
    with pytest.raises(KilledError):
        online.fit(name, watch=Watch((epoch, batch)))
    sampler = Sampler()
    resumed = online.fit(name, online.sampling(sampler))
    assert same_rounds(online, name)
    assert same(resumed, whole)
    assert len(sampler.asked) == (2 - epoch) * 14


@pytest.mark.slow
@pytest.mark.parametrize("reference", [RefreshedReference, *exhaustive(FrozenReference)])
@pytest.mark.parametrize("place", [(2, 1), *exhaustive(((1, 0),))])
def test_killed_under_other_references(online: Online, reference: Any, place: tuple[int, int]) -> None:
    def module() -> Any:
        return online.module(reference=reference())

    name = f"{reference.__name__} {place}"
    expected = online.fit(f"whole {name}", module=module())
    with pytest.raises(KilledError):
        online.fit(name, watch=Watch(place), module=module())
    assert same(online.fit(name, module=module()), expected)


@pytest.mark.slow
def test_a_checkpoint_before_a_round_replays_the_steps_and_finds_the_round(
    online: Online, whole: dict[str, Tensor]
) -> None:
    with pytest.raises(KilledError):
        online.fit("sparse", watch=Watch((1, 2)), every=3)
    sampler = Sampler()
    assert same(online.fit("sparse", online.sampling(sampler), every=3), whole)
    assert len(sampler.asked) == 14  # round 1 was found: replayed steps lead to the very policy that made it


@pytest.mark.slow
def test_a_round_that_is_gone_is_named(online: Online) -> None:
    with pytest.raises(KilledError):
        online.fit("gone", watch=Watch((1, 1)))
    online.rounds("gone")[1].path.unlink()
    with pytest.raises(ValueError, match=r"round-0001.arrow: the checkpoint stands within this round, which is gone"):
        online.fit("gone")


class TiesLater(Judge):
    """Gives equal scores after the answers of round 0."""

    def score(self, prompts: Any, answers: Any) -> Any:
        scores = super().score(prompts, answers)
        return [[1.0] * len(row) for row in scores] if len(self.scored) > 14 else scores

    def identity(self) -> str:
        return "judge"


class Decides(Judge):
    def identity(self) -> str:
        return "judge"


@pytest.mark.parametrize("samples", [4, *exhaustive(3)])
def test_a_checkpoint_of_a_round_without_pairs_does_not_bring_it_back(online: Online, samples: int) -> None:
    name = f"ties {samples}"
    trainer = online.trainer(name, [online.sampling(judge=TiesLater())], max_epochs=4)
    saver = OnExceptionCheckpoint(online.folder / name, "stopped")
    trainer.callbacks.append(saver)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"round 3 .* gives no pair to train on"):  # rounds 1 and 2 were skipped
        trainer.fit(online.module(), datamodule=online.data())
    sampler = Sampler()
    trainer = online.trainer(name, [online.sampling(sampler, Decides(), num_samples=samples)], max_epochs=4)
    trainer.fit(online.module(), datamodule=online.data(), ckpt_path=saver.ckpt_path, weights_only=False)
    assert len(sampler.asked) == 7 + 4  # round 3 alone: a fourth of the 30 prompts that are not the 4 monitor prompts
    first, *later = [made.metadata["policy"] for made in online.rounds(name)]
    assert len(set(later)) == 1  # what was skipped trained nothing
    assert first != later[0]


class AsksForTheLength(OnlineDPOModule):
    """Asks Lightning for the length of the run, which sets up the loader before the epoch is restored."""

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


@pytest.mark.slow
def test_a_module_that_asks_for_the_length_finds_the_round_of_the_checkpoint(online: Online) -> None:
    def module() -> OnlineDPOModule:
        return AsksForTheLength(str(online.start))

    expected = online.fit("whole length", module=module())
    with pytest.raises(KilledError):
        online.fit("length", watch=Watch((1, 1)), module=module())
    sampler = Sampler()
    assert same(online.fit("length", online.sampling(sampler), module=module()), expected)
    assert len(sampler.asked) == 14
    assert not list((online.folder / "length").rglob("set_aside"))


@pytest.mark.slow
def test_a_finished_run_can_be_given_more_rounds(online: Online) -> None:
    def fit(name: str, epochs: int) -> dict[str, Tensor]:
        module = online.module(lr_scheduler=None)
        return online.fit(name, online.sampling(prompts_per_round=10), module=module, max_epochs=epochs)

    fit("grown", 2)
    assert same(fit("grown", 3), fit("at once", 3))


@pytest.mark.slow
@pytest.mark.parametrize("end", [{}, {"max_epochs": 3, "max_steps": 4}], ids=["epochs", "steps"])
def test_a_finished_run_asks_nobody_anything(online: Online, end: dict[str, Any]) -> None:
    name = f"finished {end}"
    online.fit(name, **end)
    before, made = online.rounds(name)[-1].path.stat().st_mtime_ns, len(online.rounds(name))
    sampler, judge = Sampler(), Judge()
    online.fit(name, online.sampling(sampler, judge), **end)
    assert (sampler.asked, judge.scored) == ([], [])
    assert (len(online.rounds(name)), online.rounds(name)[-1].path.stat().st_mtime_ns) == (made, before)


@pytest.mark.slow
def test_rounds_are_not_made_again_by_a_second_start(online: Online, whole: dict[str, Tensor], tmp_path: Path) -> None:
    sampler = Sampler()
    rounds = online.folder / "whole" / "rounds"
    again = online.fit("again", online.sampling(sampler, rounds_dir=rounds))
    assert sampler.asked == []
    assert same(again, whole)


@pytest.mark.slow
def test_other_settings_of_the_sampling_are_used_and_said(online: Online, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KilledError):
        online.fit("fewer answers", watch=Watch((1, 0)))
    caplog.clear()
    online.fit("fewer answers", online.sampling(num_samples=3))
    assert "callbacks.OnPolicySampling.num_samples was 4, is 3" in caplog.text
    assert [len(made.rollouts[0].answers) for made in online.rounds("fewer answers")] == [4, 3, 3]


def test_prompts_that_a_longer_run_shares_out_otherwise_are_told() -> None:
    """Two rounds of 15, set aside 4; of a run of three rounds the third would ask what the second has asked."""
    two, three = RoundPrompts([0] * 4, list(range(30)), 15), RoundPrompts([0] * 4, list(range(30)), 10)
    assert set(three.of_round(2, 2)) <= set(two.of_round(1, 1))
    logged = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_plan.logger, "warning", lambda text, *values: logged.append(text % values))
        two.warn_of_repeats(two.shares, 2)
        three.warn_of_repeats(two.shares, 2)
    (told,) = logged
    assert "earlier rounds asked 15 prompts each and set 4 aside as monitor prompts, and now it is 10 and 4" in told
    assert "set prompts_per_round: 15 and monitor_prompts: 4" in told


@pytest.mark.slow
def test_a_longer_run_says_what_it_asks_again(online: Online, caplog: pytest.LogCaptureFixture) -> None:
    online.fit("longer", max_epochs=2)
    assert "of earlier rounds come again" not in caplog.text
    online.fit("longer", online.sampling(monitor_prompts=5), max_epochs=3)
    assert (
        "earlier rounds asked 15 prompts each and set 4 aside as monitor prompts, and now it is 9 and 5" in caplog.text
    )
    assert "callbacks.OnPolicySampling.monitor_prompts was 4, is 5" in caplog.text
