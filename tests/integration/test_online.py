"""Online DPO: each epoch trains on pairs that the policy has just made, and what disturbs that is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoModelForCausalLM

from lion_lightning import (
    DPOModule,
    FrozenReference,
    OnlineDPOModule,
    OnPolicyDataModule,
    PreferenceDataModule,
    RefreshedReference,
    Source,
    TokenizerSpec,
)
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.rollouts.prompts.plan import share_out
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.sampling.base import EngineError
from lion_lightning.types import Answer, Prompt
from tests.integration.online import EveryOther, Judge, KilledError, Online, Sampler, Watch, pairs_of
from tests.marks import exhaustive, slow

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def online(tmp_path: Path) -> Online:
    return Online(tmp_path)


class Standard:
    """A run of three rounds, at which several tests look."""

    def __init__(self, folder: Path) -> None:
        self.online, self.sampler, self.watch = Online(folder), Sampler(), Watch()
        self.module = self.online.module()
        self.end = self.online.fit("run", self.online.sampling(self.sampler), self.watch, self.module)
        self.rounds = self.online.rounds("run")


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Standard:
    return Standard(tmp_path_factory.mktemp("standard"))


def test_every_epoch_trains_on_its_own_round_the_first_one_too(standard: Standard) -> None:
    rounds = standard.rounds
    assert [made.number for made in rounds] == [0, 1, 2]
    for made in rounds:
        assert standard.watch.trained[made.number] == pairs_of(made)
        assert len(pairs_of(made)) > 10
    policies = [made.metadata["policy"] for made in rounds]
    assert len(set(policies)) == 3


@pytest.mark.exhaustive
def test_every_epoch_trains_on_its_own_round_with_workers_too(online: Online) -> None:
    watch = Watch()
    online.fit("run", watch=watch, data=online.data(num_workers=2))
    assert [watch.trained[made.number] == pairs_of(made) for made in online.rounds("run")] == [True, True, True]


def test_no_prompt_is_asked_twice_and_monitor_prompts_are_never_trained_on(standard: Standard) -> None:
    sampler, rounds = standard.sampler, standard.rounds
    asked = [r.prompt.question for made in rounds for r in made.rollouts if not r.monitor]
    assert len(asked) == len(set(asked)) == 30
    watched = [[r.prompt.question for r in made.rollouts if r.monitor] for made in rounds]
    assert watched[0] == watched[1] == watched[2]
    assert len(watched[0]) == 4
    assert not set(asked) & set(watched[0])
    assert sorted(sampler.asked) == sorted([*asked, *(3 * watched[0])])
    for made in rounds[1:]:
        first = {r.prompt.question: r.answers[0] for r in rounds[0].rollouts if r.monitor}
        for rollout in made.rollouts:
            if rollout.monitor:
                assert rollout.answers[1] == first[rollout.prompt.question]
                assert len(rollout.scores) == 2
                assert rollout.pairs == ()


def test_a_round_holds_everything(online: Online) -> None:
    online.fit("run", max_epochs=1)
    (made,) = online.rounds("run")
    rollout = next(r for r in made.rollouts if r.pairs)
    tokenizer = TokenizerSpec(str(online.start)).load()
    assert rollout.prompt.row["question"] == rollout.prompt.question
    number = rollout.prompt.row["row"]
    assert rollout.prompt.input_ids == (1, 0, 3 + number, 40 + number, 2, 1, 0)  # "user", "assistant" are unknown: 0
    assert len(rollout.answers) == len(rollout.scores) == 4
    assert rollout.by_judge["Judge"] == rollout.scores
    for answer in rollout.answers:
        assert answer.finish_reason in ("stop", "length")
        assert tokenizer.decode(list(answer.token_ids or ()), skip_special_tokens=True) == answer.text
    assert {"policy", "sampler", "judge", "seed", "num_samples", "prompts"} <= made.metadata.keys()
    assert made.summary["metrics"]["on_policy/score"] > 0
    assert made.summary["report"]["kept"]["pairs"] > 0
    assert not list((online.folder / "run" / "rounds").glob("*parts*"))


class Mixed:
    """One answer of each kind, the unfinished one with the best score."""

    def sample(self, prompts, n, seed):  # type: ignore[no-untyped-def]
        return [[Answer("w90", "length"), Answer("w50"), Answer("  "), Answer("w40")][:n] for _ in prompts]


@pytest.mark.parametrize(("keep", "pair"), [(False, (1, 3)), (True, (0, 3))])
def test_unfinished_and_empty_answers_make_no_pair(online: Online, keep: bool, pair: tuple[int, int]) -> None:
    online.fit("run", online.sampling(Mixed(), keep_unfinished=keep), max_epochs=1)
    (made,) = online.rounds("run")
    trained = [rollout for rollout in made.rollouts if not rollout.monitor]
    assert {rollout.pairs for rollout in trained} == {(pair,)}
    assert {rollout.usable for rollout in trained} == {(0, 1, 3) if keep else (1, 3)}
    assert made.rollouts[0].answers[0].token_ids == (90,)  # it was cut off, so nothing ends it
    assert made.rollouts[0].answers[1].token_ids == (50, 2)


def test_metrics_of_a_round_are_logged_and_stored(standard: Standard) -> None:
    trainer, rounds = standard.module.trainer, standard.rounds
    logged = {name for name in trainer.callback_metrics if name.startswith("on_policy/")}
    assert {
        f"on_policy/{name}" for name in ("score", "score_spread", "win_rate", "kl", "length", "pairs_kept")
    } <= logged
    assert rounds[0].summary["metrics"]["on_policy/kl"] == 0
    assert rounds[0].summary["metrics"]["on_policy/win_rate"] == 0.5
    assert rounds[2].summary["metrics"]["on_policy/kl"] > 1e-3
    assert float(trainer.callback_metrics["on_policy/kl"]) == pytest.approx(
        rounds[2].summary["metrics"]["on_policy/kl"]
    )


def test_kl_is_the_log_ratio_of_the_policy_to_the_start_on_the_rounds_pairs(online: Online) -> None:
    torch.manual_seed(0)
    module = online.module(kl_batches=100)
    online.fit("run", module=module, max_epochs=2, every=1)
    made = online.rounds("run")[1]
    start = AutoModelForCausalLM.from_pretrained(online.start)
    policy = AutoModelForCausalLM.from_pretrained(online.start)
    checkpoint = sorted((online.folder / "run").glob("epoch=0*.ckpt"), key=lambda path: path.stat().st_mtime)[-1]
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    policy.load_state_dict({k.removeprefix("policy.model."): v for k, v in state.items() if k.startswith("policy.")})

    def logp(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
        ids = torch.tensor([[*prompt, *answer]])
        logps = model(ids, use_cache=False).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        return float(logps.gather(1, torch.tensor(answer)[:, None]).sum())

    ratios = []
    with torch.no_grad():
        for rollout in made.rollouts:
            for pair in rollout.pairs:
                ids = [rollout.answers[place].token_ids or () for place in pair]
                if ids[0] != ids[1] and rollout.scores[pair[0]] != rollout.scores[pair[1]]:
                    prompt = rollout.prompt.input_ids
                    ratios += [logp(policy, prompt, side) - logp(start, prompt, side) for side in ids]
    assert len(ratios) > 8
    assert made.summary["metrics"]["on_policy/kl"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [RefreshedReference, *exhaustive(FrozenReference)])
def test_other_references_are_a_switch(online: Online, reference: Any) -> None:
    watch = Watch()
    online.fit("run", watch=watch, module=online.module(reference=reference()))
    assert [made.summary["metrics"]["on_policy/kl"] > 0 for made in online.rounds("run")] == [False, True, True]


def test_a_reference_that_is_gone_when_new_answers_come_is_refused(online: Online) -> None:
    """The policy of epoch 2 is another one by epoch 3; answers that two epochs share are scored before."""
    with pytest.raises(MisconfigurationException, match="set every_n_epochs: 1"):
        online.fit("run", module=online.module(reference=RefreshedReference(2)), max_epochs=4)
    assert not online.rounds("run")


@pytest.mark.slow
def test_a_reference_may_be_refreshed_with_every_other_epoch_where_rounds_are_used_for_two(online: Online) -> None:
    sampling = EveryOther(Sampler(), Judge(), num_samples=4, monitor_prompts=4, keep_unfinished=True)
    online.fit("run", sampling, module=online.module(reference=RefreshedReference(2)), max_epochs=4)
    assert len(online.rounds("run")) == 2


def test_the_cached_reference_trains_like_the_frozen_one(standard: Standard) -> None:
    frozen = standard.online.fit("frozen", module=standard.online.module(reference=FrozenReference()))
    for name, value in standard.end.items():
        assert torch.allclose(value, frozen[name], atol=1e-5), name


@pytest.mark.slow
def test_adapters_are_sampled_from_and_trained(online: Online) -> None:
    policy = PolicySpec(path=str(online.start), lora=LoRASpec(r=4))
    module = OnlineDPOModule(policy, optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-2))
    online.fit("run", module=module)
    rounds = online.rounds("run")
    assert len({made.metadata["policy"] for made in rounds}) == 3
    assert rounds[2].summary["metrics"]["on_policy/kl"] > 1e-3


def test_the_schedule_ends_with_the_last_epoch_however_long_rounds_are(standard: Standard) -> None:
    watch = standard.watch
    assert watch.steps > 6
    warmup = -(-watch.steps * 0.2 // 1)
    assert watch.rates[0] == pytest.approx(3e-3 / (warmup + 1))
    assert watch.rates[-1] == pytest.approx(3e-3 / (watch.steps - warmup), rel=0.3)


@pytest.mark.slow
def test_another_runs_rounds_are_set_aside_and_kept(online: Online, caplog: pytest.LogCaptureFixture) -> None:
    online.fit("run", every=1)
    before = [made.path.read_bytes() for made in online.rounds("run")]
    for checkpoint in (online.folder / "run").glob("*.ckpt"):
        checkpoint.unlink()
    sampler = Sampler()
    online.fit("run", online.sampling(sampler), module=online.module(optimizer=lambda g: torch.optim.SGD(g, lr=0.5)))
    rounds = online.rounds("run")
    assert rounds[0].path.read_bytes() == before[0]
    assert len(sampler.asked) == 2 * (10 + 4)
    assert "another policy" in caplog.text
    kept = sorted((online.folder / "run" / "rounds" / "set_aside").glob("*.arrow"))
    assert [path.read_bytes() for path in kept] == before[1:]


@pytest.mark.slow
def test_a_fast_dev_run_leaves_a_real_runs_rounds_as_they_are(online: Online) -> None:
    online.fit("run")
    files = {file: file.read_bytes() for file in (online.folder / "run").rglob("*") if file.is_file()}
    sampling, sampler = online.sampling(), Sampler()
    sampling.sampler, sampling.chunk_size = sampler, 6
    trainer = online.trainer("run", [sampling], fast_dev_run=True)
    trainer.fit(online.module(optimizer=lambda g: torch.optim.SGD(g, lr=0.5)), datamodule=online.data())
    assert len(sampler.asked) == 6 + 4  # a round of its own was made, of a chunk; four are monitors
    assert {file: file.read_bytes() for file in (online.folder / "run").rglob("*") if file.is_file()} == files
    assert [path.name for path in online.folder.glob("run*/rounds*")] == ["rounds"]


@pytest.mark.slow
def test_an_epoch_without_a_round_of_its_own_trains_on_the_last_one(online: Online) -> None:
    watch = Watch()
    online.fit("run", EveryOther(Sampler(), Judge(), num_samples=4, monitor_prompts=4, keep_unfinished=True), watch)
    assert [made.number for made in online.rounds("run")] == [0, 2]
    assert watch.trained[0] == watch.trained[1] == pairs_of(online.rounds("run")[0])
    assert watch.trained[2] == pairs_of(online.rounds("run")[1])


class Plain:
    """A sampler of somebody who has imported nothing from here."""

    def sample(self, prompts, n, seed):  # type: ignore[no-untyped-def]
        return [[f"w{10 + place} w{20 + seed % 7}" for place in range(n)] for _ in prompts]


def test_a_sampler_may_give_bare_texts(online: Online) -> None:
    online.fit("run", online.sampling(Plain()), max_epochs=1)
    (made,) = online.rounds("run")
    answer = made.rollouts[0].answers[0]
    number = int(answer.text.split()[1][1:])
    assert answer.token_ids == (10, number, 2)  # the token that ends a turn is put behind the text's
    assert made.rollouts[0].pairs == ((3, 0),)


def test_a_share_of_the_original_answers_is_judged_along(online: Online) -> None:
    rows = [{"question": f"w{3 + n}", "answer": "w99 w99"} for n in range(20)]
    (online.folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    online.fit("run", online.sampling(original_chosen=0.5), max_epochs=1)
    (made,) = online.rounds("run")
    joined = [r for r in made.rollouts if r.answers[-1].finish_reason == "original"]
    assert 3 <= len(joined) <= 13
    for rollout in joined:
        assert rollout.answers[-1] == Answer("w99 w99", "original", (99, 99, 2))
        assert rollout.scores[-1] == 99
        assert not rollout.monitor
    assert any(pair[0] == 4 for rollout in joined for pair in rollout.pairs)


def test_offline_pairs_are_mixed_in_and_drawn_anew(online: Online) -> None:
    rows = [{"question": f"w{60 + n}", "chosen": "w70 w71", "rejected": "w72"} for n in range(20)]
    path = online.folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = online.data(sources=[Source(str(path), fraction=0.25)])
    seen = []

    class See(Watch):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            documents = data.train_mixture.documents  # type: ignore[union-attr]
            places = [documents.where(n) for n in range(len(documents))]
            seen.append([place for place in places if "pairs.jsonl" in place])

    online.fit("run", watch=See(), data=data)
    assert [len(places) for places in seen] == [5, 5, 5]
    assert seen[0] != seen[1]


# --- what does not fit is said before training


def test_a_missing_reload_setting_names_the_line(online: Online) -> None:
    with pytest.raises(MisconfigurationException, match="reload_dataloaders_every_n_epochs: 1"):
        online.fit("run", reload_dataloaders_every_n_epochs=0)


def test_a_missing_callback_names_the_line(online: Online) -> None:
    trainer = online.trainer("run", [])
    with pytest.raises(MisconfigurationException, match=r"class_path: lion_lightning.callbacks.OnPolicySampling"):
        trainer.fit(online.module(), datamodule=online.data())


def test_data_that_lies_on_disk_is_refused(online: Online) -> None:
    data = PreferenceDataModule([Source("pairs.jsonl")], TokenizerSpec(str(online.start)))
    trainer = online.trainer("run", [online.sampling()])
    data.prepare_data = data.setup = lambda *_, **__: None  # type: ignore[method-assign]
    with pytest.raises(MisconfigurationException, match="PreferenceDataModule, which trains on answers from disk"):
        trainer.fit(online.module(), datamodule=data)


def test_the_data_module_alone_says_who_is_missing(online: Online) -> None:
    data = online.data()
    data.setup()
    with pytest.raises(MisconfigurationException, match=r"add lion_lightning.callbacks.OnPolicySampling"):
        data.train_dataloader()


@pytest.mark.slow
def test_the_data_and_the_callback_work_with_a_plain_dpo_module(online: Online) -> None:
    class Covering(DPOModule):
        pass

    module = Covering(str(online.start), reference=FrozenReference())
    trainer = online.trainer("run", [online.sampling()])
    trainer.fit(module, datamodule=online.data())
    assert len(online.rounds("run")) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_samples": 1}, "num_samples is 1; give at least 2 answers"),
        ({"prompts_per_round": 0}, "prompts_per_round is 0"),
        ({"original_chosen": 1.5}, "original_chosen is 1.5"),
        ({"monitor_prompts": -1}, "monitor_prompts is -1"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(online: Online, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        online.sampling(**wrong)


def test_prompts_that_run_out_are_an_error_with_the_numbers(online: Online) -> None:
    """And before the first round, not after the second."""
    with pytest.raises(
        ValueError, match=r"no prompts left for round 2: 30 prompts \(4 more are .* make 2 rounds of 15"
    ):
        online.fit("run", online.sampling(prompts_per_round=15))
    assert list(online.rounds("run")) == []


def test_a_run_that_steps_may_end_sooner_is_not_refused_for_rounds_it_may_not_come_to(online: Online) -> None:
    online.fit("run", online.sampling(prompts_per_round=15), max_epochs=3, max_steps=1)
    assert [made.number for made in online.rounds("run")] == [0]


class Pool:
    """So many prompts."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def split(self, count: int, seed: int) -> tuple[list[int], list[int]]:
        positions = list(range(self.count))
        return positions[:count], positions[count:]


