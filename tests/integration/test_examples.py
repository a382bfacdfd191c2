"""Each program and config in examples/ runs, and does what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import logsigmoid

from examples.beam_sampler import BeamSampler
from examples.cal_dpo import CalDPOLoss
from examples.cispo import CISPOLoss
from examples.dro import DROModule
from examples.ensemble_reference import EnsembleReference
from examples.keyword_judge import KeywordJudge
from examples.npo import NPOLoss
from examples.plain_lightning import PlainModule
from examples.prompt_filter import WithoutWords
from examples.row_filter import short_answers
from examples.rrhf import RRHFLoss
from lion_lightning import FrozenReference, PolicySpec, SFTDataModule, Source, TokenizerSpec
from lion_lightning.cli import main
from lion_lightning.data.document_filters.base import DocumentFilter
from lion_lightning.judges import score_answers
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.types import Prompt
from tests import tiny
from tests.demo import copy_demo, copy_start
from tests.unit.losses.chosen_logps import answers, answers_with_ratios, groups_of, in_groups, with_ratios, with_tokens

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--trainer.max_steps=2"]
NOTHING_WRITTEN = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.callbacks=[]"]
FAST = [*SMALL, *NOTHING_WRITTEN, "--trainer.num_sanity_val_steps=0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task, and random weights where configs expect those of earlier stages."""
    copy_demo(tmp_path / "runs" / "demo", train=64, preferences=60, ranked=60)
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
    assert max(lines[name] for name in ("npo.py", "rrhf.py", "cispo.py")) < 20  # losses


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
    assert [answer.text for answer in answers] == [
        tokenizer.decode([token], skip_special_tokens=True) for token in best
    ]


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


def test_the_filters_of_rows_and_of_prompts_leave_out_what_they_say_and_it_is_counted(folder: Path) -> None:
    rows = [json.loads(line) for line in Path("runs/demo/train.jsonl").read_text().splitlines()]
    long = [row for row in rows if len(row["messages"][-1]["content"]) > 18]
    source = Source("runs/demo/train.jsonl", transform="examples.row_filter.short_answers")  # type: ignore[arg-type]
    assert source.transform is short_answers
    rules: list[DocumentFilter] = [WithoutWords(["backwards"])]
    data = SFTDataModule([source], TokenizerSpec("runs/demo/model"), max_length=192, document_filters=rules)
    data.prepare_data()
    data.setup()
    (report,) = data.reports
    assert 0 < len(long) == report.skipped
    asked = [row["messages"][0]["content"] for row in rows if row not in long]
    left_out = sum("backwards" in question for question in asked)
    assert 0 < left_out == report.left_out["a word of the list"].documents
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


def test_npo_forgets_what_is_undesirable_and_keeps_the_rest() -> None:
    policy, reference = answers_with_ratios([1.0, 2.0])
    loss = NPOLoss(beta=0.5)(policy, reference, torch.tensor([True, False]))
    # the first answer's log-prob is 1 - 7; 2 / 0.5 * log(1 + e^(0.5 * 2))
    assert loss.tolist() == pytest.approx([6.0, 4 * math.log1p(math.exp(1.0))])
    still = answers_with_ratios([0.0, 0.0])
    assert NPOLoss(0.5)(*still, torch.tensor([True, False]))[1].item() == pytest.approx(4 * math.log(2))


def test_rrhf_adds_a_hinge_for_each_wrong_order_to_the_best_answers_nll() -> None:
    policy = answers([-2.0, -1.0, -6.0, -3.0, -4.0, -2.0], counts=[2, 1, 3, 1, 1, 1])
    values = torch.tensor([[0.5, 0.0, 1.0], [2.0, 2.0, 1.0]])
    loss = RRHFLoss()(in_groups(policy, 2), in_groups(policy, 2), values)
    # means -1, -1, -2 for 0.5, 0, 1: the best is 1 below both; then -3, -4, -2: the worst is 1 and 2 above
    assert loss.tolist() == [1 + 1 + 6, 1 + 2 + 3]


def test_cispo_learns_from_clipped_tokens_too() -> None:
    old = groups_of([[[-1.0], [-2.0]]])
    values = (old.tokens.values + torch.tensor([3.0, 9.0]).log()).requires_grad_()  # the ratios
    [loss] = CISPOLoss(scale=False)(with_tokens(old, values), old, torch.tensor([[1.0, 0.0]]), old)
    # advantages 0.5 and -0.5; the second ratio is clipped at 5, and neither is differentiated
    assert loss.item() == pytest.approx(-3 * 0.5 * (math.log(3) - 1) + 5 * 0.5 * (math.log(9) - 2))
    assert torch.autograd.grad(loss, values)[0].tolist() == pytest.approx([-1.5, 2.5])


