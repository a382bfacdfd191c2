"""Runs on trees of a round (all pairs, or groups) killed anywhere and resumed: the same weights, bit for bit."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.integration.online import AllPairsOnline, GroupOnline, Judge, KilledError, Online, Sampler, Watch
from tests.integration.test_resume_online import same
from tests.marks import exhaustive

pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", params=[GroupOnline, *exhaustive(AllPairsOnline)])
def online(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Online:
    made: Online = request.param(tmp_path_factory.mktemp("online"), every=1)
    return made


@pytest.fixture(scope="module")
def whole(online: Online) -> dict[str, Tensor]:
    """The run that nobody stops."""
    return online.fit("whole")


def same_rounds(online: Online, name: str) -> bool:
    whole, other = ([made.rollouts for made in online.rounds(run)] for run in ("whole", name))
    return whole == other


# A round has 10 prompts in 3 chunks, and 4 monitor prompts in another: calls 0-3 are round 0, 4-7 round 1, and so on.
@pytest.mark.slow
@pytest.mark.parametrize("call", [5, *exhaustive(1)])
@pytest.mark.parametrize("killed", ["sampling", "judging"])
def test_killed_while_a_round_is_made(online: Online, whole: dict[str, Tensor], killed: str, call: int) -> None:
    name = f"{killed} {call}"
    kills = {"sampler": Sampler(call)} if killed == "sampling" else {"judge": Judge(call)}
    with pytest.raises(KilledError):
        online.fit(name, online.sampling(**kills))
    resumed = online.fit(name)
    assert same_rounds(online, name)
    assert same(resumed, whole)


@pytest.mark.parametrize(("epoch", "batch"), [(1, 1), *exhaustive((0, 2), (1, 0), (2, 2))])
def test_killed_while_training(online: Online, whole: dict[str, Tensor], epoch: int, batch: int) -> None:
    name = f"training {epoch} {batch}"
    with pytest.raises(KilledError):
        online.fit(name, watch=Watch((epoch, batch)))
    sampler = Sampler()
    resumed = online.fit(name, online.sampling(sampler))
    assert len(sampler.asked) == (2 - epoch) * 14  # the round of that epoch was found
    assert same_rounds(online, name)
    assert same(resumed, whole)
