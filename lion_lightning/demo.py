"""A small instruction task made on the spot: data, tokenizer and model shape, with no network and nothing to download.

``python -m lion_lightning.demo OUT`` writes ``OUT/train.jsonl`` and ``OUT/validation.jsonl`` (conversations in the
``messages`` form) and ``OUT/model`` (a byte-level tokenizer with a ChatML template, and the config of a tiny Llama
without weights: a policy built from that config starts at random). A model of this size learns most of it in a minute
or two on two CPU cores, and :func:`check` says whether an answer is right, so that accuracy can be measured and answers
can be ranked.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

Row = dict[str, Any]

VOWELS = "aeiou"
CONSONANTS = "bdfgklmnprst"


class Family(NamedTuple):
    """Instructions of one kind.

    Attributes:
        wordings: Ways to ask, each with ``{}`` where the input goes.
        draw: Makes an input from a random generator.
        solve: The right answer to an input.
    """

    wordings: tuple[str, ...]
    draw: Callable[[Random], str]
    solve: Callable[[str], str]


def word(random: Random) -> str:
    """A made-up word of two or three syllables and no letter twice, such as ``tako`` or ``melisu``."""
    syllables = random.choice((2, 2, 3))
    return "".join(
        map("".join, zip(random.sample(CONSONANTS, syllables), random.sample(VOWELS, syllables), strict=True))
    )


def numbers(count: int, separator: str, below: int = 100) -> Callable[[Random], str]:
    """A draw of ``count`` different whole numbers from 0 to ``below - 1``."""
    return lambda random: separator.join(map(str, random.sample(range(below), count)))


FAMILIES: dict[str, Family] = {
    "repeat": Family(("Repeat {}.", "Say {} again.", "Please write {} once."), word, str),
    "twice": Family(("Say {} twice.", "Write {} two times."), word, lambda x: f"{x} {x}"),
    "capitals": Family(("Write {} in capitals.", "Shout {}!", "Put {} in upper case."), word, str.upper),
    "spell": Family(("Spell {}.", "How do you spell {}?", "Write {} with dashes."), word, "-".join),
    "reverse": Family(("Reverse {}.", "Write {} backwards.", "Turn {} around."), word, lambda x: x[::-1]),
    "sort letters": Family(
        ("Sort the letters of {}.", "Put the letters of {} in order."), word, lambda x: "".join(sorted(x))
    ),
    "first letter": Family(("What does {} begin with?", "First letter of {}?"), word, lambda x: x[0]),
    "count letters": Family(("Count the letters of {}.", "How long is {}?"), word, lambda x: str(len(x))),
    "larger": Family(
        ("Which is larger, {}?", "Which is more: {}?"), numbers(2, " or "), lambda x: max(x.split(" or "), key=int)
    ),
    "sort numbers": Family(
        ("Sort the numbers {}.", "Put {} in order, smallest first."),
        numbers(4, " ", below=10),
        lambda x: " ".join(sorted(x.split(), key=int)),
    ),
}


def solve(question: str) -> str:
    """The right answer to a question of any family.

    Raises:
        ValueError: If the question has none of the known wordings.
    """
    for family in FAMILIES.values():
        for wording in family.wordings:
            before, after = wording.split("{}")
            if question.startswith(before) and question.endswith(after):
                return family.solve(question[len(before) : len(question) - len(after)])
    raise ValueError(f"no wording of the demo task fits the question {question!r}")


def check(question: str, answer: str) -> bool:
    """Whether an answer is right; white space around it does not matter."""
    return answer.strip() == solve(question)


def make_rows(count: int, random: Random, taken: set[str]) -> list[Row]:
    """Conversations of one question and its right answer, the families in turn.

    Args:
        count: How many.
        random: Where the draws come from.
        taken: Family and input of every row so far, added to here: no two rows share an input, however it is worded.

    Raises:
        ValueError: If a family has no unused input left (each has room for about 5,000 rows).
    """
    return [_row(name, random, taken) for name in islice(cycle(FAMILIES), count)]


def _row(name: str, random: Random, taken: set[str]) -> Row:
    family = FAMILIES[name]
    drawn = _fresh(name, random, taken)
    taken.add(f"{name}: {drawn}")
    question = random.choice(family.wordings).format(drawn)
    turns = (("user", question), ("assistant", family.solve(drawn)))
    return {"family": name, "messages": [{"role": role, "content": content} for role, content in turns]}


def _fresh(name: str, random: Random, taken: set[str]) -> str:
    draws = (FAMILIES[name].draw(random) for _ in range(1000))
    drawn = next((drawn for drawn in draws if f"{name}: {drawn}" not in taken), None)
    if drawn is None:
        raise ValueError(f"the demo task has too few different inputs of the kind {name!r}; ask for fewer rows")
    return drawn


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with the words of the wordings whole and all else as single bytes: the model sees letters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from lion_lightning.models.tokenizer import read_template

    known = [*_known_words(), "system", "user", "assistant"]
    # A leading space belongs to the word, and byte-level vocabularies write it as this letter.
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + known + [f"\u0120{name}" for name in known]
    model = models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf" ?\b(?:{'|'.join(known)})\b|[\s\S]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=read_template("chatml"),
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def _known_words() -> list[str]:
    wordings = (wording for family in FAMILIES.values() for wording in family.wordings)
    return sorted({name for wording in wordings for name in re.findall(r"\w+", wording)})


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The shape of the tiny Llama: 0.8M parameters, 4 layers, hidden size 128 in 4 heads of 32, a tied head."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.08,  # about 1/sqrt(hidden size); with the usual 0.02 it learns to copy far too late
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_demo(out: str | Path, train: int = 6000, validation: int = 300, seed: int = 0) -> None:
    """Write the task's data, tokenizer and model config.

    Args:
        out: Folder to write to; made if missing.
        train: Rows of ``train.jsonl``.
        validation: Rows of ``validation.jsonl``; none shares its input with a training row of its family.
        seed: The same seed writes the same files.

    Raises:
        OSError: If the folder can't be written.
        ValueError: If there are not so many different rows.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    random, taken = Random(seed), set[str]()
    _write(out / "validation.jsonl", make_rows(validation, random, taken))
    _write(out / "train.jsonl", make_rows(train, random, taken))
    made = make_tokenizer()
    made.save_pretrained(out / "model")
    make_config(made).save_pretrained(out / "model")


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: ``python -m lion_lightning.demo OUT [--seed 0]``."""
    parser = argparse.ArgumentParser(prog="python -m lion_lightning.demo", description="Write the demo task.")
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same files (default: 0)")
    options = parser.parse_args(arguments)
    try:
        write_demo(options.out, seed=options.seed)
    except OSError as error:
        parser.error(f"can't write to {options.out}: {error.strerror or error}")
    print(f"{options.out}: wrote train.jsonl, validation.jsonl and model/ (tokenizer and config, no weights)")


if __name__ == "__main__":
    main()
