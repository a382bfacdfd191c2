"""Online training on trees of a round: each answer of a prompt once, in all of its pairs or in a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoModelForCausalLM

from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.data.formats.pairing import AllPairs
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.references.scoring import score
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import Round
from lion_lightning.types import Answer, PackedBatch
from tests.integration.online import AllPairsOnline, GroupOnline, Judge, Online, Sampler, Watch
from tests.marks import exhaustive

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


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> tuple[Round, list[PackedBatch], Any]:
    """A round, the batches that it is trained in, and the module."""
    online, watch = GroupOnline(tmp_path_factory.mktemp("groups")), Batches()
    module = online.module(kl_batches=100)
    online.fit("run", watch=watch, module=module, max_epochs=2, every=1)
    return online.rounds("run")[1], watch.batches[1], module


def test_all_usable_answers_to_a_prompt_are_a_group_with_their_scores(groups: Any) -> None:
    made, batches, _ = groups
    wanted = {}
    for rollout in made.rollouts:
        own = [(rollout.answers[place].token_ids, rollout.scores[place]) for place in rollout.usable]
        if len({score for _, score in own}) > 1:
            wanted[rollout.prompt.input_ids] = Counter(own)
    assert len(wanted) > 5
    assert {prompt: Counter(answers) for prompt, answers in trees(batches)} == wanted
    assert not any(batch.pairs for batch in batches)
    assert not any(rollout.pairs for rollout in made.rollouts)


def test_a_round_for_groups_logs_groups_and_the_share_that_is_trained(groups: Any) -> None:
    made, batches, module = groups
    metrics = made.summary["metrics"]
    assert (made.items, made.num_pairs, metrics["on_policy/groups"]) == ("groups", 0, 15)
    assert metrics["on_policy/groups_kept"] == sum(1 for _ in trees(batches)) / 15
    assert "on_policy/pairs" not in module.trainer.callback_metrics
    logged = float(module.trainer.callback_metrics["on_policy/groups_kept"])
    assert logged == pytest.approx(metrics["on_policy/groups_kept"])
    assert made.metadata["pairing"] is None


def test_kl_of_groups_is_over_all_of_their_answers(groups: Any) -> None:
    made, batches, _ = groups
    folder = made.path.parents[1]
    wanted = mean_log_ratio(folder, folder.parent / "start", batches)
    assert made.summary["metrics"]["on_policy/kl"] == pytest.approx(wanted, abs=1e-5)


class Mixed:
    """One answer of each kind, the unfinished one with the best score."""

    def sample(self, prompts: Any, n: int, seed: int) -> Any:
        return [[Answer("w90", "length"), Answer("w50"), Answer("  "), Answer("w40")][:n] for _ in prompts]


def test_unfinished_and_empty_answers_are_in_no_group(tmp_path: Path) -> None:
    online, watch = GroupOnline(tmp_path), Batches()
    online.fit("run", online.sampling(Mixed(), keep_unfinished=False), watch, max_epochs=1)
    (made,) = online.rounds("run")
    assert {rollout.usable for rollout in made.rollouts if not rollout.monitor} == {(1, 3)}
    assert {tuple(answers) for _, answers in trees(watch.batches[0])} == {(((50, 2), 50.0), ((40, 2), 40.0))}


class Tied(Judge):
    """The same score for all answers, except to the first prompts."""

    def __init__(self, different: int = 0) -> None:
        super().__init__()
        self.different = different

    def score(self, prompts: Any, answers: Any) -> Any:
        rows = super().score(prompts, answers)
        first = [prompt.row["row"] < self.different for prompt in prompts]
        return [row if own else [1.0] * len(row) for row, own in zip(rows, first, strict=True)]


def test_a_round_without_groups_is_an_error_that_says_what_to_change(tmp_path: Path) -> None:
    online = GroupOnline(tmp_path)
    with pytest.raises(ValueError, match=r"round 0 .* gives no group to train on: 30 groups of answers") as error:
        online.fit("run", online.sampling(judge=Tied()), max_epochs=1)
    assert "scores all equal" in str(error.value)
    assert "num_samples" in str(error.value)
    assert "min_margin" not in str(error.value)


@pytest.mark.slow
def test_equal_groups_that_are_kept_are_counted_and_all_of_them_are_an_error(tmp_path: Path) -> None:
    """30 prompts; rows 0 to 11 may have other scores, and are monitored or not."""
    online = GroupOnline(tmp_path)
    online.fit("kept", online.sampling(judge=Tied(different=12)), data=online.data(keep_equal=True), max_epochs=1)
    (made,) = online.rounds("kept")
    tied = [rollout.prompt.row["row"] >= 12 for rollout in made.rollouts if not rollout.monitor]
    assert made.summary["report"]["prompts"] == 30
    assert made.summary["report"]["equal"] == made.summary["metrics"]["on_policy/groups_equal"] == sum(tied)
    words = (
        r"round 0 .* \(the scores of each of the 30 groups that data.keep_equal keeps are equal, and PlackettLuceLoss"
    )
    with pytest.raises(ValueError, match=words):
        online.fit("run", online.sampling(judge=Tied()), data=online.data(keep_equal=True), max_epochs=1)
    judge = Tied(different=12)  # another setting of the same judge: the round that gave nothing is made again
    online.fit("run", online.sampling(judge=judge), data=online.data(keep_equal=True), max_epochs=1)
    assert len(judge.scored) == 34


@pytest.mark.slow
def test_few_groups_of_different_scores_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    online = GroupOnline(tmp_path)
    online.fit("run", online.sampling(judge=Tied(different=12)), max_epochs=1)
    assert "are left out as ties or equal answers" in caplog.text


class OwnPairs(OnPolicySampling):
    def make_pairs(self, prompt: Any, answers: Any, scores: Any) -> list[tuple[int, int]]:
        return [(0, 1)]


def test_what_makes_pairs_is_refused_for_groups(tmp_path: Path) -> None:
    online = GroupOnline(tmp_path)
    with pytest.raises(MisconfigurationException, match="remove pairing of OnPolicySampling"):
        online.fit("run", online.sampling(pairing=AllPairs()))
    with pytest.raises(MisconfigurationException, match="remove make_pairs of OnPolicySampling"):
        online.fit("run", OwnPairs(Sampler(), Judge()))


@pytest.mark.parametrize(
    ("kind", "other", "said"),
    [
        (Online, GroupOnline, "OnlineDPOModule trains on pairs, and OnPolicyGroupDataModule takes groups of a round"),
        (GroupOnline, Online, "OnlineGroupModule trains on groups, and OnPolicyDataModule takes pairs of a round"),
    ],
)
def test_a_module_and_data_that_do_not_fit_are_named(
    kind: type[Online], other: type[Online], said: str, tmp_path: Path
) -> None:
    online = kind(tmp_path)
    online.data_class = other.data_class
    with pytest.raises(MisconfigurationException, match=f"{said}; use lion_lightning.{kind.data_class.__name__}"):
        online.fit("run")


@pytest.mark.exhaustive  # test_online.py has adapters on pairs, and tests/distributed on groups
def test_adapters_are_trained_on_groups(tmp_path: Path) -> None:
    online = GroupOnline(tmp_path)
    policy = PolicySpec(path=str(online.start), lora=LoRASpec(r=4))
    online.fit("run", module=online.module(policy=policy, optimizer=lambda g: torch.optim.AdamW(g, lr=3e-2)))
    rounds = online.rounds("run")
    assert len({made.metadata["policy"] for made in rounds}) == 3
    assert rounds[2].summary["metrics"]["on_policy/kl"] > 1e-3


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


@pytest.mark.parametrize("kind", [GroupOnline, *exhaustive(AllPairsOnline)])
def test_a_second_epoch_on_the_same_round_scores_no_answer_anew(
    kind: type[Online], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LION_CACHE", str(tmp_path / "cache"))  # another objective's run has the same answers
    online, watch, passes = kind(tmp_path), Batches(), scored(monkeypatch)
    given = online.sampling()
    settings = ("pairing", "num_samples", "monitor_prompts", "chunk_size", "keep_unfinished")
    sampling = Once(given.sampler, given.judge, **{name: getattr(given, name) for name in settings})
    online.fit("run", sampling, watch, max_epochs=2)
    assert len(passes) == 1
    assert len(online.rounds("run")) == 1
    first, second = ({ids for ids, _ in trees(watch.batches[epoch])} for epoch in (0, 1))
    assert first == second
