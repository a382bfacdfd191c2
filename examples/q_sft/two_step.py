"""Q-SFT on a game of two turns, against fine-tuning on the same games: the best way was never walked as a whole.

python -m examples.q_sft.two_step runs/two_step    # under two minutes on two cores

The player says left or right, then a or b. Behind left, a is worth 0.2 and b 0.4; behind right, a is worth nothing and
b 1. The games to learn from are played at random, but behind right nine of ten say a. Fine-tuning on all games repeats
that, with a mean return of 0.2; on games as often as they were rewarded, it reaches 0.5. Q-learning finds right, b.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lion_lightning import AlignmentModule, SFTDataModule, SFTModule, Source, TokenizerSpec
from lion_lightning.callbacks import HuggingFaceExport
from lion_lightning.data.base import PackedDataModule
from lion_lightning.experimental.q_sft import DummyRest, QSFTModule, QSFTSampler, TrajectoryDataModule, UniformRest
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.sampling import SamplingSettings, TransformersSampler
from lion_lightning.types import Prompt

REWARDS = {("left", "a"): 0.2, ("left", "b"): 0.4, ("right", "a"): 0.0, ("right", "b"): 1.0}
TEMPLATE = (
    "{% for turn in messages %}{{ '<|' + turn['role'] + '|> ' + turn['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
MARKS = ["<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
WORDS = [*"0123456789", "game", "you", "went", "left", "right", "a", "b"]


def write_model(folder: str) -> None:
    """A random Llama of two layers, and a tokenizer with a token for each word."""
    vocabulary = {word: number for number, word in enumerate([*MARKS, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<|pad|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def opening(number: int) -> list[dict[str, Any]]:
    """The first turn of a game; games have numbers, since rows that are alike count once."""
    return [{"role": "user", "content": "game " + " ".join(f"{number:04}")}]


def reply(way: str) -> list[dict[str, Any]]:
    """The turns up to the player's second choice."""
    return [{"role": "assistant", "content": way}, {"role": "user", "content": f"you went {way}"}]


def write_games(folder: Path, count: int, seed: int) -> None:
    """Games that were played at random and how each ended, and the same with weights of the turns: the rewards."""
    draw = random.Random(seed)
    with open(folder / "games.jsonl", "w") as plain, open(folder / "weighted.jsonl", "w") as weighted:
        for number in range(count):
            way = draw.choice(["left", "right"])
            choice = "b" if draw.random() < (0.5 if way == "left" else 0.1) else "a"
            reward = REWARDS[way, choice]
            turns = [*opening(number), *reply(way), {"role": "assistant", "content": choice}]
            print(json.dumps({"messages": turns, "reward": reward}), file=plain)
            if reward:
                for turn in turns[1::2]:  # the player's
                    turn["weight"] = reward
                print(json.dumps({"messages": turns}), file=weighted)


def train(module: AlignmentModule, data: PackedDataModule, folder: Path, epochs: int) -> str:
    """Train, and write the model to a folder."""
    module.optimizer_factory = lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[HuggingFaceExport(str(folder))],
    )
    trainer.fit(module, data)
    return str(folder)


def play(model: str, sampler: TransformersSampler, count: int) -> float:
    """Mean return of a model over so many games."""
    tokenizer = TokenizerSpec(model).load()

    def choose(conversations: list[Any], seed: int) -> list[str]:
        texts: list[Any] = [
            tokenizer.apply_chat_template(each, add_generation_prompt=True, tokenize=False) for each in conversations
        ]
        prompts = [Prompt(text, tuple(tokenizer.encode(text))) for text in texts]
        return [answers[0].text.strip() for answers in sampler.sample(prompts, 1, seed)]

    sampler.open(RolloutPolicy.load(model, tokenizer))
    try:
        openings = [opening(number) for number in range(count)]
        ways = choose(openings, 0)
        choices = choose([[*turns, *reply(way)] for turns, way in zip(openings, ways, strict=True)], 1)
    finally:
        sampler.close()
    return sum(REWARDS.get(game, 0.0) for game in zip(ways, choices, strict=True)) / count


def run(
    folder: Path,
    seed: int,
    rest: str = "uniform",
    games: int = 1000,
    epochs: int = 8,
    plays: int = 1000,
    betas: tuple[float, ...] = (5.0, 50.0),
) -> dict[str, float]:
    """Mean returns by method."""
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(seed)
    start = str(folder / "start")
    write_model(start)
    write_games(folder, games, seed)
    tokenizer, settings = TokenizerSpec(start), SamplingSettings(temperature=1.0, max_new_tokens=2)

    def sft(name: str, file: str) -> str:
        data = SFTDataModule([Source(str(folder / file), ignore=["reward"])], tokenizer, max_length=64, batch_size=16)
        return train(SFTModule(start), data, folder / name, epochs)

    behaviour = sft("behaviour", "games.jsonl")
    weighted = sft("weighted", "weighted.jsonl")
    data = TrajectoryDataModule(
        [Source(str(folder / "games.jsonl"))], tokenizer, max_length=64, row_length=64, batch_size=16
    )
    loss = UniformRest() if rest == "uniform" else DummyRest(MARKS.index("<|pad|>"))
    learned = train(QSFTModule(start, behaviour, loss=loss, alpha=0.1), data, folder / "q_sft", epochs)

    returns = {
        "SFT on all games": play(behaviour, TransformersSampler(settings, 500), plays),
        "SFT weighted by return": play(weighted, TransformersSampler(settings, 500), plays),
    }
    for beta in betas:
        sampler = QSFTSampler(behaviour, beta, sampling=settings, batch_size=500)
        returns[f"Q-SFT, beta {beta:g}"] = play(learned, sampler, plays)
    return returns


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="where models and games are written")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rest", choices=["uniform", "dummy"], default="uniform", help="what a label leaves goes to")
    asked = parser.parse_args(argv)
    found = [run(asked.folder / str(seed), seed, asked.rest) for seed in range(asked.seeds)]
    for method in found[0]:
        returns = [one[method] for one in found]
        print(f"{method:<24} {sum(returns) / len(returns):.3f}   ({', '.join(f'{one:.3f}' for one in returns)})")
    return found


if __name__ == "__main__":
    main()