@pytest.mark.slow
def test_cispo_trains_from_its_config(folder: Path) -> None:
    write_questions()
    config = yaml.safe_load((EXAMPLES / "cispo.yaml").read_text())
    judge = {"class_path": "examples.keyword_judge.KeywordJudge"}
    # random weights seldom end an answer, and none is right
    config["trainer"]["callbacks"][0]["init_args"] |= {"keep_unfinished": True, "judge": judge}
    Path("cispo.yaml").write_text(yaml.safe_dump(config))
    laid = ["-c", str(ROOT / "configs/grpo.yaml"), "-c", "cispo.yaml"]
    assert main(["fit", *laid, *SMALL, "--trainer.max_epochs=1"]) == 0


@pytest.mark.parametrize("configs", [("configs/kto", "examples/npo"), ("configs/ranked", "examples/rrhf")])
def test_losses_of_answers_and_groups_train_from_their_configs(folder: Path, configs: tuple[str, str]) -> None:
    shipped, own = (["-c", str(ROOT / f"{name}.yaml")] for name in configs)  # npo.yaml, rrhf.yaml
    assert main(["fit", *shipped, *own, *FAST]) == 0


def test_dro_trains_from_its_config(folder: Path) -> None:
    assert main(["fit", "-c", str(EXAMPLES / "dro.yaml"), *FAST]) == 0


def test_the_squares_of_dro_are_those_of_each_answer_alone_behind_its_prompt(folder: Path) -> None:
    module = DROModule(policy=PolicySpec("runs/sft/export"), tau=0.5, reference=FrozenReference())
    module.configure_model()
    start: Any = module.reference
    with torch.no_grad():
        module.policy_model.head()[0].mul_(1.1)  # away from the reference
        module.value.weight.fill_(0.1)
    batch = tiny.trees((3, (2, 4), (1.0, 0.25)), (2, (3,), (-0.5,)))
    output: Any = module.compute_loss(batch)
    expected = 0.0
    for answer, score in zip(batch.answers, batch.values, strict=True):
        parts = [batch.segments[batch.segments[answer].parent], batch.segments[answer]]
        ids = torch.cat([batch.input_ids[part.start : part.stop] for part in parts])
        length, sums = parts[0].length, []
        for model in (module.policy_model, start.model):
            logps = model.causal_lm(ids[None]).logits[0, :-1].log_softmax(-1)
            sums.append(logps.gather(1, ids[1:, None])[length - 1 :].sum().item())
        states = module.policy_model.causal_lm.base_model(ids[None]).last_hidden_state[0, length - 1]
        expected += (score - module.value(states).item() - 0.5 * (sums[0] - sums[1])) ** 2 / 2
    assert output.num_items.item() == 3
    assert output.total.item() == pytest.approx(expected, rel=1e-4)


def write_questions() -> None:
    """Four prompts, in place of the demo's."""
    letters = " ".join("abcdefghijklmnopqrstuvwxyz")  # as keywords: which of them a random policy writes varies
    questions = [{"question": f"Spell {word}.", "answer": letters} for word in ("tako", "bati", "lufa", "kulo")]
    Path("runs/demo/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))


@pytest.mark.slow
def test_online_dpo_runs_with_the_examples_parts(folder: Path) -> None:
    write_questions()
    config = yaml.safe_load((EXAMPLES / "online_own_parts.yaml").read_text())
    config["trainer"]["callbacks"][0]["init_args"] |= {"keep_unfinished": True, "monitor_prompts": 1}
    Path("parts.yaml").write_text(yaml.safe_dump(config))
    online = str(ROOT / "configs/online_dpo.yaml")
    assert main(["fit", "-c", online, "-c", "parts.yaml", *SMALL, "--trainer.max_epochs=1"]) == 0


@pytest.mark.parametrize("name", ["cispo", "npo", "rrhf"])
def test_a_config_laid_over_another_saves_in_a_folder_of_its_own(name: str) -> None:
    trainer = yaml.safe_load((Path(__file__).parents[2] / "examples" / f"{name}.yaml").read_text())["trainer"]
    [saver] = [each["init_args"] for each in trainer["callbacks"] if each["class_path"].endswith("ModelCheckpoint")]
    assert (trainer["default_root_dir"], saver["dirpath"]) == (f"runs/{name}", f"runs/{name}/checkpoints")