@pytest.mark.parametrize(
    ("count", "given", "monitors", "size"), [(10, None, 2, 4), (128, None, 32, 48), (500, None, 32, 234), (10, 5, 5, 2)]
)
def test_monitor_prompts_are_a_quarter_of_few_prompts_unless_their_number_is_given(
    count: int, given: int | None, monitors: int, size: int
) -> None:
    shared = share_out(cast(PromptPool, Pool(count)), None, given, 2, 0)
    assert (len(shared.monitors), shared.size) == (monitors, size)
    assert len(shared.of_round(1, 1)) == size


def test_monitor_prompts_that_leave_none_are_named() -> None:
    shared = share_out(cast(PromptPool, Pool(10)), None, 32, 2, 0)
    with pytest.raises(ValueError, match="no prompts left for round 0: all 10 prompts are monitor prompts"):
        shared.of_round(0, 0)


@pytest.mark.slow
def test_the_last_round_may_be_short(online: Online, caplog: pytest.LogCaptureFixture) -> None:
    online.fit("run", online.sampling(prompts_per_round=14))
    assert [sum(not r.monitor for r in made.rollouts) for made in online.rounds("run")] == [14, 14, 2]
    assert "only 2 prompts are left of 14" in caplog.text


def test_prompts_that_are_too_long_are_left_out_and_counted(online: Online) -> None:
    with (online.folder / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"question": " ".join(["w7"] * 30)}) + "\n")
    online.fit("run", online.sampling(monitor_prompts=0), max_epochs=1)
    (made,) = online.rounds("run")
    causes = [rollout.left_out for rollout in made.rollouts if "longer" in rollout.left_out]
    assert causes == ["prompt longer than 31 tokens"]


