"""Online training on trees of a round: each answer of a prompt once, in all of its pairs or in a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.references.scoring import score
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import Round
from lion_lightning.types import PackedBatch
from tests.integration.online import AllPairsOnline, Online, Watch

pytestmark = pytest.mark.filterwarnings("ignore")

Tokens = tuple[int, ...]
Answers = dict[Tokens, float]
"""Answers to a prompt by their tokens, with their scores."""


class Batches(Watch):
    """Keeps the batches of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: dict[int, list[PackedBatch]] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        self.batches.setdefault(trainer.current_epoch, []).append(batch)


def tokens(batch: PackedBatch, segment: int) -> Tokens:
    part = batch.segments[segment]
    return tuple(batch.input_ids[part.start : part.stop].tolist())


def trees(batches: list[PackedBatch]) -> Iterator[tuple[Tokens, list[tuple[Tokens, float]]]]:
    """Prompts with their answers and scores, as they come in batches."""
    for batch in batches:
        answers: dict[int, list[tuple[Tokens, float]]] = {}
        for segment, value in zip(batch.answers, batch.values, strict=True):
            answers.setdefault(batch.segments[segment].parent, []).append((tokens(batch, segment), value))
        for root, found in answers.items():
            yield tokens(batch, root), found


def different_pairs(rollout: Rollout) -> set[tuple[Tokens, Tokens]]:
    """Pairs of a rollout whose answers differ in tokens and score, by their tokens."""
    found = set()
    for chosen, rejected in rollout.pairs:
        sides = (rollout.answers[chosen].token_ids or (), rollout.answers[rejected].token_ids or ())
        if sides[0] != sides[1] and rollout.scores[chosen] != rollout.scores[rejected]:
            found.add(sides)
    return found


@pytest.fixture(scope="module")
def all_pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Round, list[PackedBatch], Any]:
    """A round, the batches that it is trained in, and the module."""
    online, watch = AllPairsOnline(tmp_path_factory.mktemp("all")), Batches()
    module = online.module(kl_batches=100)
    online.fit("run", watch=watch, module=module, max_epochs=2, every=1)
    return online.rounds("run")[1], watch.batches[1], module


def test_all_pairs_of_a_prompt_are_trained_in_one_tree_with_each_answer_once(all_pairs: Any) -> None:
    made, batches, _ = all_pairs
    wanted = {rollout.prompt.input_ids: different_pairs(rollout) for rollout in made.rollouts if not rollout.monitor}
    assert max(map(len, wanted.values())) == 6  # four answers
    found: dict[Tokens, set[tuple[Tokens, Tokens]]] = {}
    for batch in batches:
        for chosen, rejected in batch.pairs:
            first, second = batch.answers[chosen], batch.answers[rejected]
            prompt = tokens(batch, batch.segments[first].parent)
            found.setdefault(prompt, set()).add((tokens(batch, first), tokens(batch, second)))
    assert found == {prompt: pairs for prompt, pairs in wanted.items() if pairs}
    prompts = Counter(prompt for prompt, _ in trees(batches))
    assert set(prompts.values()) == {1}
    for prompt, answers in trees(batches):
        own = [side for pair in wanted[prompt] for side in pair]
        assert Counter(tokens for tokens, _ in answers) == Counter(set(own))


def test_answers_of_a_tree_have_their_scores(all_pairs: Any) -> None:
    made, batches, _ = all_pairs
    scores: dict[Tokens, Answers] = {}
    for rollout in made.rollouts:
        if not rollout.monitor:
            own = zip(rollout.answers, rollout.scores, strict=True)
            scores[rollout.prompt.input_ids] = {answer.token_ids or (): score for answer, score in own}
    for prompt, answers in trees(batches):
        assert dict(answers) == {tokens: scores[prompt][tokens] for tokens, _ in answers}


def logp(model: Any, prompt: Tokens, answer: Tokens) -> float:
    logps = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    return float(logps.gather(1, torch.tensor(answer)[:, None]).sum())


def mean_log_ratio(folder: Path, start: Path, batches: list[PackedBatch]) -> float:
    """Of the policy at the end of the first epoch to the start, over the answers of batches, each once."""
    policy, first = (AutoModelForCausalLM.from_pretrained(start) for _ in range(2))
    checkpoint = sorted(folder.glob("epoch=0*.ckpt"), key=lambda path: path.stat().st_mtime)[-1]
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    policy.load_state_dict({k.removeprefix("policy.model."): v for k, v in state.items() if k.startswith("policy.")})
    with torch.no_grad():
        ratios = []
        for prompt, answers in trees(batches):
            ratios += [logp(policy, prompt, ids) - logp(first, prompt, ids) for ids, _ in answers]
    return sum(ratios) / len(ratios)


def test_kl_counts_an_answer_of_several_pairs_once(all_pairs: Any) -> None:
    made, batches, _ = all_pairs
    folder = made.path.parents[1]
    wanted = mean_log_ratio(folder, folder.parent / "start", batches)
    assert wanted != 0
    assert made.summary["metrics"]["on_policy/kl"] == pytest.approx(wanted, abs=1e-5)


class Once(OnPolicySampling):
    def should_sample(self, epoch: int) -> bool:
        return epoch == 0


def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Passes of a model over answers that have no reference log-probs, from now on."""
    passes: list[str] = []

    def noted(store: Any, model: Any, *more: Any) -> None:
        passes.append(type(model).__name__)
        score(store, model, *more)

    monkeypatch.setattr("lion_lightning.references.cached.score", noted)
    return passes


@pytest.mark.parametrize("kind", [AllPairsOnline])
def test_a_second_epoch_on_the_same_round_scores_no_answer_anew(
    kind: type[Online], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online, watch, passes = kind(tmp_path), Batches(), scored(monkeypatch)
    given = online.sampling()
    sampling = Once(given.sampler, given.judge, **{name: getattr(given, name) for name in ("pairing", *SETTINGS)})
    online.fit("run", sampling, watch, max_epochs=2)
    assert len(passes) == 1
    assert len(online.rounds("run")) == 1
    first, second = ({ids for ids, _ in trees(watch.batches[epoch])} for epoch in (0, 1))
    assert first == second


SETTINGS = ("num_samples", "monitor_prompts", "chunk_size", "keep_unfinished")
