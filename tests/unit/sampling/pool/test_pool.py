"""A pool asks each drawn model once, by its own tokenizer, and says whose answer is whose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from transformers import GenerationConfig

from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.models.generation.prompts import with_tokenizer
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.rollouts.checks import require_own_answers
from lion_lightning.rollouts.files import read_rollouts, write_rollouts
from lion_lightning.rollouts.rollout import Rollout, with_answers
from lion_lightning.sampling import (
    FrozenSampler,
    PooledSampler,
    Sampler,
    SamplingSettings,
    ServerSampler,
    TransformersSampler,
    VLLMWeightSync,
)
from lion_lightning.types import Answer, Prompt
from tests import tiny
from tests.unit.chat_server import serving

GREEDY = SamplingSettings(temperature=0.0, max_new_tokens=4)
PROMPTS = [Prompt(f"p{number}", (3 + number,), where=f"f:{number}") for number in range(40)]


class Named:
    """Answers with its name and the prompt; keeps the calls, and whether it is open."""

    def __init__(self, name: str, log: list[str] | None = None, fails: bool = False) -> None:
        self.name, self.calls, self.log, self.fails = name, list[Any](), log if log is not None else [], fails

    def open(self, policy: Any) -> None:
        if self.fails:
            raise OSError("no memory")
        self.log.append(f"open {self.name}")

    def close(self) -> None:
        self.log.append(f"close {self.name}")

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Any]]:
        self.calls.append(([prompt.text for prompt in prompts], n, seed))
        return [[f"{self.name} to {prompt.text}"] for prompt in prompts]


def pool(names: str = "abcd", own: str | None = None) -> PooledSampler:
    samplers: dict[str, Sampler] = {name: Named(name) for name in names}
    return PooledSampler(samplers, own)


def asked(*words: str, **more: Any) -> Prompt:
    turns = tuple({"role": "user", "content": word} for word in words)
    return Prompt("policy's text", (9, 9), turns, where="f:1", **more)


def test_each_drawn_sampler_is_asked_once_without_repeats_and_the_order_is_kept() -> None:
    made = pool()
    rows = made.sample(PROMPTS, 3, seed=7)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert len({answer.model for answer in row}) == 3
        assert [answer.text for answer in row] == [f"{answer.model} to {prompt.text}" for answer in row]
    for sampler in made.samplers.values():
        ((texts, n, _),) = sampler.calls  # type: ignore[attr-defined]
        assert n == 1
        assert texts == [prompt.text for prompt, row in zip(PROMPTS, rows, strict=True) if _takes_part(sampler, row)]
    seeds = {sampler.calls[0][2] for sampler in made.samplers.values()}  # type: ignore[attr-defined]
    assert len(seeds) == 4


def _takes_part(sampler: Any, row: list[Answer]) -> bool:
    return sampler.name in {answer.model for answer in row}


def test_the_draw_follows_from_seed_and_prompt_alone() -> None:
    names = [[answer.model for answer in row] for row in pool().sample(PROMPTS, 2, seed=7)]
    again = [[answer.model for answer in row] for row in pool().sample(PROMPTS[::-1], 2, seed=7)]
    assert names == again[::-1]
    assert names != [[answer.model for answer in row] for row in pool().sample(PROMPTS, 2, seed=8)]
    drawn = Counter(name for row in names for name in row)
    assert set(drawn) == set("abcd")
    assert all(8 <= count <= 32 for count in drawn.values())  # 20 expected, deviation 3.2


def test_the_own_model_always_takes_part_at_a_random_place_and_answers_alone_where_one_does() -> None:
    rows = pool(own="c").sample(PROMPTS, 2, seed=0)
    names = [[answer.model for answer in row] for row in rows]
    assert all(row.count("c") == 1 for row in names)
    assert 8 <= sum(row[0] == "c" for row in names) <= 32
    assert {row[row[0] == "c"] for row in names} == set("abd")
    assert {answer.model for (answer,) in pool(own="c").sample(PROMPTS, 1, seed=0)} == {"c"}


def test_samplers_that_follow_the_policy_are_opened_and_closed_in_turn() -> None:
    log: list[str] = []
    made = PooledSampler({"a": Named("a", log), "b": Named("b", log)})
    policy: Any = SimpleNamespace()
    made.open(policy)
    assert log == ["open a", "open b"]
    made.close()
    assert log == ["open a", "open b", "close b", "close a"]
    log.clear()
    failing = PooledSampler({"a": Named("a", log), "b": Named("b", log, fails=True)})
    with pytest.raises(OSError, match="no memory"):
        failing.open(policy)
    assert log == ["open a", "close a"]


def test_what_a_pool_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PooledSampler: there are 1 samplers; give two or more"):
        pool("a")
    with pytest.raises(ValueError, match=r"PooledSampler: own is 'x'; the samplers are a, b"):
        pool("ab", own="x")
    made = pool("ab")
    with pytest.raises(ValueError, match=r"3 answers of different models to each prompt, but there are 2 samplers"):
        made.sample(PROMPTS, 3, 0)
    assert not made.samplers["a"].calls  # type: ignore[attr-defined]

    class Two(Named):
        def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Any]]:
            return [["x", "y"] for _ in prompts]

    with pytest.raises(ValueError, match=r"Two.sample\(\) returned 40 lists of \[2\] answers for 40 prompts and n=1"):
        PooledSampler({"a": Named("a"), "b": Two("b")}).sample(PROMPTS, 2, 0)


@pytest.mark.parametrize(
    ("own", "numbers", "message"),
    [
        (None, (3, 0, 1), "3 answers of different models to each prompt, but there are 2 samplers"),
        (None, (2, None, 1), "no sampler is `own` to answer them; name the policy's, or set monitor_prompts: 0"),
        (None, (2, 4, 1), "no sampler is `own`"),
        ("a", (2, None, 2), "monitor_samples is 2, and 'a' alone answers monitor prompts, once each; set 1"),
    ],
)
def test_numbers_that_do_not_fit_the_pool_are_refused_when_the_callback_is_made(
    own: str | None, numbers: tuple[int, int | None, int], message: str
) -> None:
    num_samples, monitor_prompts, monitor_samples = numbers
    more = {"num_samples": num_samples, "monitor_prompts": monitor_prompts, "monitor_samples": monitor_samples}
    judge: Any = SimpleNamespace(score=None)
    with pytest.raises(ValueError, match=message):
        OnPolicySampling(pool("ab", own), judge, **more)  # type: ignore[arg-type]
    OnPolicySampling(pool("ab"), judge, num_samples=2, monitor_prompts=0)
    OnPolicySampling(pool("ab", "a"), judge, num_samples=2)


def test_other_models_answers_are_refused_where_the_policys_own_are_trained() -> None:
    settings = SamplingSettings(temperature=1.0)
    samplers: list[tuple[Any, str]] = [
        (
            pool("ab", "a"),
            "PooledSampler: answers are those of a, b, and what is trained are log-probs of the policy's",
        ),
        (FrozenSampler("org/model", settings), "FrozenSampler: org/model is another model than the policy"),
        (
            ServerSampler("http://x", sampling=settings, tokenizer=TokenizerSpec("org/model")),
            "`tokenizer` says that the server has another model",
        ),
    ]
    module = SimpleNamespace(own_answers=True)
    for sampler, message in samplers:
        with pytest.raises(ValueError, match=message):
            require_own_answers(module, sampler, 0.0)
        require_own_answers(SimpleNamespace(), sampler, 0.0)


# --- other models


def stored(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    policy = PolicySpec(config=tiny.config(num_hidden_layers=1)).build()
    RolloutPolicy(policy, TokenizerSpec(str(tiny.tokenizer_folder(folder))).load()).write(folder)
    return folder


def other_tokenizer(folder: Path) -> TokenizerSpec:
    """The same words under another template, which asks with w7."""
    return TokenizerSpec(str(tiny.tokenizer_folder(folder)), chat_template="{{ messages[0].content }} w7")


@pytest.fixture
def policy(tmp_path: Path) -> RolloutPolicy:
    folder = stored(tmp_path / "policy", 0)
    return RolloutPolicy.load(str(folder), TokenizerSpec(str(folder)).load())


def test_a_frozen_model_answers_as_it_does_alone_by_its_own_template(tmp_path: Path, policy: RolloutPolicy) -> None:
    folder = stored(tmp_path / "other", 1)
    sampler = FrozenSampler(str(folder), GREEDY, tokenizer=other_tokenizer(tmp_path / "tokenizer"))
    sampler.check_ready([asked("w5")])
    state = torch.get_rng_state()
    sampler.open(policy)
    ((answer,), (plain,)) = sampler.sample([asked("w5"), Prompt("w5 w6", (1,), where="f:2")], 1, 0)
    sampler.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert answer.token_ids is None
    alone = RolloutPolicy.load(str(folder), other_tokenizer(tmp_path / "tokenizer").load())
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=2, pad_token_id=2)  # type: ignore[no-untyped-call]
    for given, ids in ((answer, [5, 7]), (plain, [5, 6])):
        wanted = alone.model.generate(torch.tensor([ids]), generation_config=config)[0, 2:]
        assert given.text == alone.tokenizer.decode(wanted, skip_special_tokens=True)


def test_the_answers_of_a_pool_are_in_the_policy_s_tokens_and_named_in_the_file(
    tmp_path: Path, policy: RolloutPolicy
) -> None:
    other = FrozenSampler(str(stored(tmp_path / "other", 1)), SamplingSettings(temperature=1.0, max_new_tokens=4))
    own = TransformersSampler(SamplingSettings(temperature=1.0, max_new_tokens=4))
    made = PooledSampler({"own": own, "other": other}, own="own")
    made.open(policy)
    (row,) = made.sample([asked("w5")], 2, 0)
    made.close()
    by_model = {answer.model: answer for answer in row}
    assert by_model["own"].token_ids is not None  # what the policy has sampled
    assert by_model["other"].token_ids is None
    rollout = with_answers(Rollout(asked("w5"), scores=(1.0, 0.0)), row, policy, add_original=False)
    tokens = {answer.model: answer.token_ids for answer in rollout.answers}
    text = by_model["other"].text
    end = [2] if by_model["other"].finish_reason == "stop" else []
    assert tokens["other"] == (*policy.tokenizer.encode(text), *end)
    write_rollouts(tmp_path / "round.arrow", [rollout])
    (read,) = read_rollouts(tmp_path / "round.arrow")
    assert [answer.model for answer in read.answers] == [answer.model for answer in row]


def test_a_server_with_another_model_is_asked_by_its_tokenizer(tmp_path: Path) -> None:
    bodies = []

    def reply(route: str, body: Any) -> tuple[int, Any]:
        bodies.append(body)
        return 200, {"choices": [{"text": "w4", "finish_reason": "stop", "token_ids": [4, 2], "stop_reason": None}]}

    with serving(reply) as url:
        tokenizer = other_tokenizer(tmp_path)
        server = ServerSampler(url, model="m", tokenizer=tokenizer)
        server.check_ready([asked("w5")])
        assert server.sample([asked("w5")], 1, 0) == [[Answer("w4")]]  # text alone
        assert bodies[0]["prompt"] == [5, 7]
        assert ServerSampler(url, model="m").sample([asked("w5")], 1, 0) == [[Answer("w4", "stop", (4, 2))]]
        assert bodies[1]["prompt"] == [9, 9]
        with pytest.raises(ValueError, match="`tokenizer` is for a server with another model, and `weight_sync` would"):
            ServerSampler(url, VLLMWeightSync(str(tmp_path)), tokenizer=tokenizer)


def test_a_server_is_a_member_like_any_other(tmp_path: Path, policy: RolloutPolicy) -> None:
    def reply(route: str, body: Any) -> tuple[int, Any]:
        if body is None:
            return 200, {"data": [{"id": "served"}]}
        text = "w4" if (body["model"], body["prompt"]) == ("served", [5, 7]) else "w8"
        return 200, {"choices": [{"text": text, "finish_reason": "stop"}]}

    with serving(reply) as url:
        server = ServerSampler(url, tokenizer=other_tokenizer(tmp_path / "tokenizer"))
        made = PooledSampler({"policy": TransformersSampler(GREEDY), "large": server}, own="policy")
        made.open(policy)
        (row,) = made.sample([asked("w5")], 2, 0)
        made.close()
    assert {answer.model: answer.text for answer in row}["large"] == "w4"


def test_prompts_are_rendered_again_with_their_tools_and_the_row_s_variables(tmp_path: Path) -> None:
    spec = other_tokenizer(tmp_path)
    spec.chat_template = "{{ messages[-1].content }}{% if tools %} {{ tools[0].name }}{% endif %} {{ style }}"
    (prompt,) = with_tokenizer([asked("w4", tools=({"name": "w6"},), template_kwargs={"style": "w8"})], spec.load())
    assert prompt.text == "w4 w6 w8"
    assert prompt.input_ids == (4, 6, 8)


def test_a_plain_prompt_begins_with_one_bos(tmp_path: Path) -> None:
    tokenizer: Any = SimpleNamespace(
        bos_token="<s>",
        encode=lambda text, add_special_tokens: [1] * add_special_tokens + [2] * text.count("<s>") + [5],
    )
    rendered = with_tokenizer([Prompt("w5", (9,)), Prompt("<s> w5", (9,))], tokenizer)
    assert [prompt.input_ids for prompt in rendered] == [(1, 5), (2, 5)]


def test_a_model_that_cannot_be_asked_says_so_before_a_round(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        FrozenSampler(str(tmp_path / "nowhere")).check_ready([asked("w5")])
    folder = stored(tmp_path / "plain", 1)
    (folder / "chat_template.jinja").unlink()
    members: dict[str, Sampler] = {"a": FrozenSampler(str(folder)), "b": Named("b")}
    with pytest.raises(
        ValueError, match=r"f:1: .*plain has no chat template, and the prompt has turns; give the sampler"
    ):
        PooledSampler(members).check_ready([asked("w5")])


def test_other_weights_or_another_template_are_another_identity(tmp_path: Path) -> None:
    folder = stored(tmp_path / "other", 1)
    first = PooledSampler({"a": FrozenSampler(str(folder)), "b": Named("b")}).identity()
    assert first["samplers"]["b"] == "Named"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    second = PooledSampler({"a": FrozenSampler(str(folder)), "b": Named("b")}).identity()
    assert first["samplers"]["a"] != second["samplers"]["a"]


def test_the_shipped_pool_is_named_by_its_path_where_a_sampler_stands() -> None:
    parser = ArgumentParser()
    parser.add_argument("--sampler", type=Sampler, sub_configs=True)
    config = Path(__file__).parents[4] / "configs" / "sampler" / "pool.yaml"
    made = parser.instantiate_classes(parser.parse_object({"sampler": str(config)})).sampler
    assert (made.own, list(made.samplers)) == ("policy", ["policy", "sft", "dpo"])
    assert {one.sampling for one in made.samplers.values()} == {SamplingSettings(0.8, max_new_tokens=20)}


@pytest.mark.slow
def test_it_is_made_from_a_config() -> None:
    parser = ArgumentParser()
    parser.add_argument("--sampler", type=Sampler)
    name = "lion_lightning.sampling."
    settings = {"sampling": {"temperature": 1.0, "max_new_tokens": 20}}
    samplers = {
        "policy": {"class_path": f"{name}TransformersSampler", "init_args": settings},
        "sft": {"class_path": f"{name}FrozenSampler", "init_args": {"model": "runs/sft/export", **settings}},
        "large": {
            "class_path": f"{name}ServerSampler",
            "init_args": {"url": "http://127.0.0.1:1", "tokenizer": {"path": "org/model"}},
        },
    }
    config = {"class_path": f"{name}PooledSampler", "init_args": {"own": "policy", "samplers": samplers}}
    made = parser.instantiate_classes(parser.parse_object({"sampler": config})).sampler
    assert made.own == "policy"
    assert [type(one) for one in made.samplers.values()] == [TransformersSampler, FrozenSampler, ServerSampler]
    assert made.samplers["large"].tokenizer == TokenizerSpec("org/model")