class Wrong(Judge):
    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores = scores

    def score(self, prompts: Any, answers: Any) -> Any:
        if isinstance(self.scores, Exception):
            raise self.scores
        return [[self.scores] * len(texts) for texts in answers] if not callable(self.scores) else self.scores(answers)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (float("nan"), r"Wrong returned the score nan for an answer to .*prompts.jsonl:\d+; return finite numbers"),
        *slow((RuntimeError("out of memory"), r"Wrong failed \(RuntimeError: out of memory\)")),
        *exhaustive(
            (lambda answers: [row[1:] for row in answers], r"Wrong returned 3 scores for 4 answers to .*\.jsonl:\d+"),
            (lambda answers: [[1.0] * 4], "Wrong returned scores for 1 of 4 prompts"),
        ),
    ],
)
def test_a_judge_that_fails_is_named_and_the_answers_are_kept(online: Online, scores: Any, said: str) -> None:
    sampler = Sampler()
    with pytest.raises(ValueError, match=said):
        online.fit("run", online.sampling(sampler, Wrong(scores)), max_epochs=1)
    again = Sampler()
    online.fit("run", online.sampling(again, _as("Wrong")), max_epochs=1)
    assert len(sampler.asked) == 34
    assert again.asked == []


def _as(name: str) -> Any:
    """A judge that works, under the name (and so the identity) of one that did not."""
    return type("Wrong", (Judge,), {"__module__": Wrong.__module__, "__qualname__": name})()


