"""What ``lion inspect`` prints, on tiny files and on real ones as they lie."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lion_lightning.data.chat import ChatEncoder
from lion_lightning.data.inspection import inspect
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources import Source
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.types import Piece

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the repository")


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte, ChatML markers, pad == eos; the real model's tokenizer where LION_SMOLLM2 names it."""
    if folder := os.environ.get("LION_SMOLLM2"):
        return TokenizerSpec(folder).load()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer


Printed = Callable[..., str]


@pytest.fixture
def printed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    """Run ``inspect`` and return what it printed, in a wide window."""
    monkeypatch.setenv("COLUMNS", "200")

    def printed(*sources: Source, rows: int = 3, **options: Any) -> str:
        settings: dict[str, Any] = {"max_length": 2048, "cache_dir": tmp_path / "cache"} | options
        inspect(SFTDataModule(list(sources), byte_tokenizer(), **settings), rows)
        return capsys.readouterr().out

    return printed


def write(path: Path, *pairs: tuple[str, str]) -> Source:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
    return Source(str(path), name=path.stem)


def cells(output: str, name: str) -> list[str]:
    """The table row of a source."""
    line = next(line for line in output.splitlines() if re.match(rf"\W*{re.escape(name)}\s", line))
    return [cell.strip() for cell in re.split("[│┃|]", line) if cell.strip()]


def test_without_colours_the_trained_text_stands_in_brackets(printed: Printed, tmp_path: Path) -> None:
    output = printed(write(tmp_path / "one.jsonl", ("Is [this] it?", "Yes, [bold]it[/bold] is.")))
    assert (
        "<|im_start|>user\nIs [this] it?<|im_end|>\n<|im_start|>assistant\n[[Yes, [bold]it[/bold] is.<|im_end|>]]\n"
        in output
    )
    assert "one.jsonl:1)" in output


def test_with_colours_the_trained_text_is_bold_green(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    source = write(tmp_path / "one.jsonl", ("Hi", "Hello"))
    coloured = printed(source)
    assert "\x1b[1;32mHello<|im_end|>\x1b[0m" in coloured
    assert "[[" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[Hello<|im_end|>]]" in re.sub(r"\x1b\[[0-9;]*m", "", printed(source))


def test_long_lines_of_a_document_are_not_broken(printed: Printed, tmp_path: Path) -> None:
    answer = "word " * 100
    assert f"[[{answer}<|im_end|>]]" in printed(write(tmp_path / "one.jsonl", ("Hi", answer)))


def test_each_source_has_its_figures_and_every_loss_its_cause(printed: Printed, tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", ("1+1?", "2"), ("1+1?", "2"), ("2+2?", "4" * 100), ("?" * 100, "no"))
    second = write(tmp_path / "second.jsonl", ("1+1?", "2"), ("3+3?", "6"))
    # a byte a token: 7 tokens for user and 12 for assistant turns' fixed parts; markers are single tokens
    output = printed(first, second, max_length=60)
    short = 1 + len("user\n1+1?") + 1 + 1 + 1 + len("assistant\n2") + 1 + 1
    if "LION_SMOLLM2" not in os.environ:
        kept = short + 60
        assert cells(output, "first")[:3] == ["first", "4", "2"]
        assert cells(output, "first")[3] == str(kept)
        assert "first: left out, no supervised token: 1 (60 tokens)" in output
        assert cells(output, "second")[:4] == ["second", "2", "1", str(short)]
        assert cells(output, "second")[4] == f"{2 / short:.1%}"
    assert output.count("left out, duplicate: 1 (") == 2


def test_packing_efficiency_is_printed_for_both_sides(printed: Printed, tmp_path: Path) -> None:
    pairs = [(f"{n}+{n}?", str(2 * n)) for n in range(100)]
    output = printed(write(tmp_path / "sums.jsonl", *pairs), max_length=100, validation_share=0.3)
    figures = re.findall(r"([\d,]+) packed rows of 100 tokens, ([\d,]+) tokens in all: ([\d.]+)% full", output)
    assert len(figures) == 2
    for rows, tokens, share in figures:
        assert float(share) == pytest.approx(
            int(tokens.replace(",", "")) / int(rows), abs=0.06
        )  # of 100, so in percent
        assert 50 < float(share) <= 100


def test_every_source_is_shown(printed: Printed, tmp_path: Path) -> None:
    sources = [write(tmp_path / f"s{n}.jsonl", *((f"{n}{m}?", "x") for m in range(5))) for n in range(3)]
    assert [printed(*sources, rows=rows).count("[[x<|im_end|>]]") for rows in (0, 1, 3, 6)] == [0, 3, 3, 6]


def test_a_source_that_trains_nothing_is_refused(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = ChatEncoder.encode

    def masked(self: ChatEncoder, *arguments: Any) -> list[Piece]:
        return [piece._replace(supervised=piece.supervised & False) for piece in encode(self, *arguments)]

    monkeypatch.setattr(ChatEncoder, "encode", masked)
    with pytest.raises(ValueError, match=r"^source one: no token of its 1 examples is supervised"):
        printed(write(tmp_path / "one.jsonl", ("Hi", "Hello")))


@real
def test_gsm8k_as_it_lies(printed: Printed) -> None:
    output = printed(Source(str(SHARED / "gsm8k" / "train.jsonl"), split="train[:300]", name="gsm8k"), rows=1)
    assert cells(output, "gsm8k")[:3] == ["gsm8k", "300", "300"]
    question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    assert question in output
    trained = re.search(r"\[\[(.*?)\]\]", output, re.DOTALL)
    assert trained is not None
    assert trained.group(1).startswith("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n")
    assert trained.group(1).endswith("#### 72<|im_end|>")
    assert question not in trained.group(1)


def seed_task(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One Alpaca row for each instance of a Self-Instruct task."""
    for instance in row["instances"]:
        yield {"instruction": row["instruction"], **instance}


@real
def test_self_instruct_with_a_transform_of_two_lines(printed: Printed) -> None:
    source = Source(str(SHARED / "self_instruct" / "seed_tasks.jsonl"), name="seeds", transform=seed_task)
    output = printed(source, max_length=8192)
    assert cells(output, "seeds")[:3] == ["seeds", "175", "175"]
    assert "[[Yes, you can have 1 oatmeal banana protein shake and 4 strips of bacon." in output


@real
def test_sharegpt_conversations_as_they_lie(printed: Printed) -> None:
    output = printed(Source(str(SHARED / "fastchat" / "sharegpt_sample.json"), name="sharegpt"))
    assert cells(output, "sharegpt")[:2] == ["sharegpt", "500"]
    shown = output[output.index("sharegpt_sample.json[0]") :]
    # both answers of the first conversation are trained, neither question is
    assert "user\nWho are you?<|im_end|>" in shown
    assert "[[I am Vicuna, a language model trained by researchers from Large Model Systems" in shown
    assert "user\nHave a nice day!<|im_end|>" in shown
    assert "[[You too!<|im_end|>]]" in shown
