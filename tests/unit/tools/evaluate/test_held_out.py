"""Held-out losses and rewards against plain forwards of transformers, and what is said of data that does not fit."""

from __future__ import annotations

import json
import logging
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lion_lightning import PolicySpec, Source, TokenizerSpec
from lion_lightning.data.formats.pairing import AllPairs
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.tools.demo import make_tokenizer
from lion_lightning.tools.evaluate.held_out import conversation_loss, preference_rewards, reward_model_accuracy
from lion_lightning.tools.evaluate.run import Evaluation, evaluate
from tests import tiny

TALKS = (("w3 w4", "w5 w6 w7"), ("w8", "w9"), ("w10 w11 w12", "w13 w14 w15 w16 w17"))
PAIRS = (("w3 w4", "w5 w6 w7", "w8"), ("w9", "w10", "w11 w12 w13"), ("w20", "w21 w22", "w23 w24"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one tokenizer, conversations, and pairs."""
    made = tmp_path_factory.mktemp("held")
    for seed, name in enumerate(("model", "reference")):
        tiny.tokenizer_folder(made / name)
        torch.manual_seed(seed)
        policy = PolicySpec(config=tiny.shallow()).build()
        RolloutPolicy(policy, TokenizerSpec(str(made / name)).load()).write(made / name)
    write(made / "talks.jsonl", [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in TALKS])
    write(
        made / "pairs.jsonl",
        [
            {"prompt": [turn("user", p)], "chosen": [turn("assistant", c)], "rejected": [turn("assistant", r)]}
            for p, c, r in PAIRS
        ],
    )
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def source(folder: Path, file: str, **options: Any) -> Source:
    return Source(str(folder / file), **options)


def encoded(folder: Path, question: str, answer: str) -> tuple[Tensor, int]:
    """Ids of a chat, and how many at its end are trained: the answer's words and the token that ends the turn."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]), len(answer.split()) + 1


def plain(folder: Path, name: str, chats: list[tuple[str, str]]) -> list[Tensor]:
    """Log-probs ``(tokens, vocabulary)`` at the places that predict the trained tokens: one padded forward."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    ids = [encoded(folder, *chat) for chat in chats]
    rows = [row for row, _ in ids]
    with torch.no_grad():
        logits = model(
            input_ids=pad_sequence(rows, batch_first=True),
            attention_mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        ).logits.log_softmax(-1)
    return [logits[number, len(row) - count - 1 : len(row) - 1] for number, (row, count) in enumerate(ids)]


def targets(folder: Path, chats: list[tuple[str, str]]) -> list[Tensor]:
    return [row[-count:] for row, count in (encoded(folder, *chat) for chat in chats)]


def sums(folder: Path, name: str, chats: list[tuple[str, str]]) -> Tensor:
    """Log-prob of each answer."""
    both = zip(plain(folder, name, chats), targets(folder, chats), strict=True)
    return torch.stack([logps.gather(1, wanted[:, None]).sum() for logps, wanted in both])


def test_the_loss_is_the_mean_over_all_trained_tokens(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = conversation_loss(str(folder / "model"), [source(folder, "talks.jsonl")], max_length=24)
    chats = list(TALKS)
    logps, wanted = torch.cat(plain(folder, "model", chats)), torch.cat(targets(folder, chats))
    assert len(wanted) == 3 + 1 + 5 + 3  # words, and an end of turn each
    loss = -logps.gather(1, wanted[:, None]).mean()
    assert found["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert found["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((logps.argmax(1) == wanted).float().mean().item())
    assert (found["conversations"], found["cut"], found["left_out"]) == (3, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_rewards_are_scaled_log_ratios(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, reference = str(folder / "model"), str(folder / "reference")
    found = preference_rewards(model, [source(folder, "pairs.jsonl")], reference, beta=0.3, max_length=24)
    sides = [[(prompt, chosen) for prompt, chosen, _ in PAIRS], [(prompt, other) for prompt, _, other in PAIRS]]
    chosen, rejected = (0.3 * (sums(folder, "model", side) - sums(folder, "reference", side)) for side in sides)
    margins = chosen - rejected
    assert found["chosen"] == pytest.approx(chosen.mean().item(), abs=1e-5)
    assert found["rejected"] == pytest.approx(rejected.mean().item(), abs=1e-5)
    assert found["margin"]["estimate"] == pytest.approx(margins.mean().item(), abs=1e-5)
    assert found["accuracy"]["estimate"] == pytest.approx((margins > 0).float().mean().item())
    assert 0 < found["accuracy"]["estimate"] < 1, "the models should disagree with some pairs"
    assert found["accuracy"]["count"] == found["pairs"] == 3
    assert found["loss"] == pytest.approx(-torch.nn.functional.logsigmoid(margins).mean().item(), abs=1e-5)
    assert list(tmp_path.iterdir()) == []


def test_a_model_measured_against_itself_wins_half(folder: Path) -> None:
    model = str(folder / "model")
    found = preference_rewards(model, [source(folder, "pairs.jsonl")], model, max_length=24)
    assert found["accuracy"]["estimate"] == 0.5
    assert found["margin"]["low"] == found["margin"]["high"] == 0.0


RANKED = {"w3 w4": ("w5 w6 w7", "w8", "w9 w10"), "w11": ("w12", "w13 w14", "w15")}
"""Answers to each prompt, from best to worst."""


@pytest.fixture(scope="module")
def ranked(folder: Path) -> list[Source]:
    rows = []
    for prompt, answers in RANKED.items():
        asked = [turn("user", prompt)]
        sides = [[turn("assistant", answer)] for answer in answers]
        rows.append({"prompt": asked, "answers": sides, "scores": [2.0, 1.0, 0.0]})
    write(folder / "ranked.jsonl", rows)
    return [source(folder, "ranked.jsonl")]


@pytest.fixture(scope="module")
def reward_model(folder: Path) -> str:
    """A random reward model with the tokenizer of the others; ids below 3 are special, so that padding ends nothing."""
    torch.manual_seed(5)
    tiny.tokenizer_folder(folder / "rewards")
    spec = RewardModelSpec(config=tiny.shallow())
    spec.build(TokenizerSpec(str(folder / "rewards")).load()).causal_lm.save_pretrained(folder / "rewards")
    return str(folder / "rewards")


def margins_of(rewards: dict[tuple[str, str], float]) -> list[float]:
    """Differences of rewards of all pairs, a better answer minus a worse one."""
    return [
        rewards[prompt, better] - rewards[prompt, worse]
        for prompt, answers in RANKED.items()
        for better, worse in combinations(answers, 2)
    ]


def test_a_reward_model_is_measured_on_all_pairs_of_ranked_answers(
    folder: Path, ranked: list[Source], reward_model: str
) -> None:
    found = reward_model_accuracy(reward_model, ranked, max_length=24, pairing=AllPairs())
    model: Any = AutoModelForSequenceClassification.from_pretrained(reward_model)
    rewards = {}
    for prompt, answers in RANKED.items():
        for answer in answers:
            ids, _ = encoded(folder, prompt, answer)
            rewards[prompt, answer] = model(ids[None]).logits.item()
    margins = margins_of(rewards)
    assert found["margin"]["estimate"] == pytest.approx(sum(margins) / 6, abs=1e-5)
    assert found["accuracy"]["estimate"] == pytest.approx(sum(margin > 0 for margin in margins) / 6)
    assert (found["accuracy"]["count"], found["pairs"], found["prompts"]) == (6, 6, 2)
    # The interval is over the two prompts: its ends are their own shares.
    shares = sorted(sum(margin > 0 for margin in three) / 3 for three in (margins[:3], margins[3:]))
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == pytest.approx(shares)
    assert found["loss"] == pytest.approx(
        -torch.nn.functional.logsigmoid(torch.tensor(margins)).mean().item(), abs=1e-5
    )


def test_rewards_of_a_policy_on_ranked_answers_compute_each_answer_once(folder: Path, ranked: list[Source]) -> None:
    model, reference = str(folder / "model"), str(folder / "reference")
    found = preference_rewards(model, ranked, reference, beta=0.3, max_length=24, pairing=AllPairs())
    chats = [(prompt, answer) for prompt, answers in RANKED.items() for answer in answers]
    values = 0.3 * (sums(folder, "model", chats) - sums(folder, "reference", chats))
    margins = margins_of(dict(zip(chats, values.tolist(), strict=True)))
    assert found["margin"]["estimate"] == pytest.approx(sum(margins) / 6, abs=1e-5)
    best_and_worst = preference_rewards(model, ranked, reference, beta=0.3, max_length=24)
    assert best_and_worst["margin"]["estimate"] == pytest.approx((margins[1] + margins[4]) / 2, abs=1e-5)
    assert (best_and_worst["pairs"], best_and_worst["prompts"]) == (2, 2)


def test_a_reward_model_takes_preferences_and_nothing_else(
    folder: Path, ranked: list[Source], reward_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="rewards is a reward model, which writes no answers: it takes preferences"):
        Evaluation(reward_model, tmp_path, conversations=[source(folder, "talks.jsonl")]).validate()
    results = evaluate(Evaluation(reward_model, tmp_path, preferences=ranked, reference="unused", max_length=24))
    assert results["rewards"]["pairs"] == 2
    assert "reference: unused is not used; a reward model has rewards of its own" in caplog.text
    with pytest.raises(ValueError, match="is a reward model, which writes no answers; give a causal LM"):
        conversation_loss(reward_model, [source(folder, "talks.jsonl")], max_length=24)


def test_cut_and_doubled_conversations_are_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twice = [source(folder, "talks.jsonl"), source(folder, "talks.jsonl", name="again")]
    caplog.set_level(logging.INFO, "lion_lightning")
    longest = len(encoded(folder, *TALKS[2])[0])
    found = conversation_loss(str(folder / "model"), twice, max_length=longest - 2)
    assert (found["conversations"], found["cut"], found["left_out"]) == (3, 1, 3)
    # The last of the talks has lost its last word and the end of its turn.
    logps, wanted = plain(folder, "model", list(TALKS)), targets(folder, list(TALKS))
    kept = [row.gather(1, ids[:, None]) for row, ids in zip(logps, wanted, strict=True)]
    kept[2] = kept[2][:-2]
    assert found["loss"] == pytest.approx(-torch.cat(kept).mean().item(), abs=1e-5)
    assert "evaluated on" in caplog.text
    assert "duplicate: 3" in caplog.text
    assert "train" not in caplog.text


def test_a_model_of_few_positions_is_told_with_the_fix(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"max_length is 65, but .* has 64 positions; set max_length to 64"):
        conversation_loss(str(folder / "model"), [source(folder, "talks.jsonl")], max_length=65)


def test_a_reference_of_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^reference: .* has another tokenizer than .*give the model that training"):
        preference_rewards(str(folder / "model"), [source(folder, "pairs.jsonl")], str(tmp_path))
