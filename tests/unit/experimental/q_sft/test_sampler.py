"""What the sampler of Q-SFT draws from, token by token; and how good that is on a task small enough for tables."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning.experimental.q_sft.log_ratios import Head, max_log_ratio
from lion_lightning.experimental.q_sft.sampler import BehaviourTimesValue, QSFTSampler
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.types import Prompt
from tests import tiny

PROMPTS = [Prompt("", (5, 6, 7)), Prompt("", tuple(range(8, 20))), Prompt("", (9,))]


def stored(folder: Path, seed: int, **changes: Any) -> str:
    torch.manual_seed(seed)
    PolicySpec(config=tiny.config(**changes)).build().causal_lm.save_pretrained(folder)
    return str(tiny.tokenizer_folder(folder))


def opened(folder: Path, beta: float = 5.0, changes: dict[str, Any] | None = None, **options: Any) -> QSFTSampler:
    """A sampler of two models that differ."""
    policy = stored(folder / "policy", 0, **changes or {})
    settings = SamplingSettings(temperature=1.0, max_new_tokens=6)
    sampler = QSFTSampler(stored(folder / "behaviour", 1, **changes or {}), beta, sampling=settings, **options)
    sampler.open(RolloutPolicy.load(policy, TokenizerSpec(policy).load()))
    return sampler


def directly(sampler: QSFTSampler, ids: Tensor) -> Tensor:
    """``(vocabulary,)`` probabilities of the next token of one sequence, by both models without cache and padding."""
    policy, behaviour = sampler._opened.model, sampler._model
    assert behaviour is not None
    value, log_behaviour = (
        model(ids[None], use_cache=False).logits[0, -1].log_softmax(-1) for model in (policy, behaviour)
    )
    weight = (log_behaviour + sampler.beta * value.exp()).exp()
    weight[log_behaviour < math.log(sampler.floor)] = 0
    return torch.as_tensor(weight / weight.sum())


@pytest.mark.parametrize("changes", [{}, tiny.LEARNED_POSITIONS], ids=["llama", "gpt2"])
def test_each_token_of_a_padded_batch_is_drawn_from_behaviour_times_exp_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    steps: list[tuple[Tensor, Tensor]] = []
    call = BehaviourTimesValue.__call__

    def record(self: BehaviourTimesValue, input_ids: Tensor, scores: Tensor) -> Tensor:
        steps.append((input_ids, call(self, input_ids, scores)))
        return steps[-1][1]

    monkeypatch.setattr(BehaviourTimesValue, "__call__", record)
    sampler = opened(tmp_path, changes=changes, floor=0.002)
    answers = sampler.sample(PROMPTS, 2, 0)
    assert [len(row) for row in answers] == [2, 2, 2]
    longest = max(len(prompt.input_ids) for prompt in PROMPTS)
    order = sorted(range(3), key=lambda place: -len(PROMPTS[place].input_ids))
    compared = 0
    for ids, scores in steps:
        for row in range(6):  # two answers to each prompt, the longest first
            generated = ids[row, longest:].tolist()
            if 2 not in generated:  # it has not ended
                sequence = torch.tensor([*PROMPTS[order[row // 2]].input_ids, *generated])
                with torch.no_grad():
                    expected = directly(sampler, sequence)
                torch.testing.assert_close(scores[row].softmax(-1), expected, rtol=1e-4, atol=1e-5)
                compared += 1
    assert compared > 20
    assert all(answer.token_ids is not None for row in answers for answer in row)


def test_where_no_token_has_the_floor_the_most_probable_one_is_drawn(tmp_path: Path) -> None:
    sampler = opened(tmp_path, floor=0.999)
    assert sampler._model is not None
    expected = int(sampler._model(torch.tensor([PROMPTS[0].input_ids])).logits[0, -1].argmax())
    for answer in sampler.sample(PROMPTS[:1], 3, 0)[0]:
        assert answer.token_ids is not None
        assert answer.token_ids[0] == expected
    sampler.close()
    with pytest.raises(RuntimeError, match="call open"):
        sampler.sample(PROMPTS, 1, 0)


def test_what_is_out_of_range_or_of_another_vocabulary_is_one_line(tmp_path: Path) -> None:
    for beta, floor, line in (
        (0.0, 0.1, "QSFTSampler: beta is 0.0; give a number above 0"),
        (5.0, 1.0, "QSFTSampler: floor is 1.0; give a number between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=line):
            QSFTSampler("behaviour", beta, floor)
    sampler = QSFTSampler(stored(tmp_path / "behaviour", 1, vocab_size=103), 5.0)
    policy = stored(tmp_path / "policy", 0)
    with pytest.raises(ValueError, match="has 103 tokens and the policy 101"):
        sampler.open(RolloutPolicy.load(policy, TokenizerSpec(policy).load()))
    with pytest.raises(ValueError, match="its logits processors change the distribution"):
        sampler.check_distribution()


# --- the two-step task, in tables: left or right, then a or b

BEHAVIOUR = {"": [0.5, 0.5], "left": [0.5, 0.5], "right": [0.9, 0.1]}
REWARDS = {"left": [0.2, 0.4], "right": [0.0, 1.0]}


def heads(state: str, values: list[float]) -> tuple[Head, Head]:
    """The optimum under the dummy rest, behaviour times value, and the behaviour; the dummy is the third token."""
    behaviour = [*BEHAVIOUR[state], 0.0]
    learned = [p * y for p, y in zip(behaviour, values, strict=False)]
    tables = ([*learned, 1 - sum(learned)], behaviour)
    one, other = (Head(torch.ones(1, 1), torch.tensor(table).log().clamp(min=-99)[:, None]) for table in tables)
    return one, other


def drawn(state: str, values: list[float], beta: float) -> list[float]:
    """Probabilities of the two actions, by the processor of the sampler."""
    learned, behaviour = (head.weight.T for head in heads(state, values))

    class Model:
        device = "cpu"

        def forward(self, **_: Any) -> Any:
            return SimpleNamespace(logits=behaviour[None], past_key_values=None)

        __call__ = forward

    model: Any = Model()
    processor = BehaviourTimesValue(model, torch.ones(1, 1, dtype=torch.int64), beta, 0.01)
    chosen: list[float] = processor(torch.zeros(1, 1, dtype=torch.int64), learned)[0, :2].softmax(-1).tolist()
    return chosen


def test_extraction_finds_the_way_that_was_never_walked_as_a_whole_if_beta_is_large_enough() -> None:
    first = [max_log_ratio(*heads(way, REWARDS[way]), 0.01).exp().item() for way in ("left", "right")]
    assert first == pytest.approx([0.4, 1.0])  # the best of what follows
    behaviour_return = 0.5 * 0.3 + 0.5 * 0.1
    returns = []
    for beta in (5, 10, 20, 30, 50, 100):
        ways = drawn("", first, beta)
        ends = [drawn(way, REWARDS[way], beta) for way in ("left", "right")]
        values = [
            sum(p * r for p, r in zip(end, REWARDS[way], strict=True)) for end, way in zip(ends, REWARDS, strict=True)
        ]
        returns.append(sum(p * value for p, value in zip(ways, values, strict=True)))
    assert returns == pytest.approx([0.1858, 0.2374, 0.4507, 0.6905, 0.9428, 0.9996], abs=1e-4)
    assert returns[0] < behaviour_return == pytest.approx(0.2)  # a small beta does worse than the behaviour
