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
from interleaved import Worker, ended
from measurements import Measurement, show

WORKERS = Path(__file__).with_name("preparation_workers.py")
COMMAND = "python benchmarks/preparation.py"
DOCUMENTS, CAPACITY = 2_000, 2048
OURS, COUNTED = "ours", ("rows", "tokens", "targets")
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


def measure(rounds: int = 5) -> list[Measurement]:
    """Rows a second of each side.

    Args:
        rounds: Times that each prepares the rows, after one that warms up.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(folder)
        files = write(Path(folder), list(documents(DOCUMENTS)), turns=rounds + 2)
        job = {"tokenizer": folder, "files": files, "capacity": CAPACITY}
        jobs = {OURS: job} | {name: job | way for name, way in WAYS.items()}
        with ended({name: _worker(name, job) for name, job in jobs.items()}) as workers:
            # The first turns warm up, after all have loaded; TRL's next ones are the trial.
            first = {name: worker.turn() for name, worker in workers.items()}
            trials = {name: _speed(workers[name]) for name in WAYS}
            best = max(trials, key=lambda name: trials[name])
            orders = [(OURS, best), (best, OURS)]
            speeds = [{name: _speed(workers[name]) for name in orders[turn % 2]} for turn in range(rounds)]
    sides = {OURS: OURS, "trl": best}
    counted = {f"{what}, {side}": first[name][what] for side, name in sides.items() for what in COUNTED}
    return [
        Measurement(
            f"data: {DOCUMENTS:,} documents of GSM8K's and Self-Instruct's lengths, from a file to packed rows",
            "documents/s",
            [speed[OURS] for speed in speeds],
            [speed[best] for speed in speeds],
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


def write(folder: Path, texts: list[tuple[str, str]], turns: int) -> dict[str, list[str]]:
    """The documents as files, other ones each turn, lest a library finds what it has done before.

    Args:
        folder: Where to.
        texts: Prompts and answers.
        turns: How many files.

    Returns:
        Their paths: rows of ``messages``, and rows of a ``prompt`` and a completion.
    """
    found: dict[str, list[str]] = {"messages": [], "prompt": []}
    for turn, columns in product(range(turns), found):
        path = folder / f"{columns}{turn}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for prompt, answer in texts:
                print(json.dumps(_row(columns, f"{turn}: {prompt}", answer)), file=file)
        found[columns].append(str(path))
    return found


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


def _row(columns: str, prompt: str, answer: str) -> dict[str, Any]:
    asked, said = {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}
    return {"messages": [asked, said]} if columns == "messages" else {"prompt": [asked], "completion": [said]}


def _text(words: list[str], draw: random.Random, tokens: int) -> str:
    count = max(1, round(tokens * WORDS_A_TOKEN))
    start = draw.randrange(len(words) - count)
    return " ".join(words[start : start + count]).strip() or "so"


def _worker(name: str, job: dict[str, Any]) -> Worker:
    return Worker(WORKERS, OURS if name == OURS else "trl", json.dumps(job))


def _speed(worker: Worker) -> float:
    """Documents a second of a turn."""
    speed: float = DOCUMENTS / worker.turn()["seconds"]
    return speed


if __name__ == "__main__":
    show(measure())
