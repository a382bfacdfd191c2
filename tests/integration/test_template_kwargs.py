"""``tokenizer.template_kwargs`` reaches all that render a conversation, and the keys of what is kept of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from transformers import AutoTokenizer

from lion_lightning.cli import main
from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.trees import PairEncoder
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.judges import VerifierJudge
from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.generation.greedy import generate_answers
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.checkpointing.settings import tokenizer_settings
from lion_lightning.modules.sft import SFTModule
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.rollouts.rounds import round_settings
from lion_lightning.sampling import SamplingSettings, TransformersSampler
from lion_lightning.tools.chat.conversation import Chat, load_served
from lion_lightning.tools.evaluate.run import Evaluation, evaluate
from lion_lightning.types import Prompt
from tests import tiny

TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {% if m.role == 'assistant' and mood %}{{ mood }} {% endif %}"
    "{{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% if mood %}{{ mood }} {% endif %}{% endif %}"
)
SAD = {"mood": "w9"}
ASKED = "<|im_start|> user w5 <|im_end|> <|im_start|> assistant "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose template writes a mood before answers, and rows; the second has a mood of its own."""
    TokenizerSpec(str(tiny.tokenizer_folder(tmp_path / "plain")), TEMPLATE).load().save_pretrained(tmp_path / "model")
    RolloutPolicy(tiny.policy(), TokenizerSpec(str(tmp_path / "model")).load()).write(tmp_path / "model")
    rows = [
        {"question": "w5", "answer": "w6"},
        {"question": "w5", "answer": "w7", "chat_template_kwargs": {"mood": "w8"}},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def spec(folder: Path, sad: bool = True) -> TokenizerSpec:
    return TokenizerSpec(str(folder / "model"), template_kwargs=SAD if sad else None)


def sources(folder: Path) -> list[Source]:
    return [Source(str(folder / "rows.jsonl"))]


def test_training_gives_the_mood_as_prompt_and_a_row_wins_over_it(folder: Path) -> None:
    data = SFTDataModule(sources(folder), spec(folder), max_length=32, cache_dir=folder / "cache")
    data.prepare_data()
    data.setup("fit")
    assert data.train_mixture is not None
    tokenizer = spec(folder).load()
    segments = [data.train_mixture.documents[number].segments[0] for number in range(2)]
    told = sorted(segment.input_ids[~segment.supervised].tolist() for segment in segments)
    assert told == [tokenizer.encode(ASKED + mood) for mood in ("w8", "w9")]


@pytest.mark.parametrize("encoder", [ChatEncoder, PairEncoder])
def test_stores_of_tokens_are_keyed_by_it(folder: Path, encoder: Callable[..., Any]) -> None:
    assert encoder(spec(folder).load()).fingerprint() != encoder(spec(folder, sad=False).load()).fingerprint()


def test_prompts_of_sampling_have_it_and_rounds_are_keyed_by_it(folder: Path) -> None:
    asked = [PromptPool(sources(folder), spec(folder, sad).load()).take([0, 1]) for sad in (True, False)]
    assert [[one.prompt.text for one in made] for made in asked] == [
        [f"{ASKED}w9 ", f"{ASKED}w8 "],
        [ASKED, f"{ASKED}w8 "],
    ]
    settings = [round_settings({}, "digest", [one.prompt for one in made], 32)["prompts"] for made in asked]
    assert settings[0] != settings[1]


def test_answers_before_and_after_a_fit_are_asked_with_it(folder: Path) -> None:
    answers = []
    for sad in (True, False):
        module = SFTModule(PolicySpec(str(folder / "model")), tokenizer=spec(folder, sad))
        module.configure_model()
        answers.append(generate_answers(module, ["w5"], 4))
    served = load_served(str(folder / "model"))
    assert answers == [[greedy(served, ASKED + mood, 4)] for mood in ("w9", "")]
    assert answers[0] != answers[1]


def greedy(served: RolloutPolicy, text: str, most: int) -> str:
    ids = served.tokenizer.encode(text, add_special_tokens=False)
    start = len(ids)
    while len(ids) < start + most and (len(ids) == start or ids[-1] not in served.end_ids):
        ids.append(int(served.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return str(served.tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


def test_an_export_has_it_for_transformers_and_a_resumed_run_minds_it(folder: Path) -> None:
    module = SFTModule(PolicySpec(str(folder / "model")), tokenizer=spec(folder))
    trainer = Trainer(accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, default_root_dir=folder)
    trainer.fit(module, tiny.Rows([tiny.row()]))
    trainer.save_checkpoint(folder / "a.ckpt")
    out = export_checkpoint(folder / "a.ckpt", folder / "out")
    turns = [{"role": "user", "content": "w5"}]
    exported: Any = AutoTokenizer.from_pretrained(out)
    assert exported.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == f"{ASKED}w9 "
    served = load_served(str(out))
    assert Chat(served, temperature=0, max_new_tokens=4).say("w5", lambda piece: None).text == greedy(
        served, f"{ASKED}w9", 4
    )
    mine, others = (tokenizer_settings(spec(folder, sad))["model.tokenizer.chat_template"] for sad in (True, False))
    assert mine.startswith("its own with {'mood': 'w9'} ")
    assert mine != others


def test_chat_asks_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for more in ([], ["--template-kwargs", json.dumps(SAD)]):
        monkeypatch.setattr("sys.stdin", io.StringIO("w5\n"))
        assert main(["chat", str(folder / "model"), "--temperature=0", "--max-new-tokens=4", *more]) == 0
        said.append(capsys.readouterr().out.strip())
    served = load_served(str(folder / "model"))
    assert said == [greedy(served, ASKED + mood, 4) for mood in ("", "w9")]
    with pytest.raises(SystemExit, match="2"):
        main(["chat", str(folder / "model"), "--template-kwargs=[1]"])
    assert "is not a JSON object" in capsys.readouterr().err


def test_evaluate_asks_and_measures_with_it(folder: Path) -> None:
    found = []
    for name, mood in (("a", SAD), ("b", None)):
        config = Evaluation(
            str(folder / "model"),
            out=folder / name,
            conversations=sources(folder),
            prompts=sources(folder),
            judge=VerifierJudge(exact),
            sampler=TransformersSampler(SamplingSettings(temperature=0.0, max_new_tokens=4)),
            max_length=32,
            template_kwargs=mood,
        )
        found.append(evaluate(config)["loss"]["loss"])
    assert found[0] != found[1]
    first, second = ((folder / name / "answers.jsonl").read_text().splitlines() for name in ("a", "b"))
    assert first[0] != second[0]  # what the answers are kept by


def exact(prompt: Prompt, answer: str) -> bool:
    return answer == prompt.original


def test_it_is_a_key_of_configs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = str(Path(__file__).parents[2] / "configs" / "sft.yaml")
    with pytest.raises(SystemExit):
        main(["fit", "-c", shipped, f"--model.tokenizer.template_kwargs={json.dumps(SAD)}", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["tokenizer"]["template_kwargs"] == SAD
