"""A model that learned to copy paraphrases under dynamic blocking. Read ../NOTICE.md before any use of the method.

python -m examples.nonfree.dynamic_blocking.demo

A tiny model is trained on sentences in a language of 40 meanings with two words each; its targets are the sentences
with a fifth of the words exchanged for their synonyms. So it may copy or exchange any word, and greedily it copies.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim import AdamW
from transformers import LlamaConfig, PreTrainedTokenizerFast

from examples.nonfree.dynamic_blocking.blocking import Blocking
from examples.nonfree.dynamic_blocking.metric import self_bleu
from examples.nonfree.dynamic_blocking.sampler import BlockingSampler
from lion_lightning import SFTDataModule, SFTModule, Source, TokenizerSpec
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.modules.optimization.schedules import LinearWithWarmup
from lion_lightning.sampling import SamplingSettings
from lion_lightning.tools.evaluate.intervals import bootstrap
from lion_lightning.types import Prompt

MEANINGS = 40
TEMPLATE = (
    "{% for m in messages %}{{ ('' if m.role == 'user' else '<answer> ') + m.content + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<answer> ' }}{% endif %}"
)


def sentence(random: Random) -> list[str]:
    """Eight words of different meanings, each word one of the two of its meaning: ``a7``, ``b31``, ..."""
    return [random.choice("ab") + str(meaning) for meaning in random.sample(range(MEANINGS), 8)]


def synonym(word: str) -> str:
    return ("b" if word[0] == "a" else "a") + word[1:]


def make_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Sentences, each with itself but for a fifth of its words."""
    random, rows = Random(seed), []
    for _ in range(count):
        words = sentence(random)
        target = [synonym(word) if random.random() < 0.2 else word for word in words]
        rows.append({"question": " ".join(words), "answer": " ".join(target)})
    return rows


def write_model(folder: Path) -> None:
    """A tokenizer with a token a word, and the config of a Llama of 0.8M parameters."""
    words = ["<unk>", "<end>", "<answer>"]
    for form in "ab":
        words += [form + str(meaning) for meaning in range(MEANINGS)]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unk>", "extra_special_tokens": ["<answer>"]}
    PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **special).save_pretrained(folder)
    LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.08,  # with the usual 0.02 so small a model learns to copy far too late
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 30.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    ).save_pretrained(folder)


def train(folder: Path, steps: int, seed: int) -> RolloutPolicy:
    """A policy that copies a sentence, but for a fifth of the words."""
    write_model(folder)
    train = folder / f"train-{seed}.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in make_rows(30 * steps, seed)))
    seed_everything(seed, verbose=False)
    tokenizer = TokenizerSpec(str(folder))
    data = SFTDataModule([Source(str(train))], tokenizer, max_length=512)
    adamw, schedule = partial(AdamW, lr=3e-3), partial(LinearWithWarmup, warmup=0.1)
    module = SFTModule({"config": str(folder)}, tokenizer=tokenizer, optimizer=adamw, lr_scheduler=schedule)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    Trainer(max_steps=steps, accelerator="cpu", **quiet).fit(module, data)
    return RolloutPolicy(module.policy_model, tokenizer.load())


def paraphrase(policy: RolloutPolicy, sources: list[str], p: float, seed: int, n: int = 1) -> list[list[str]]:
    """``n`` greedy answers to each source under blocking with probability ``p``."""
    prompts = []
    for source in sources:
        turns = [{"role": "user", "content": source}]
        ids: Any = policy.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        prompts.append(Prompt(source, tuple(ids), tuple(turns)))
    sampler = BlockingSampler(SamplingSettings(temperature=0.0, max_new_tokens=16), 256, Blocking(p))
    sampler.open(policy)
    try:
        return [[answer.text for answer in answers] for answers in sampler.sample(prompts, n, seed)]
    finally:
        sampler.close()


def copied_bigrams(source: str, answer: str) -> float:
    """Share of the source's bigrams that the answer has."""
    bigrams, said = (set(pairwise(words)) for words in (source.split(), answer.split()))
    return len(bigrams & said) / len(bigrams)


def same_places(source: str, answer: str, first: int) -> float:
    """Share of the source's places at which the answer has the same word, or with ``first = 1`` the same meaning."""
    pairs = zip(source.split(), answer.split(), strict=False)
    return sum(word[first:] == said[first:] for word, said in pairs) / len(source.split())


def measure(sources: list[str], answers: list[str]) -> dict[str, list[float]]:
    """Metrics of each answer."""
    pairs = list(zip(sources, answers, strict=True))
    return {
        "bigrams copied": [copied_bigrams(*pair) for pair in pairs],
        "words kept": [same_places(*pair, first=0) for pair in pairs],
        "meanings kept": [same_places(*pair, first=1) for pair in pairs],
        "selfBLEU": [self_bleu(*pair) for pair in pairs],
    }


def main(argv: list[str] | None = None) -> dict[float, dict[str, float]]:
    """Train for each seed, then print the metrics over all of their sentences, with 95% intervals."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sentences", type=int, default=200, help="to paraphrase, for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(argv)
    found: dict[float, dict[str, list[float]]] = {0.0: {}, 0.5: {}, 1.0: {}}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            policy = train(Path(folder), options.steps, seed)
        sources = [row["question"] for row in make_rows(options.sentences, 1000 + seed)]
        print(f"seed {seed}, source: {sources[0]}")
        for p, metrics in found.items():
            answers = [answer for (answer,) in paraphrase(policy, sources, p, seed)]
            print(f"  p = {p}: {answers[0]}")
            for name, values in measure(sources, answers).items():
                metrics.setdefault(name, []).extend(values)
        print("  three dictionaries of p = 0.5:", *paraphrase(policy, sources[:1], 0.5, seed, n=3)[0], sep="\n    ")
    print(table(found))
    return {p: {name: sum(values) / len(values) for name, values in metrics.items()} for p, metrics in found.items()}


def table(found: dict[float, dict[str, list[float]]]) -> str:
    """A row for each p: means over the sentences of all seeds, with 95% bootstrap intervals."""
    lines = ["| p | " + " | ".join(found[1.0]) + " |", "|---" * (1 + len(found[1.0])) + "|"]
    for p, metrics in found.items():
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*bootstrap(values)) for values in metrics.values()]
        lines.append(f"| {p} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
