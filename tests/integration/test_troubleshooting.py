"""Every message that the page on troubleshooting quotes is one that the library gives."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lion_lightning import (
    AdapterOffReference,
    DPOModule,
    NoReference,
    PolicySpec,
    PreferenceDataModule,
    SFTDataModule,
    Source,
    TokenizerSpec,
)
from lion_lightning.data.packing.best_fit import BestFit
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.losses import ChosenNLLLoss, SigmoidLoss, WeightedSum
from lion_lightning.modules.trainer.batch_kinds import require_pairs
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.types import Sample, SampleSegment
from tests.tiny import config, pairs, policy, row
from tests.unit.data.letters import byte_tokenizer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
CELLS = re.findall(r"^\| (`.+?`) \| ", PAGE, re.M)  # the first column of each table
QUOTES = [quote for cell in CELLS for quote in re.findall(r"`(.+?)`", cell)]
LEAST = 14
"""Fixed characters that identify a message; fewer would match anything."""


@cache
def texts() -> list[str]:
    """Each string of the package, with a NUL where a value is filled in."""
    files = [*(ROOT / "lion_lightning").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]
    return [text for file in files for text in strings(ast.parse(file.read_text("utf-8")))]


def strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(?:\.\d)?[sdrgf]", "\0", node.value)
        else:
            yield from strings(node)


def pattern(quote: str) -> re.Pattern[str]:
    """What a quote matches: ``...`` stands for anything, a quoted value included."""
    parts = re.split(r"'?\.\.\.'?", quote.removeprefix("...: "))
    return re.compile(".*".join(map(re.escape, parts)), re.DOTALL)


def is_given(quote: str) -> bool:
    return any(pattern(quote).search(text) for text in texts())


def test_the_page_has_messages_enough() -> None:
    assert len(QUOTES) > 30
    assert len(set(QUOTES)) == len(QUOTES)


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quote_is_long_enough_to_tell_messages_apart(quote: str) -> None:
    assert len(quote.replace("...", "")) >= LEAST


@pytest.mark.parametrize("quote", [quote for quote in QUOTES if "is not accepted" not in quote])
def test_every_quoted_message_stands_in_the_code(quote: str) -> None:
    assert is_given(quote)


def test_a_message_that_nobody_gives_is_found_out() -> None:
    assert not is_given("...: unknown shape: the row's keys are ...")
    assert not is_given("WeightedSum: ... losses and ... weights")


def read(text: str, kind: type[SFTDataModule | PreferenceDataModule] = SFTDataModule, **options: Any) -> None:
    """Write a file of rows and set up the data module that is to train on it."""
    name = "pairs.jsonl" if kind is PreferenceDataModule else "chats.jsonl"
    Path(name).write_text(text, "utf-8")
    tokenizer = options.pop("tokenizer", byte_tokenizer())
    data: Any = kind([Source(name)], tokenizer, max_length=64, cache_dir=Path("cache"), **options)
    data.prepare_data()
    data.setup("fit")


def template(text: str | None) -> Any:
    """A tokenizer with this chat template."""
    tokenizer: Any = byte_tokenizer()
    tokenizer.name_or_path, tokenizer.chat_template = "my-tokenizer", text
    return tokenizer


def against_nothing() -> None:
    losses = [SigmoidLoss(), ChosenNLLLoss()]
    DPOModule(
        PolicySpec(config=config()),
        tokenizer=TokenizerSpec("my-model"),
        loss=WeightedSum(losses, [1.0, 1.0]),
        reference=NoReference(),
    )


def other_batch_size() -> None:
    samples = [Sample((SampleSegment(np.arange(3, dtype=np.int32), np.ones(3, dtype=np.bool_)),), n) for n in range(9)]
    loaders = [PackedLoader(samples, np.full(9, 3), capacity=6, batch_size=size) for size in (1, 2)]
    batches = iter(loaders[0])
    next(batches), next(batches)
    loaders[1].load_state_dict(loaders[0].state_dict())
    next(iter(loaders[1]))


CHAT = '{"question": "2+2?", "answer": "4"}\n'
TURN = '{"role": "user", "content": "2+2?"}'
CONTEXT = '{"role": "assistant", "content": "4", "train": false}'
CAUSES: dict[str, Callable[[], Any]] = {
    "unknown form": lambda: read('{"query": "2+2?", "reply": "4"}\n'),
    "missing side": lambda: read('{"prompt": "2+2?", "chosen": "4"}\n', PreferenceDataModule),
    "broken line": lambda: read(CHAT + '{"question": \n'),
    "a picture": lambda: read('{"image": "a.png", "conversations": [' + TURN + ", " + CONTEXT + "]}\n"),
    "two prompts": lambda: read(f'{{"messages": [{TURN}, {CONTEXT}], "prompt": "3+3?"}}\n'),
    "two user turns": lambda: read(f'{{"messages": [{TURN}, {TURN}]}}\n'),
    "nothing supervised": lambda: read(f'{{"messages": [{TURN}, {CONTEXT}]}}\n' * 424),
    "too long a pair": lambda: read(
        '{"question": "2+2?", "chosen": "4", "rejected": "5"}\n', PreferenceDataModule, row_length=20
    ),
    "no such file": lambda: Source("chats.jsonl").open(),
    "no chat template": lambda: read(CHAT, tokenizer=template(None)),
    "no folder of a tokenizer": TokenizerSpec("./smollm").load,
    "no folder of a model": PolicySpec("runs/sft/export").build,
    "no adapters": lambda: AdapterOffReference()(pairs((3, 2, 2)), policy()),
    "a loss with a reference, and none": against_nothing,
    "weights of a sum": lambda: WeightedSum([SigmoidLoss(), ChosenNLLLoss()], [1.0]),
    "documents where pairs belong": lambda: require_pairs(row(), DPOModule("m")),
    "a document longer than a row": lambda: BestFit().rows(np.array([9]), 8, np.random.default_rng(0)),
    "another batch size": other_batch_size,
    "greedy draws": lambda: SamplingSettings(temperature=0.0).check_num_answers(4),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_its_cause_brings_a_message_of_the_page(cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = "|".join(pattern(quote).pattern for quote in QUOTES)
    with pytest.raises(ValueError, match=rf"(?s:{quoted})"):
        CAUSES[cause]()
