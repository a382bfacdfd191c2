"""Rounds of 64 answers to a prompt, from the sampler to the step."""

from __future__ import annotations

from pathlib import Path

import pytest

from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.types import Prompt
from tests.integration.online import GroupOnline, Online, Sampler, Watch

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def groups(tmp_path: Path) -> Online:
    return GroupOnline(tmp_path)


def test_more_answers_than_a_batch_holds(groups: Online) -> None:
    """64 answers in batches of 24, 24 and 16; all prompts whose answers fit a batch have the draws of before."""
    tokenizer = TokenizerSpec(str(groups.start)).load()
    policy = RolloutPolicy(PolicySpec(str(groups.start)).build().eval(), tokenizer)
    asked, sizes = [Prompt("w3", (3,)), Prompt("w4 w5", (4, 5))], []

    class Watched(TransformersSampler):
        def _generate(self, prompts, n):  # type: ignore[no-untyped-def]
            sizes.append(len(prompts) * n)
            return super()._generate(prompts, n)

    sampler = Watched(SamplingSettings(temperature=1.0, max_new_tokens=4), batch_size=24)
    sampler.open(policy)
    answers = [sampler.sample(asked, 64, seed=3) for _ in range(2)]
    sampler.close()
    assert sizes == 2 * [24, 24, 16, 24, 24, 16]
    assert answers[0] == answers[1]
    assert [len(given) for given in answers[0]] == [64, 64]
    assert len({answer.token_ids for answer in answers[0][0]}) > 40  # the batches do not repeat each other


@pytest.mark.slow
def test_a_round_of_64_answers_is_trained_whole(groups: Online) -> None:
    watch, sampling = Watch(), groups.sampling(num_samples=64, prompts_per_round=3, chunk_size=2)
    groups.fit("run", sampling, watch, data=groups.data(row_length=400), max_epochs=1)
    (made,) = groups.rounds("run")
    asked = [rollout for rollout in made.rollouts if not rollout.monitor]
    assert [len(rollout.answers) for rollout in asked] == [64] * 3
    trained = [rollout.answers[place] for rollout in asked for place in rollout.usable]
    assert len(trained) > 180  # a few ended at once
    assert watch.trained[0] == {answer.token_ids for answer in trained}


@pytest.mark.slow
def test_a_group_longer_than_a_row_is_named_and_found_again_in_longer_rows(
    groups: Online, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"num_samples": 64, "prompts_per_round": 3}
    words = (
        r"round-0000.arrow\[\d\] \(.*prompts.jsonl:\d+\): the prompt and its \d\d answers, a group that is never cut, "
        r"have (\d+) tokens, more than the 300 of data.row_length \([123] of 3 are too long\); set data.row_length to "
        r"\1 or more, or lower num_samples"
    )
    with pytest.raises(ValueError, match=words) as caught:
        groups.fit("long", groups.sampling(**settings), data=groups.data(row_length=300), max_epochs=1)
    assert "64 answers of up to 5 tokens (max_new_tokens) may have 320" in caplog.text
    needed = int(str(caught.value).partition("set data.row_length to ")[2].split()[0])
    sampler = Sampler()
    sampling = groups.sampling(sampler, **settings)
    groups.fit("long", sampling, data=groups.data(row_length=needed), max_epochs=1)
    assert sampler.asked == []
