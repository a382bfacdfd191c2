"""Parts of the package in projects that exist already: what each takes and gains (docs/plugging_in.md)."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from difflib import ndiff
from importlib import import_module
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_lightning import (
    CachedReference,
    PolicyModel,
    PolicySpec,
    PreferenceDataModule,
    SFTDataModule,
    Source,
    TokenizerSpec,
)
from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.callbacks.monitors import throughput
from lion_lightning.data.packing.padded import pack_padded
from lion_lightning.judges import ExactMatch, VerifierJudge, score_answers
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.rollouts.rounds import Round
from lion_lightning.sampling import SamplingSettings
from lion_lightning.types import PackedBatch, Prompt
from tests.demo import copy_demo, copy_start

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "plugging_in.md"
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
SMOLLM2 = ROOT / ".venv" / "smollm2"
CHAINS = {
    "sft": ("start", "throughput", "data", "packed", "export"),
    "dpo": ("start", "packed", "reference", "rounds", "judge", "sampler"),
}
PARTS = [(project, *pair) for project, steps in CHAINS.items() for pair in pairwise(steps)]


def code(project: str, step: str) -> list[str]:
    """Lines of a file that are not blank, without its first docstring."""
    text = (ROOT / "examples" / "plugging_in" / project / f"{step}.py").read_text("utf-8")
    first = ast.parse(text).body[0].end_lineno or 0
    return [line for line in text.splitlines()[first:] if line.strip()]


def changes(project: str, before: str, after: str) -> list[str]:
    """Lines that a part takes away, with a minus, and those that it adds or changes, with a plus."""
    return [line for line in ndiff(code(project, before), code(project, after)) if line[0] in "+-"]


@pytest.mark.parametrize("step", PARTS, ids="-".join)
def test_each_part_takes_under_ten_lines_and_the_page_shows_them(step: tuple[str, str, str]) -> None:
    written = [line for line in changes(*step) if line[0] == "+"]
    assert 0 < len(written) < 10, written
    shown = [block.splitlines() for block in re.findall(r"```diff\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)]
    [block] = [block for block in shown if written == [line for line in block if line[0] == "+"]]
    assert {line for line in block if line[0] == "-"} <= {*changes(*step)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task, and a model of random weights."""
    copy_demo(tmp_path / "runs" / "demo", train=48, preferences=66)
    copy_start(tmp_path / "runs" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "_matmul_rate", lambda: 1e9)  # which takes a second
    return tmp_path


def part(step: str) -> Any:
    return import_module(f"examples.plugging_in.{step}")


