"""Sampling from the policy itself: the right distribution, tokens and reasons, and no trace left behind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor
from typing_extensions import override

from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.types import Prompt
from tests import tiny
from tests.marks import slow

PROMPTS = [
    Prompt("", (5, 6, 7), where="f:1"),
    Prompt("", tuple(range(8, 20)), where="f:2"),
    Prompt("", (9,), where="f:3"),
]


def served(folder: Path, lora: bool = False, **changes: Any) -> RolloutPolicy:
    torch.manual_seed(0)
    spec = PolicySpec(config=tiny.config(**changes), lora=LoRASpec(r=4, dropout=0.1) if lora else None)
    policy = spec.build()
    if lora:
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
    return RolloutPolicy(policy, TokenizerSpec(str(tiny.tokenizer_folder(folder))).load())


def drawn(policy: RolloutPolicy, prompts: list[Prompt], n: int, seed: int = 0, size: int = 64, **settings: Any) -> Any:
    sampler = TransformersSampler(SamplingSettings(**{"temperature": 1.0, "max_new_tokens": 6, **settings}), size)
    sampler.open(policy)
    try:
        return sampler.sample(prompts, n, seed)
    finally:
        sampler.close()


DRAWS = 1000


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.5), *slow((5, 1.0))])
def test_a_padded_prompt_is_drawn_from_its_own_distribution(tmp_path: Path, top_k: int, top_p: float) -> None:
    policy = served(tmp_path)
    logps = policy.next_logps([prompt.input_ids for prompt in PROMPTS]) / 0.7  # temperature
    answers = drawn(policy, PROMPTS, DRAWS, size=20000, temperature=0.7, max_new_tokens=1, top_k=top_k, top_p=top_p)
    for row, given in zip(logps.softmax(-1), answers, strict=True):
        order = row.argsort(descending=True)
        before = row[order].cumsum(0) - row[order]
        kept = order[: top_k or None] if top_p == 1 else order[before < top_p]
        expected = torch.zeros_like(row).index_put((kept,), row[kept])
        expected /= expected.sum()
        counts = Counter(answer.token_ids[0] for answer in given)
        assert set(counts) <= set(kept.tolist())
        for token in kept[:3].tolist():
            spread = (DRAWS * expected[token] * (1 - expected[token])).sqrt()
            assert abs(counts[token] - DRAWS * expected[token]) < 4.5 * spread + 1


def test_near_zero_temperature_is_the_greedy_answer_of_the_prompt_alone(tmp_path: Path) -> None:
    policy = served(tmp_path)
    greedy = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=2)  # type: ignore[no-untyped-call]
    for prompt, given in zip(PROMPTS, drawn(policy, PROMPTS, 2, temperature=1e-4), strict=True):
        alone = policy.model.generate(torch.tensor([prompt.input_ids]), generation_config=greedy)
        expected = tuple(alone[0, len(prompt.input_ids) :].tolist())
        assert [answer.token_ids for answer in given] == [expected, expected]


def test_temperature_zero_is_greedy_and_takes_one_answer(tmp_path: Path) -> None:
    policy = served(tmp_path)
    greedy = [given[0].token_ids for given in drawn(policy, PROMPTS, 2, temperature=1e-4)]
    assert [given[0].token_ids for given in drawn(policy, PROMPTS, 1, temperature=0.0)] == greedy
    with pytest.raises(ValueError, match=r"sampling\.temperature is 0, so the 2 answers per prompt would be identical"):
        drawn(policy, PROMPTS, 2, temperature=0.0)


def test_ends_and_reasons(tmp_path: Path) -> None:
    policy = served(tmp_path)
    with torch.no_grad():
        policy.model.lm_head.weight[2] += 0.2
    flat = [answer for row in drawn(policy, PROMPTS, 40) for answer in row]
    assert {answer.finish_reason for answer in flat} == {"stop", "length"}
    for answer in flat:
        assert (answer.token_ids[-1] == 2) == (answer.finish_reason == "stop")
        assert 2 not in answer.token_ids[:-1]
        assert len(answer.token_ids) == 6 or answer.finish_reason == "stop"
        words = [f"w{token}" for token in answer.token_ids if token > 2]
        assert answer.text.split() == words


def test_stop_strings_cut_the_text_and_drop_the_tokens(tmp_path: Path) -> None:
    policy = served(tmp_path)
    plain = [answer for row in drawn(policy, PROMPTS, 20, seed=3) for answer in row]
    word = Counter(word for answer in plain for word in answer.text.split()[1:]).most_common(1)[0][0]
    flat = [answer for row in drawn(policy, PROMPTS, 20, seed=3, stop=(word,)) for answer in row]
    ended = [answer for answer in flat if answer.token_ids is None]
    assert ended
    assert all(answer.finish_reason == "stop" and word not in answer.text for answer in ended)


def test_seeds_decide_and_nothing_is_left_behind(tmp_path: Path) -> None:
    policy = served(tmp_path, lora=True)
    modes = [module.training for module in policy.policy.modules()]
    state = torch.get_rng_state()
    first = drawn(policy, PROMPTS, 4, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in policy.policy.modules()] == modes
    assert drawn(policy, PROMPTS, 4, seed=1) == first
    assert drawn(policy, PROMPTS, 4, seed=2) != first


def test_batches_hold_whole_prompts_long_ones_first(tmp_path: Path) -> None:
    policy = served(tmp_path)
    sizes: list[tuple[int, int]] = []
    policy.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    drawn(policy, PROMPTS, 3, size=4, max_new_tokens=1)
    assert sizes == [(3, 12), (3, 3), (3, 1)]


def test_a_batch_of_long_answers_shows_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As after ten seconds: a bar that waits for them shows nothing for a batch as short as this.
    monkeypatch.setattr("lion_lightning.sampling.transformers.tqdm", partial(tqdm, miniters=1, mininterval=0))
    monkeypatch.setattr("tqdm.std.time", count(0, 20).__next__)
    drawn(served(tmp_path), PROMPTS, 2)
    assert re.search(r"tokens of 6 answers:  50%\|[^|]*\| 3/6 \[", capsys.readouterr().err)


def test_a_prompt_without_room_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"f:2: the prompt and 60 new tokens need 72 positions, but the model has 64"):
        drawn(served(tmp_path), PROMPTS, 1, max_new_tokens=60)


# --- what engines are given


@pytest.mark.parametrize("tied", [True, False])
def test_the_written_folder_is_the_policy(tmp_path: Path, tied: bool) -> None:
    policy = served(tmp_path / "tokenizer", tie_word_embeddings=tied)
    policy.write(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin"))
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(file.keys())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(model(ids).logits, policy.model(ids).logits)
    assert model.generation_config.eos_token_id in (2, [2])
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_adapters_are_merged_in_a_copy(tmp_path: Path) -> None:
    policy = served(tmp_path, lora=True)
    before = {name: value.clone() for name, value in policy.policy.state_dict().items()}
    plain = PolicySpec(config=tiny.config()).build().causal_lm
    plain.load_state_dict(dict(policy.weights()))
    ids = torch.tensor([[3, 4, 5]])
    policy.policy.eval()
    assert torch.allclose(plain(ids).logits, policy.model(ids).logits, atol=1e-5)
    with policy.policy.adapters_off():
        assert not torch.allclose(plain(ids).logits, policy.model(ids).logits, atol=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in policy.policy.state_dict().items())


def test_the_digest_sees_one_weight_and_an_adapters(tmp_path: Path) -> None:
    policy = served(tmp_path, lora=True)
    digests = {policy.digest()}
    for part in ("embed_tokens", "lora_B"):
        parameter = next(value for name, value in policy.policy.named_parameters() if part in name)
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        digests.add(policy.digest())
    assert len(digests) == 3


def test_next_logps_are_a_plain_forwards(tmp_path: Path) -> None:
    policy = served(tmp_path)
    ids = [[3, 4, 5], [6, 7]]
    for row, prompt in zip(policy.next_logps(ids), ids, strict=True):
        plain = policy.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert torch.allclose(row, plain, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, float("inf"), float("nan"), -1.0])
def test_a_temperature_that_overflows_in_fp32_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"sampling.temperature is .*; set a number of at least 1e-5, or 0"):
        SamplingSettings(temperature=temperature)


class NextOf(LogitsProcessor):
    """Forces each answer to begin with a token of its row and go on with that plus one."""

    def __init__(self, firsts: list[int], start: int) -> None:
        self.firsts, self.start = torch.tensor(firsts), start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = self.firsts if input_ids.shape[1] == self.start else input_ids[:, -1] + 1
        return torch.full_like(scores, float("-inf")).scatter(1, forced[:, None], 0.0)


class CountingSampler(TransformersSampler):
    """The answers to a prompt begin with its length, and the length plus ten."""

    @override
    def processors(self, prompts: Sequence[Prompt], n: int, start: int) -> list[LogitsProcessor]:
        return [NextOf([len(prompt.input_ids) + 10 * number for prompt in prompts for number in range(n)], start)]


def test_a_subclass_has_logits_processors_that_know_the_prompt_of_each_row(tmp_path: Path) -> None:
    sampler = CountingSampler(SamplingSettings(temperature=1.0, max_new_tokens=3))
    sampler.open(served(tmp_path))
    answers = sampler.sample(PROMPTS, 2, seed=0)
    sampler.close()
    given = [[answer.token_ids for answer in group] for group in answers]
    # token 2 ends a turn, which no processor delays
    assert given == [[(3, 4, 5), (13, 14, 15)], [(12, 13, 14), (22, 23, 24)], [(1, 2), (11, 12, 13)]]
    with pytest.raises(ValueError, match="CountingSampler: its logits processors change the distribution"):
        sampler.check_distribution()
