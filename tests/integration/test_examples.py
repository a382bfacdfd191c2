"""Each program and config in examples/ runs, and does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import logsigmoid

from examples.beam_sampler import BeamSampler
from examples.cal_dpo import CalDPOLoss
from examples.ensemble_reference import EnsembleReference
from examples.keyword_judge import KeywordJudge
from examples.plain_lightning import PlainModule
from examples.reward_model import RewardModule
from examples.row_filter import short_answers
from lion_lightning import PolicySpec, SFTDataModule, Source, TokenizerSpec
from lion_lightning.cli import main
from lion_lightning.judges import score_answers
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.types import Prompt
from tests import tiny
from tests.demo import copy_demo, copy_start
from tests.unit.losses.chosen_logps import with_ratios

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--trainer.max_steps=2"]
NOTHING_WRITTEN = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.callbacks=[]"]
FAST = [*SMALL, *NOTHING_WRITTEN, "--trainer.num_sanity_val_steps=0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task, and random weights where configs expect those of earlier stages."""
    copy_demo(tmp_path / "runs" / "demo", train=64, preferences=60)
    for stage in ("sft", "dpo"):
        copy_start(tmp_path / "runs" / stage / "export")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_example_is_listed_and_tested() -> None:
    page = (EXAMPLES / "README.md").read_text("utf-8")
    tests = Path(__file__).read_text("utf-8")
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.yaml")]:
        if path.name != "__init__.py":
            assert path.name in page
            assert f"examples.{path.stem}" in tests or path.name in tests


def test_examples_are_short() -> None:
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert max(lines.values()) < 60, lines


def test_the_loss_is_dpos_plus_both_squared_errors() -> None:
    policy, reference = with_ratios([3.0], [1.0])
    # beta 0.5: both log-ratios are pulled to +1 and -1, and miss by 2 each
    expected = -logsigmoid(torch.tensor(2.0)) + 4 + 4
    assert CalDPOLoss(beta=0.5)(policy, reference).item() == pytest.approx(expected.item())


def test_the_judge_counts_keywords_of_the_row() -> None:
    prompts = [Prompt("q", row={"answer": "red green"}), Prompt("q", row={"answer": "blue"})]
    scores = score_answers(KeywordJudge(), prompts, [["Red.", "green red", ""], ["blue sky"]]).scores
    assert scores == [[0.5, 1.0, 0.0], [1.0]]


def test_the_sampler_gives_the_likeliest_answers_of_the_policy_that_it_was_opened_with(folder: Path) -> None:
    tokenizer = TokenizerSpec("runs/demo/model").load()
    policy = RolloutPolicy(PolicySpec("runs/dpo/export").build(tokenizer), tokenizer)
    prompt = Prompt("Spell tako.", tuple(tokenizer("Spell tako.").input_ids))
    sampler: Any = BeamSampler(max_new_tokens=1)
    sampler.open(policy)
    [answers] = sampler.sample([prompt], 3, 0)
    best = policy.next_logps([prompt.input_ids])[0].topk(3).indices.tolist()
    assert answers == [tokenizer.decode([token], skip_special_tokens=True) for token in best]


def test_the_reference_is_the_mean_of_its_models(folder: Path) -> None:
    start = PolicySpec("runs/dpo/export").build()
    other = PolicySpec("runs/dpo/export").build()
    with torch.no_grad():
        other.head()[0].mul_(1.5)
    models = iter([start, other])
    reference = EnsembleReference(["a", "b"])
    reference.attach(start, lambda _: next(models))
    batch = tiny.pairs((3, 2, 4))
    one, two = (model(batch).values for model in (start, other))
    torch.testing.assert_close(reference(batch, start).values, (one + two) / 2)
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_the_filter_skips_long_answers_and_they_are_counted(folder: Path) -> None:
    rows = [json.loads(line) for line in Path("runs/demo/train.jsonl").read_text().splitlines()]
    long = [row for row in rows if len(row["messages"][-1]["content"]) > 6]
    source = Source("runs/demo/train.jsonl", transform="examples.row_filter.short_answers")  # type: ignore[arg-type]
    assert source.transform is short_answers
    data = SFTDataModule([source], TokenizerSpec("runs/demo/model"), max_length=192)
    data.prepare_data()
    data.setup()
    assert data.train_mixture is not None
    assert 0 < len(long) == data.train_mixture.reports[0].skipped
    assert main(["fit", "-c", str(ROOT / "configs/sft.yaml"), "-c", str(EXAMPLES / "sft_filtered.yaml"), *FAST]) == 0


def test_a_plain_lightning_module_trains_on_packed_rows_as_the_package_does(folder: Path) -> None:
    tokenizer = TokenizerSpec("runs/demo/model")
    data = SFTDataModule([Source("runs/demo/train.jsonl")], tokenizer, max_length=192)
    module = PlainModule("runs/demo/model")
    trainer = tiny.trainer(max_steps=2)
    trainer.fit(module, data)
    batch = next(iter(data.train_dataloader()))
    assert sum(segment.parent < 0 for segment in batch.segments) > 2
    module.model.save_pretrained("plain")
    policy = PolicySpec("plain").build(tokenizer.load())
    expected = -policy(batch).values.mean()
    torch.testing.assert_close(module.loss(batch), expected, rtol=1e-5, atol=1e-6)


def test_the_reward_model_trains_from_its_config(folder: Path) -> None:
    assert main(["fit", "-c", str(EXAMPLES / "reward_model.yaml"), *FAST]) == 0


def test_the_reward_is_that_of_the_answer_alone_behind_its_prompt(folder: Path) -> None:
    module = RewardModule(policy=PolicySpec("runs/sft/export"))
    module.configure_model()
    batch = tiny.pairs((3, 2, 4), (1, 3, 2))
    output: Any = module.compute_loss(batch)
    alone: list[Any] = []
    for prompt, chosen, rejected in ((0, 1, 2), (3, 4, 5)):
        for answer in (chosen, rejected):
            parts = [batch.segments[prompt], batch.segments[answer]]
            ids = torch.cat([batch.input_ids[part.start : part.stop] for part in parts])
            hidden = module.policy_model.causal_lm.base_model(ids[None]).last_hidden_state[0, -1]
            alone.append(module.head(hidden))
    margins = torch.cat([alone[0] - alone[1], alone[2] - alone[3]])
    torch.testing.assert_close(output.total, -logsigmoid(margins).sum())
    assert output.metrics["margin"].item() == pytest.approx(margins.sum().item(), abs=1e-6)


@pytest.mark.slow
def test_online_dpo_runs_with_the_examples_parts(folder: Path) -> None:
    questions = [{"question": f"Spell {word}.", "answer": "a e i o u k"} for word in ("tako", "bati", "lufa", "kulo")]
    Path("runs/demo/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    config = yaml.safe_load((EXAMPLES / "online_own_parts.yaml").read_text())
    config["trainer"]["callbacks"][0]["init_args"] |= {"keep_unfinished": True, "monitor_prompts": 1}
    Path("parts.yaml").write_text(yaml.safe_dump(config))
    online = str(ROOT / "configs/online_dpo.yaml")
    assert main(["fit", "-c", online, "-c", "parts.yaml", *SMALL, "--trainer.max_epochs=1"]) == 0
