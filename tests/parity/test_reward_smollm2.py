"""Real pairs through a real chat template: module, classifier and judge read the same tokens and give equal scores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lion_lightning.callbacks import HuggingFaceExport
from lion_lightning.data.packing.collate import collate
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.judges import RewardModelJudge
from lion_lightning.models.rewards.padding import padding_token
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.reward import RewardModule
from lion_lightning.types import Prompt
from tests import tiny
from tests.families import family
from tests.marks import exhaustive

MODEL = Path(os.environ.get("LION_SMOLLM2", "no-such-folder"))
DATA = Path(__file__).resolve().parents[2].parent / "shared/data/gsm8k/example_model_solutions.jsonl"
PAIRS = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason="set LION_SMOLLM2 to a folder with SmolLM2-135M-Instruct"),
    pytest.mark.skipif(not DATA.is_file(), reason="needs GSM8K's model solutions in ../shared beside the repository"),
]


def rows(plain: bool) -> list[dict[str, Any]]:
    """The first problems that have both a right and a wrong model solution, as conversations or as plain text."""
    found: list[dict[str, Any]] = []
    for line in DATA.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        solutions = [value for value in row.values() if isinstance(value, dict)]
        sides = [[s["solution"] for s in solutions if s["is_correct"] is truth][:1] for truth in (True, False)]
        if all(sides) and len(found) < PAIRS:
            texts = {"prompt": row["question"] + "\n", "chosen": sides[0][0], "rejected": sides[1][0]}
            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            turns = {name: [{"role": roles[name], "content": text}] for name, text in texts.items()}
            found.append(texts if plain else turns)
    return found


def trained(config: dict[str, Any] | None, folder: Path, pairs: list[dict[str, Any]]) -> tuple[str, list[float]]:
    """An export, behind one step of training, and the rewards that the module gives each chosen and rejected answer."""
    tokenizer = TokenizerSpec(str(MODEL))
    policy = PolicySpec(str(MODEL)) if config is None else PolicySpec(config=config | {"vocab_size": 49152})
    torch.manual_seed(0)
    module = RewardModule(policy, tokenizer=tokenizer, optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-3))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    data = PreferenceDataModule([Source(str(folder / "pairs.jsonl"))], tokenizer, max_length=1024)
    run = tiny.trainer(max_steps=1, num_sanity_val_steps=0, callbacks=[HuggingFaceExport(str(folder / "export"))])
    run.fit(module, data)
    assert data.train_mixture is not None
    samples = [data.train_mixture.documents[number] for number in range(len(pairs))]
    with torch.inference_mode():
        rewards = module.eval().reward_model(collate(samples, 4096))
    return str(folder / "export"), rewards.tolist()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("smollm2", False),
        ("llama", True),
        ("qwen3", False),
        ("gemma3_text", False),
        *exhaustive(("llama", False), ("qwen3", True), ("gemma3_text", True)),
    ],
)
def test_equal_scores(name: str, plain: bool, tmp_path: Path) -> None:
    config = None if name == "smollm2" else family(name, max_position_embeddings=2048)
    pairs = rows(plain)[: 1 if config is None else PAIRS]  # the real model is slow
    export, rewards = trained(config, tmp_path, pairs)
    tokenizer: Any = AutoTokenizer.from_pretrained(export)
    assert tokenizer.pad_token == padding_token(AutoTokenizer.from_pretrained(MODEL)) == "<|endoftext|>"  # was EOS
    answers = [(row["prompt"], row[side]) for row in pairs for side in ("chosen", "rejected")]
    if plain:
        texts = tokenizer([prompt + text + tokenizer.eos_token for prompt, text in answers], padding=True)
        prompts = [Prompt(prompt) for prompt, _ in answers]
        said = [text for _, text in answers]
    else:
        turns = [prompt + answer for prompt, answer in answers]
        texts = tokenizer.apply_chat_template(turns, padding=True, return_dict=True)
        prompts = [Prompt("", messages=tuple(prompt)) for prompt, _ in answers]
        said = [answer[0]["content"] for _, answer in answers]
    model = AutoModelForSequenceClassification.from_pretrained(export).eval()
    with torch.inference_mode():
        scores = model(**{key: torch.tensor(value) for key, value in texts.items()}).logits[:, 0]
    torch.testing.assert_close(torch.tensor(rewards), scores, rtol=0, atol=2e-5)
    judge = RewardModelJudge(export)
    judge.open(torch.device("cpu"))
    judged = [score for (score,) in judge.score(prompts, [[text] for text in said])]
    torch.testing.assert_close(torch.tensor(judged), scores, rtol=0, atol=2e-5)
