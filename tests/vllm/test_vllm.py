"""Real vLLM: it serves the policy's weights after each push, and every way to serve others is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning import PolicySpec
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.sampling import (
    AdapterWeightSync,
    EngineError,
    MergedWeightSync,
    SamplingSettings,
    ServerSampler,
    VLLMSampler,
    VLLMWeightSync,
)
from tests import tiny
from tests.integration.online import Judge, Online, PolicyGradientOnline, Watch, pairs_of
from tests.vllm.engines import PROMPTS, move, server, tiny_policy

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


ALIVE: list[object] = []
"""Every engine of the process: vLLM takes the process's groups down with the first that is collected."""


@pytest.fixture(autouse=True)
def engines_live(monkeypatch: pytest.MonkeyPatch) -> None:
    start = VLLMSampler._start

    def kept(self: VLLMSampler, policy: RolloutPolicy) -> None:
        start(self, policy)
        ALIVE.append(self._llm)

    monkeypatch.setattr(VLLMSampler, "_start", kept)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.fixture(params=["untied", "tied", "lora"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> RolloutPolicy:
    return tiny_policy(tmp_path / "tokenizer", tied=request.param == "tied", lora=request.param == "lora")


def engine(**more: object) -> VLLMSampler:
    settings = SamplingSettings(temperature=1.0, max_new_tokens=12)
    return VLLMSampler(settings, **more)  # type: ignore[arg-type]


def test_log_probs_are_the_policys_after_each_of_five_pushes(served: RolloutPolicy) -> None:
    sampler = engine()
    for _ in range(5):
        sampler.open(served)  # the probe is in there
        expected = served.next_logps([prompt.input_ids for prompt in PROMPTS])
        for row, tops in zip(expected, sampler.next_logps([p.input_ids for p in PROMPTS]), strict=True):
            assert len(tops) == 5
            assert all(float(row[token]) == pytest.approx(value, abs=1e-4) for token, value in tops.items())
        sampler.close()
        move(served)


def test_answers_keep_the_end_of_turn_and_the_random_state(tmp_path: Path) -> None:
    served = tiny_policy(tmp_path / "tokenizer")
    with torch.no_grad():
        served.model.lm_head.weight[2] += 0.1  # ends come more often
    sampler = engine()
    sampler.open(served)
    state = torch.get_rng_state()
    answers = sampler.sample(PROMPTS, 24, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(row) for row in answers] == [24, 24, 24]
    flat = [answer for row in answers for answer in row]
    assert {answer.finish_reason for answer in flat} == {"stop", "length"}
    for answer in flat:
        assert answer.token_ids is not None
        assert (answer.token_ids[-1] == 2) == (answer.finish_reason == "stop")
        assert len(answer.token_ids) == 12 or answer.finish_reason == "stop"
    assert sampler.sample(PROMPTS, 24, seed=5) == answers
    assert sampler.sample(PROMPTS, 24, seed=6) != answers


def test_a_stop_string_ends_an_answer_and_its_tokens_are_left_out(tmp_path: Path) -> None:
    served = tiny_policy(tmp_path / "tokenizer")
    sampler = VLLMSampler(SamplingSettings(temperature=1.0, max_new_tokens=30, stop=("w7", "w8", "w9")))
    sampler.open(served)
    flat = [answer for row in sampler.sample(PROMPTS, 16, seed=0) for answer in row]
    ended = [answer for answer in flat if answer.token_ids is None]
    assert ended
    assert all(answer.finish_reason == "stop" and "w7" not in answer.text.split() for answer in ended)


def test_a_prompt_without_room_is_named(tmp_path: Path) -> None:
    sampler = engine(max_model_len=50)
    sampler.open(tiny_policy(tmp_path / "tokenizer"))
    with pytest.raises(
        ValueError, match=r"f:40: the prompt and 12 new tokens need 52 positions, but the engine has 50"
    ):
        sampler.sample(PROMPTS, 1, 0)


class Deaf(MergedWeightSync):
    """Takes no weights but the first."""

    pushed = False

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        if not self.pushed:
            super().push(llm, policy)
        self.pushed = True


class Headless(MergedWeightSync):
    """Leaves out the tied head, as a state dict without duplicates does."""

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        weights = ((name, value) for name, value in policy.weights() if name != "lm_head.weight")
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        llm.reset_prefix_cache()


class Remembering(MergedWeightSync):
    """Keeps its prefix cache."""

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": policy.weights()})


class Clinging(AdapterWeightSync):
    """Goes on asking for the first adapters."""

    def push(self, llm: Any, policy: RolloutPolicy) -> None:
        first = self.request
        if first is None:
            super().push(llm, policy)
        self.request = first or self.request


@pytest.mark.parametrize("kind", [Deaf, Headless, Remembering, Clinging])
def test_stale_weights_head_cache_or_adapters_are_found_out(kind: Any, tmp_path: Path) -> None:
    served = tiny_policy(tmp_path / "tokenizer", tied=True, lora=kind is Clinging)
    sampler = engine(weight_sync=kind())

    def rounds() -> None:
        for _ in range(2):
            sampler.open(served)
            move(served)

    with pytest.raises(EngineError, match="after the weight sync the engine"):  # without a head in the first round
        rounds()


def test_an_online_run_in_one_process(tmp_path: Path) -> None:
    online = Online(tmp_path)
    shape = tiny.config(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    PolicySpec(config=shape).build().causal_lm.save_pretrained(online.start)
    watch = Watch()
    sampler = VLLMSampler(SamplingSettings(temperature=1.0, max_new_tokens=5))
    online.fit("run", online.sampling(sampler, Judge()), watch)
    rounds = online.rounds("run")
    assert [watch.trained[made.number] for made in rounds] == [pairs_of(made) for made in rounds]
    assert len({made.metadata["policy"] for made in rounds}) == 3


def test_a_policy_gradient_trains_on_the_tokens_that_the_engine_drew(tmp_path: Path) -> None:
    online = PolicyGradientOnline(tmp_path)
    shape = tiny.config(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    PolicySpec(config=shape).build().causal_lm.save_pretrained(online.start)
    watch, module = Watch(), online.module()
    sampler = VLLMSampler(SamplingSettings(temperature=1.0, max_new_tokens=5))
    online.fit("run", online.sampling(sampler, Judge()), watch, module, max_epochs=2)
    rounds = online.rounds("run")
    assert len({made.metadata["policy"] for made in rounds}) == 2
    for made in rounds:
        drawn = {rollout.answers[place].token_ids for rollout in made.rollouts for place in rollout.usable}
        assert watch.trained[made.number] <= drawn
        assert len(watch.trained[made.number]) > 10
    assert module.old.weights == rounds[1].metadata["policy"]  # what it compares with has sampled the round


def test_a_real_server_is_pushed_to_probed_and_missed(tmp_path: Path) -> None:
    served = tiny_policy(tmp_path / "tokenizer", tied=True)
    served.write(tmp_path / "model")
    with server(tmp_path / "model", 18431) as url:
        routes = VLLMWeightSync(str(tmp_path / "pushed"))
        sampler = ServerSampler(
            url,
            routes,
            SamplingSettings(temperature=1.0, max_new_tokens=6),
            tolerance=1e-3,
            seeded=False,
            retries=2,
            backoff=0.1,
        )
        for _ in range(3):
            sampler.open(served)
            answers = sampler.sample(PROMPTS, 4, seed=1)
            assert [len(row) for row in answers] == [4, 4, 4]
            assert all(answer.token_ids for row in answers for answer in row)
            move(served)
    with pytest.raises(ConnectionError, match=r"no response after 3 attempts .*start the server"):
        sampler.sample(PROMPTS, 1, seed=2)