def test_all_ties_are_an_error_that_says_what_to_change(online: Online) -> None:
    with pytest.raises(ValueError, match=r"round 0 .* gives no pair to train on: .*equal scores.* higher temperature"):
        online.fit("run", online.sampling(judge=Wrong(1.0)), max_epochs=1)
    assert len(online.rounds("run")) == 1


def test_what_a_killed_run_with_other_settings_left_is_removed_with_the_round_that_is_made(online: Online) -> None:
    with pytest.raises(KilledError):
        online.fit("run", online.sampling(Sampler(kill=1), seed=3), max_epochs=1)
    folder = online.folder / "run" / "rounds"
    (folder / "round-0001.parts-abc").mkdir()  # of another round
    assert len(list(folder.glob("round-0000.parts-*"))) == 1
    online.fit("run", online.sampling(), max_epochs=1)
    assert sorted(path.name for path in folder.glob("round-*.parts-*")) == ["round-0001.parts-abc"]


@pytest.mark.parametrize("tied", [0, 1])
def test_a_single_round_of_ties_is_skipped(tied: int, online: Online, caplog: pytest.LogCaptureFixture) -> None:
    class TiesOnce(Judge):
        def score(self, prompts: Any, answers: Any) -> Any:
            scores = super().score(prompts, answers)
            second = len(self.scored) > 19  # a round asks 15 of the 30 prompts that are not the 4 monitor prompts
            return [[1.0] * len(row) for row in scores] if second == bool(tied) else scores

    watch = Watch()
    online.fit("run", online.sampling(judge=TiesOnce()), watch=watch, max_epochs=2)
    assert set(watch.trained) == {1 - tied}  # epochs that had batches
    assert watch.trained[1 - tied] <= pairs_of(online.rounds("run")[1 - tied])
    said = "gives no pair to train on: 15 pairs of answers (15 pairs: equal scores); this round is skipped"
    assert f"round-000{tied}.arrow) {said}" in caplog.text


