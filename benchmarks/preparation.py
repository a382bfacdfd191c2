"""Rows a second of preparing chat data, ours against TRL: ``python benchmarks/preparation.py``.

From a JSON Lines file to packed rows with masked prompts. The text is English that comes with Python, in the lengths
of GSM8K and Self-Instruct documents; the tokenizer, byte-level BPE, is trained on it first. TRL does it in each of its
ways once, and goes on in the fastest.
"""

from __future__ import annotations

import json
import random
import tempfile
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from batches import real_lengths
from figures import Figure, show
from lockstep import Worker

SIDES = Path(__file__).with_name("preparation_sides.py")
COMMAND = "python benchmarks/preparation.py"
DOCUMENTS, CAPACITY = 2_000, 2048
WORDS_A_TOKEN = 0.7
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\\n' }}{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WAYS = {
    f"{columns}, {processes or 'no'} processes": {"columns": columns, "processes": processes}
    for columns, processes in product(("messages", "prompt"), (None, 2))
}
"""TRL's: with the template's assistant mask, or as a prompt and a completion."""


def measure(rounds: int = 5) -> list[Figure]:
    """Rows a second of each side.

    Args:
        rounds: Times that each prepares the rows, after one that warms up.
    """
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        texts.write_text(json.dumps(list(documents(DOCUMENTS))), encoding="utf-8")
        make_tokenizer(folder)
        job = {"tokenizer": folder, "texts": str(texts), "capacity": CAPACITY}
        trials = _trials(job)
        best = max(trials, key=lambda name: trials[name])
        sides = {
            "ours": Worker(SIDES, "ours", json.dumps(job)),
            "trl": Worker(SIDES, "trl", json.dumps(job | WAYS[best])),
        }
        try:
            first = {side: worker.turn() for side, worker in sides.items()}
            speeds = [
                {side: DOCUMENTS / worker.turn()["seconds"] for side, worker in sides.items()} for _ in range(rounds)
            ]
        finally:
            for worker in sides.values():
                worker.close()
    counted = {f"{what}, {side}": first[side][what] for side in sides for what in ("rows", "tokens", "targets")}
    return [
        Figure(
            f"data: {DOCUMENTS:,} documents of GSM8K's and Self-Instruct's lengths, from a file to packed rows",
            "documents/s",
            [speed["ours"] for speed in speeds],
            [speed["trl"] for speed in speeds],
            f"TRL, {best}",
            least=2.0,
            command=COMMAND,
            extra={f"TRL in a trial, {name}": speed for name, speed in trials.items()} | counted,
        )
    ]


def documents(number: int) -> list[tuple[str, str]]:
    """Prompts and answers of real documents' lengths.

    Args:
        number: How many.
    """
    words = " ".join(topics.values()).split(" ")
    draw = random.Random(0)
    lengths = (real_lengths("documents") * (number // len(real_lengths("documents")) + 1))[:number]
    return [(_text(words, draw, prompt), _text(words, draw, answer)) for prompt, answer in lengths]


def make_tokenizer(folder: str) -> None:
    """Train a tokenizer and save it with a chat template.

    Args:
        folder: Where to.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=16384, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(topics.values(), trainer)
    kind: Any = PreTrainedTokenizerFast
    saved = kind(tokenizer_object=made, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=TEMPLATE)
    saved.save_pretrained(folder)


def _text(words: list[str], draw: random.Random, tokens: int) -> str:
    count = max(1, round(tokens * WORDS_A_TOKEN))
    start = draw.randrange(len(words) - count)
    return " ".join(words[start : start + count]).strip() or "so"


def _trials(job: dict[str, Any]) -> dict[str, float]:
    """Documents a second of TRL in each way, after a turn that warms up and waits until all have loaded."""
    workers = {name: Worker(SIDES, "trl", json.dumps(job | way)) for name, way in WAYS.items()}
    try:
        for worker in workers.values():
            worker.turn()
        return {name: DOCUMENTS / worker.turn()["seconds"] for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    show(measure())
