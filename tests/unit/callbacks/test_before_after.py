"""The report of what a fit changed, and that making it changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lion_lightning.callbacks import BeforeAfter, HuggingFaceExport, TokenThroughput
from lion_lightning.callbacks.before_after import Snapshot
from lion_lightning.models.generation.greedy import evaluating, generate_answers
from lion_lightning.modules.sft import SFTModule
from lion_lightning.types import LossOutput, PackedBatch
from tests.unit.callbacks.conftest import Bench

PROMPTS = ["w5 w6", "w7 w8 w9 w10 w11"]


def report(bench: Bench) -> Any:
    return json.loads((bench.folder / "run" / "before_after.json").read_text("utf-8"))


def greedy(module: Any, prompt: str, count: int) -> str:
    """Greedy answer by the plain model: alone, without padding and cache, one whole forward a token."""
    tokenizer, model = module.tokenizer_spec.load(), module.policy_model.causal_lm
    text = f"<|im_start|> user {prompt} <|im_end|> <|im_start|> assistant" if tokenizer.chat_template else prompt
    ids = tokenizer.encode(text)
    start = len(ids)
    while len(ids) < start + count and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


def untrained(bench: Bench) -> SFTModule:
    torch.manual_seed(0)
    module = bench.module()
    module.configure_model()
    return module


def test_before_and_after_are_the_metrics_and_answers_of_the_two_models(bench: Bench) -> None:
    callback = BeforeAfter(PROMPTS, max_new_tokens=6)
    trained = bench.fit(bench.trainer(callback))
    written = report(bench)
    assert written["steps"] == 6
    for when, module, step in (("before", untrained(bench), 0), ("after", trained, 6)):
        expected = bench.trainer().validate(module, bench.rows(), verbose=False)[0]
        assert set(expected) == {"val/loss", "val/perplexity", "val/accuracy"}
        assert written[when] == {"step": step, "metrics": pytest.approx(expected)}
        answers = [greedy(module, prompt, 6) for prompt in PROMPTS]
        assert [answer[when] for answer in written["answers"]] == answers
    assert [answer["prompt"] for answer in written["answers"]] == PROMPTS
    assert written["answers"][0]["before"] != written["answers"][0]["after"]


class Noisy(SFTModule):
    """Draws from the global random state in every step, so that a stray draw elsewhere changes the weights."""

    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        output = super().compute_loss(batch)
        return replace(output, total=output.total * (0.5 + torch.rand(())))


@pytest.mark.slow
def test_a_watched_run_ends_at_the_same_weights(bench: Bench) -> None:
    def weights(*callbacks: Any) -> dict[str, torch.Tensor]:
        plain = bench.module()
        module = Noisy(plain.policy_spec, tokenizer=plain.tokenizer_spec, optimizer=plain.optimizer_factory)
        bench.fit(bench.trainer(*callbacks, val_check_interval=2), module)
        return dict(module.policy_model.state_dict())

    alone, again = weights(), weights()
    watched = weights(TokenThroughput(), BeforeAfter(PROMPTS, 6), HuggingFaceExport())
    assert all(torch.equal(alone[name], again[name]) for name in alone)
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


def test_generation_leaves_no_trace_in_random_state_and_modes(bench: Bench) -> None:
    module = untrained(bench)
    module.train()
    frozen = module.policy_model.causal_lm.get_input_embeddings()
    frozen.eval()
    state = torch.get_rng_state()
    generate_answers(module, PROMPTS, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.policy_model.training
    assert not frozen.training
    with evaluating(module):
        assert not any(part.training for part in module.modules())


def test_a_tokenizer_without_template_continues_the_prompt(bench: Bench) -> None:
    module = untrained(bench)
    tokenizer = module.tokenizer_spec.load()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bench.folder / "plain")
    (bench.folder / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    module.tokenizer_spec = replace(module.tokenizer_spec, path=str(bench.folder / "plain"))
    assert module.tokenizer_spec.load().chat_template is None
    assert generate_answers(module, PROMPTS, 5) == [greedy(module, prompt, 5) for prompt in PROMPTS]


def test_a_prompt_without_room_for_an_answer_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match=r"and an answer need 65 positions, and the model has 64: shorten"):
        generate_answers(untrained(bench), ["w5"], 59)  # the prompt is 6 tokens: its word, two roles and three markers


def saved(bench: Bench, *callbacks: Any) -> Path:
    """Checkpoint of step 3 of a run."""
    saving = ModelCheckpoint(bench.folder / "checkpoints", "{step}", every_n_train_steps=3, save_top_k=-1)
    bench.fit(bench.trainer(saving, *callbacks, enable_checkpointing=True, val_check_interval=3))
    return bench.folder / "checkpoints" / "step=3.ckpt"


def test_a_resumed_run_compares_with_the_first_runs_start(bench: Bench) -> None:
    path = saved(bench, BeforeAfter(PROMPTS, 6))
    first = report(bench)
    assert (
        torch.load(path, weights_only=True)["callbacks"]["BeforeAfter"]["before"]["metrics"]
        == first["before"]["metrics"]
    )
    bench.fit(bench.trainer(BeforeAfter(PROMPTS, 6), val_check_interval=3), ckpt_path=path)
    resumed = report(bench)
    assert resumed["before"] == first["before"]
    assert [answer["before"] for answer in resumed["answers"]] == [answer["before"] for answer in first["answers"]]


def test_what_was_not_seen_before_is_not_made_up_on_resume(bench: Bench) -> None:
    path = saved(bench)
    with pytest.warns(UserWarning, match="written without this callback"):
        bench.fit(bench.trainer(BeforeAfter(PROMPTS, 6)), ckpt_path=path)
    written = report(bench)
    assert written["before"]["metrics"] == {}
    assert [answer["before"] for answer in written["answers"]] == [None, None]


@pytest.mark.parametrize("batches", [0, 1])
def test_a_partial_sanity_check_is_no_before(bench: Bench, batches: int) -> None:
    with pytest.warns(UserWarning, match="trainer.num_sanity_val_steps: -1"):
        bench.fit(bench.trainer(BeforeAfter(), num_sanity_val_steps=batches))
    assert report(bench)["before"]["metrics"] == {}


def test_a_run_without_validation_shows_answers_alone(bench: Bench, recwarn: pytest.WarningsRecorder) -> None:
    bench.fit(bench.trainer(BeforeAfter(PROMPTS, 6), limit_val_batches=0))
    written = report(bench)
    assert [str(one.message) for one in recwarn if "BeforeAfter" in str(one.message)] == []
    assert (written["before"], written["after"]) == ({"step": 0, "metrics": {}}, {"step": 6, "metrics": {}})
    assert all(answer["before"] and answer["after"] for answer in written["answers"])


def test_a_validation_before_the_end_is_said_to_be_stale(bench: Bench) -> None:
    with pytest.warns(UserWarning, match="validation last ran at step 4 of 6"):
        bench.fit(bench.trainer(BeforeAfter(), val_check_interval=4))
    assert report(bench)["after"]["step"] == 4


def test_the_table_shows_both_sides_and_takes_brackets_literally(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.fit(bench.trainer(BeforeAfter(["[red] w5"], 2)))
    table = capsys.readouterr().out
    written = report(bench)
    assert "before (step 0)" in table
    assert "after (step 6)" in table
    assert f"{written['before']['metrics']['val/loss']:.4g}" in table
    assert "[red] w5" in table
    assert written["answers"][0]["after"] in table


def print_table(answers: dict[str, str]) -> None:
    callback, trainer = BeforeAfter(), Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    callback.after = Snapshot(6, {}, answers)
    callback.on_fit_end(trainer, BoringModel())


def test_the_table_cuts_nothing_off(capsys: pytest.CaptureFixture[str]) -> None:
    answer = "a" * 300 + "end"  # one word, wider than any terminal's column
    print_table({"w5": answer})
    letters = "".join(character for character in capsys.readouterr().out if character.isalpha())
    assert letters.endswith(answer)


def test_an_answer_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"w5": "w6\x1b[2Jw7"})
    table = capsys.readouterr().out
    assert "\x1b[2J" not in table
    assert "w6\N{REPLACEMENT CHARACTER}[2Jw7" in table


class TextLogger(CSVLogger):
    """A logger whose experiment takes text, as TensorBoard's does."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.texts: list[tuple[Any, ...]] = []

    @property
    def experiment(self) -> Any:
        writer = super().experiment
        writer.add_text = lambda *arguments: self.texts.append(arguments)
        return writer


def test_answers_go_to_loggers_that_take_text(bench: Bench) -> None:
    logger = TextLogger(bench.folder / "text")
    bench.fit(bench.trainer(BeforeAfter(["w5"], 2), logger=logger))
    answer = report(bench)["answers"][0]
    ((tag, text, step),) = logger.texts
    assert (tag, step) == ("before_after", 6)
    assert text == f"**w5**\n\nbefore: {answer['before']}\n\nafter: {answer['after']}"


def test_one_object_used_for_two_runs_starts_afresh(bench: Bench) -> None:
    callback = BeforeAfter()
    trained = bench.fit(bench.trainer(callback))
    first = report(bench)
    trainer: Trainer = bench.trainer(callback)
    bench.fit(trainer, trained)
    assert report(bench)["before"]["metrics"] == first["after"]["metrics"]


def test_modules_without_a_policy_and_bad_arguments_are_refused(bench: Bench) -> None:
    with pytest.raises(MisconfigurationException, match="BeforeAfter: BoringModel holds no language model that trains"):
        bench.trainer(BeforeAfter(["w3"])).fit(BoringModel())
    with pytest.raises(ValueError, match="max_new_tokens"):
        BeforeAfter(max_new_tokens=0)