def test_a_round_without_pairs_is_sampled_again_after_a_change(
    online: Online, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a judge that was corrected nothing is known but its name, so the stored round would be found again."""
    with pytest.raises(ValueError, match="The next start samples this round again"):
        online.fit("run", online.sampling(judge=Wrong(1.0)), max_epochs=1)
    before = online.rounds("run")[0].path.read_bytes()
    sampler = Sampler()
    online.fit("run", online.sampling(sampler, _as("Wrong")), max_epochs=1)
    assert len(sampler.asked) == 34
    assert "round-0000.arrow is without pairs to train on; moved to" in caplog.text
    (kept,) = (online.folder / "run" / "rounds" / "set_aside").glob("*.arrow")
    assert kept.read_bytes() == before


def test_a_stored_round_is_used_if_other_filters_keep_its_pairs(online: Online) -> None:
    with pytest.raises(ValueError, match=r"gives no pair to train on: .*score margin below 1000"):
        online.fit("run", data=online.data(min_margin=1000.0), max_epochs=1)
    sampler = Sampler()
    online.fit("run", online.sampling(sampler), max_epochs=1)
    assert sampler.asked == []


def test_ties_warn_with_their_number(online: Online, caplog: pytest.LogCaptureFixture) -> None:
    def mostly_ties(answers: Any) -> Any:
        return [[float(n == 0 and place == 1) for place in range(len(row))] for n, row in enumerate(answers)]

    online.fit("run", online.sampling(Plain(), Wrong(mostly_ties), monitor_prompts=0), max_epochs=1)
    assert "25 of 34 pairs are left out as ties or equal answers" in caplog.text
    assert "9 pairs are left" in caplog.text


class Silent:
    def sample(self, prompts, n, seed):  # type: ignore[no-untyped-def]
        return [[""] * n for _ in prompts]


def test_empty_answers_are_an_error_with_counts(online: Online) -> None:
    with pytest.raises(ValueError, match=r"0 pairs of answers \(30 prompts: fewer than two answers that are complete"):
        online.fit("run", online.sampling(Silent()), max_epochs=1)


class Few:
    def sample(self, prompts, n, seed):  # type: ignore[no-untyped-def]
        return [["w3"] * (n - 1) for _ in prompts]


def test_a_sampler_that_gives_too_few_answers_is_named(online: Online) -> None:
    with pytest.raises(ValueError, match=r"Few gave \[3, 3, 3, 3\] answers where 4 prompts were asked for 4 each"):
        online.fit("run", online.sampling(Few()), max_epochs=1)


class Dying(Sampler):
    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        if len(self.asked) == 12:
            raise EngineError("the engine died")
        return super().sample(prompts, n, seed)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "sampler": "Sampler"}


@pytest.mark.slow
def test_an_engine_that_dies_loses_nothing_that_was_finished(online: Online) -> None:
    with pytest.raises(EngineError, match="the engine died"):
        online.fit("run", online.sampling(Dying()), max_epochs=1)
    sampler = Sampler()
    online.fit("run", online.sampling(sampler), max_epochs=1)
    assert len(sampler.asked) == 34 - 12


def test_modules_without_a_policy_are_refused(online: Online) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(MisconfigurationException, match="OnPolicySampling: BoringModel holds no language model"):
        online.trainer("run", [online.sampling()]).fit(BoringModel(), datamodule=online.data())


def test_validation_prompts_are_never_asked(online: Online) -> None:
    rows = [{"question": f"w{3 + n} w{40 + n}", "chosen": "w70", "rejected": "w72"} for n in range(10)]
    path = online.folder / "held.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = online.data(validation=[Source(str(path))])
    data.prepare_data()
    data.setup()
    assert len(data.pool) == 24
    assert data.pool.left_out == {"validated on": 10}


def test_the_reasoning_of_sampled_answers_cannot_be_left_out(online: Online) -> None:
    with pytest.raises(ValueError, match="sampled answers are compared as they were written; remove it"):
        OnPolicyDataModule([], TokenizerSpec(str(online.start)), train_reasoning=False)


def test_no_prompts_at_all_are_refused(online: Online) -> None:
    with pytest.raises(ValueError, match=r"data.prompts is empty"):
        OnPolicyDataModule([], TokenizerSpec(str(online.start)))