def run(step: str, rows: str, **options: Any) -> tuple[Any, dict[str, float]]:
    """Train by a project's file as its user would; the module, and the metrics that were logged."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    torch.manual_seed(0)
    module, trainer = part(step).main("runs/model", f"runs/demo/{rows}.jsonl", **quiet, **options)
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def padded_batches(rows: Path | str, model: Path | str) -> list[dict[str, Tensor]]:
    start = part("sft.start")
    dataset = start.Conversations(rows, AutoTokenizer.from_pretrained(model), max_length=512)
    return list(DataLoader(dataset, batch_size=8, collate_fn=start.collate))


def packed_batches(rows: Path | str, model: Path | str) -> list[PackedBatch]:
    data = SFTDataModule([Source(str(rows))], TokenizerSpec(str(model)), max_length=512)
    data.prepare_data()
    data.setup()
    return list(data.train_dataloader())


def test_throughput_shows_the_share_of_padding_before_and_after(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []
    collate = part("sft.throughput").collate

    def watched(rows: Any) -> dict[str, Tensor]:
        seen.append(collate(rows))
        return seen[-1]

    monkeypatch.setattr(part("sft.throughput"), "collate", watched)
    before, after = (run(step, "train")[1]["perf/packing_efficiency"] for step in ("sft.throughput", "sft.data"))
    tokens = sum(int(batch["attention_mask"].sum()) for batch in seen)
    assert before == pytest.approx(tokens / sum(batch["input_ids"].numel() for batch in seen))
    packed = packed_batches("runs/demo/train.jsonl", "runs/model")
    assert after == pytest.approx(tokens / sum(batch.capacity for batch in packed))


@pytest.mark.parametrize("rows", ["made", pytest.param("real", marks=pytest.mark.slow)])
def test_packed_rows_compute_fewer_tokens_for_the_same_targets(rows: str, folder: Path) -> None:
    path, model = folder / "runs/demo/train.jsonl", folder / "runs/model"
    if rows == "real":
        if not (GSM8K.exists() and SMOLLM2.exists()):
            pytest.skip("needs ../shared/data/gsm8k and .venv/smollm2")
        path, model = folder / "gsm8k.jsonl", SMOLLM2
        path.write_text("".join(map(as_conversation, GSM8K.read_text("utf-8").splitlines()[:256])), encoding="utf-8")
    padded, packed = padded_batches(path, model), packed_batches(path, model)
    alone = list(map(pack_padded, padded))
    trained, masked = (Counter(torch.cat([each.targets for each in some]).tolist()) for some in (alone, packed))
    # SmolLM2's template writes a newline behind each turn, which the plain project trains the model to say
    newline = {} if rows == "made" else {AutoTokenizer.from_pretrained(model).encode("\n")[0]: 256}
    assert (trained - masked, masked - trained) == (newline, {})
    computed, needed = sum(batch["input_ids"].numel() for batch in padded), sum(len(row.input_ids) for row in packed)
    print(f"{rows} rows: {computed:,} tokens computed padded, {needed:,} packed, {1 - needed / computed:.0%} fewer")
    assert needed == sum(len(batch.input_ids) for batch in alone) < 0.85 * computed


def as_conversation(line: str) -> str:
    row = json.loads(line)
    turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    return json.dumps({"messages": turns}) + "\n"


def test_the_packed_loss_is_the_mean_over_all_tokens_of_the_padded_batches(folder: Path) -> None:
    rows, model = "runs/demo/train.jsonl", "runs/model"
    padded, packed = padded_batches(rows, model), packed_batches(rows, model)
    start, dense, exact = (part(f"sft.{step}").LitCausalLM(model) for step in ("start", "data", "packed"))
    targets = [int((batch["labels"][:, 1:] != -100).sum()) for batch in padded]
    with torch.no_grad():
        means = [float(start.training_step(batch, 0)) for batch in padded]
        expected = sum(mean * count for mean, count in zip(means, targets, strict=True)) / sum(targets)
        by_row = [float(dense.training_step(batch, 0)) * len(batch.targets) for batch in packed]
        summed = [float(exact.training_step(batch, 0)) for batch in packed]
    assert sum(by_row) / sum(targets) == pytest.approx(expected, abs=1e-5)
    assert sum(summed) / sum(targets) == pytest.approx(expected, abs=1e-5)
    assert sum(means) / len(means) != pytest.approx(expected, abs=1e-4)  # what a mean of means gives


def test_a_cached_reference_takes_one_pass_where_a_copy_takes_one_an_epoch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = Counter[bool]()  # with gradients, of the policy; and without, of the reference
    forward = PolicyModel.forward

    def counted(self: PolicyModel, *inputs: Any) -> Any:
        forwards[torch.is_grad_enabled()] += 1
        return forward(self, *inputs)

    monkeypatch.setattr(PolicyModel, "forward", counted)
    counts, losses = [], []
    for step in ("dpo.packed", "dpo.reference", "dpo.reference"):
        forwards.clear()
        losses.append(run(step, "preferences", max_epochs=2)[1]["train_loss"])
        counts.append(forwards[False])
    steps = forwards[True] // 2  # of an epoch
    assert counts[0] == 2 * steps
    assert 0 < counts[1] <= steps  # a pass packs all answers anew
    assert counts[2] == 0  # the second run finds them on disk
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == losses[1]
    print(f"{counts[0]} forwards of a reference with a copy, {counts[1]} with the cache, {counts[2]} when run again")


def test_the_preference_loss_of_trees_is_that_of_padded_pairs(folder: Path) -> None:
    rows, model = "runs/demo/preferences.jsonl", "runs/model"
    start, packed = part("dpo.start"), part("dpo.packed")
    dataset = start.Preferences(rows, AutoTokenizer.from_pretrained(model), max_length=512)
    padded = list(DataLoader(dataset, batch_size=8, collate_fn=start.collate))
    data = PreferenceDataModule([Source(rows)], TokenizerSpec(model), max_length=512)
    data.prepare_data()
    data.setup()
    trees = list(data.train_dataloader())
    with torch.no_grad():
        sides = [module.LitDPO(model) for module in (start, packed)]
        margins = []
        for project, batches in zip(sides, (padded, trees), strict=True):
            found = [project.logps(project.model, batch) for batch in batches]
            margins.append(torch.cat([chosen - rejected for chosen, rejected in found]).sort().values)
    torch.testing.assert_close(margins[1], margins[0], rtol=1e-5, atol=1e-4)
    computed = sum(batch["input_ids"].numel() for batch in padded), sum(len(row.input_ids) for row in trees)
    print(f"pairs: {computed[0]:,} tokens computed padded, {computed[1]:,} as trees, each prompt once")
    assert computed[1] < 0.8 * computed[0]


def test_the_export_loads_in_transformers_and_gives_the_logits_of_the_module(folder: Path) -> None:
    module, _ = run("sft.export", "train", default_root_dir="runs/sft")
    stored: Any = AutoModelForCausalLM.from_pretrained("runs/sft/export")  # in evaluation mode
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        trained = module.model.eval().causal_lm(ids, use_cache=False).logits
        torch.testing.assert_close(stored(ids, use_cache=False).logits, trained, rtol=1e-5, atol=1e-5)
    start = AutoModelForCausalLM.from_pretrained("runs/model")
    assert not torch.equal(start.lm_head.weight, stored.lm_head.weight)
    turns = [{"role": "user", "content": "Say tako."}]
    templates = (AutoTokenizer.from_pretrained(f"runs/{name}") for name in ("model", "sft/export"))
    assert len({tokenizer.apply_chat_template(turns, tokenize=False) for tokenizer in templates}) == 1
    assert "trained with LitCausalLM" in Path("runs/sft/export/README.md").read_text("utf-8")


class ByLength:
    """Any two answers of a model of random weights differ in it."""

    def score(self, prompts: Any, answers: Any) -> list[list[float]]:
        return [[float(len(text)) for text in texts] for texts in answers]


def test_rounds_in_their_module_train_on_new_answers_of_the_policy_in_each_epoch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = part("dpo.rounds")
    monkeypatch.setattr(rounds, "SamplingSettings", lambda **_: SamplingSettings(max_new_tokens=4))
    monkeypatch.setattr(rounds, "VerifierJudge", lambda _: ByLength())
    monkeypatch.setattr(OnPolicySampling, "usable", lambda self, answer: bool(answer.text.strip()))  # all are cut off
    passes: list[int] = []
    model = CachedReference._model  # entered where there is something to score

    def counted(self: CachedReference, *inputs: Any) -> Any:
        passes.append(len(passes))
        return model(self, *inputs)

    monkeypatch.setattr(CachedReference, "_model", counted)
    _, metrics = run("dpo.rounds", "prompts", max_epochs=2)
    found = [Round(Path(f"rounds/round-000{number}.arrow")) for number in (0, 1)]
    prompts = [{rollout.prompt.text for rollout in each.rollouts if not rollout.monitor} for each in found]
    assert len(prompts[0]) == len(prompts[1]) > 3
    assert not prompts[0] & prompts[1]
    assert found[0].metadata["policy"] != found[1].metadata["policy"]  # each is of the weights of its time
    assert metrics["on_policy/pairs"] == found[1].num_items > 0
    assert len(passes) == 2  # of the reference: one for each round, by the model that the run began with


def test_a_judge_in_parts_tells_answers_apart_that_a_verifier_does_not() -> None:
    prompts = [Prompt("q", row={"answer": "red green"})]
    answers = [["red green", "red", "blue", "green"]]
    scores = [
        score_answers(judge, prompts, answers).scores[0]
        for judge in (VerifierJudge(ExactMatch("answer")), part("dpo.judge").Overlap())
    ]
    assert scores == [[1.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.0, 0.5]]
    apart = [sum(one != other for one, other in combinations(each, 2)) for each in scores]
    print(f"{apart[0]} pairs of 6 have a preference by the verifier, {apart[1]} by the judge")
    assert apart == [3, 5]


def test_a_sampler_of_their_own_answers_by_the_policy_as_it_is(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("runs/model")
    policy = RolloutPolicy(PolicySpec("runs/model").build(tokenizer), tokenizer)
    sampler = part("dpo.sampler").Beams()
    sampler.open(policy)
    prompt = Prompt("Say tako.", tuple(tokenizer("Say tako.").input_ids))
    [answers] = sampler.sample([prompt], 5, 0)
    assert len({answer.token_ids for answer in answers}) == 5  # beams differ; draws at a low temperature need not
    assert all(len(answer.token_ids) <= 64 for answer in answers)
    drawn = [policy.generate(prompt, seed, do_sample=True, max_new_tokens=8)[0] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
