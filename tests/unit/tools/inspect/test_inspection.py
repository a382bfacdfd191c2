"""What ``lion inspect`` prints, on tiny files and on real ones as they lie."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lion_lightning.data.decontamination import Decontamination
from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.pairing import AllPairs
from lion_lightning.data.groups import GroupDataModule
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.data.unpaired import UnpairedDataModule
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.tools.inspect.inspection import inspect
from lion_lightning.types import SampleSegment
from tests.unit.data.letters import byte_tokenizer

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the repository")


def tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte; the real model's tokenizer where LION_SMOLLM2 names it."""
    folder = os.environ.get("LION_SMOLLM2")
    return TokenizerSpec(folder).load() if folder else byte_tokenizer()


Printed = Callable[..., str]


@pytest.fixture
def printed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    """Run ``inspect`` and return what it printed, in a wide window."""
    monkeypatch.setenv("COLUMNS", "200")

    def printed(*sources: Source, rows: int = 3, kind: Any = SFTDataModule, **options: Any) -> str:
        settings: dict[str, Any] = {"max_length": 2048, "cache_dir": tmp_path / "cache"} | options
        inspect(kind(list(sources), tokenizer(), **settings), rows)
        return capsys.readouterr().out

    return printed


def write(path: Path, *pairs: tuple[str, str]) -> Source:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
    return Source(str(path), name=path.stem)


def table(output: str, source: str) -> dict[str, str]:
    """Numbers of a source by name, from the first table."""
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in output.splitlines() if line[:1] in "│┃"]
    column = rows[0].index(source)
    return {row[0]: row[column] for row in reversed(rows) if len(row) == len(rows[0])}


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


def write_rows(path: Path, *rows: Any) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path), name=path.stem)


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def answers(*said: dict[str, Any]) -> dict[str, Any]:
    """A row of a round for each answer."""
    asked = {"role": "user", "content": "?"}
    return {"messages": [turn for each in said for turn in (asked, {"role": "assistant", **each})]}


def test_a_weight_other_than_1_is_said_and_what_the_row_excludes_is_context(printed: Printed, tmp_path: Path) -> None:
    half, none, double = ({"content": text, "weight": weight} for text, weight in (("a", 0.5), ("b", 0), ("c", 2)))
    output = printed(write_rows(tmp_path / "one.jsonl", answers(half, none, double, {"content": "d"})))
    shown = output[output.index("--- one") :]
    assert re.findall(r"assistant\n(.*)\n", shown) == [
        "[[0.5: a<|im_end|>]]",
        "b<|im_end|>",
        "[[2: c<|im_end|>]]",
        "[[d<|im_end|>]]",
    ]
    assert "6 of them trained" in shown  # three letters, each with <|im_end|>
    assert (
        "Marks: [[trained]]  [[0.5: trained with this weight]]  [[reasoning: trained]]  ((reasoning: not tr" in output
    )


@pytest.mark.parametrize(("train_reasoning", "marks"), [(True, ("[[", "]]")), (False, ("((", "))"))])
def test_reasoning_is_told_apart_from_the_answer(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_reasoning: bool, marks: tuple[str, str]
) -> None:
    made = byte_tokenizer()
    made.chat_template = THINKING
    monkeypatch.setitem(globals(), "tokenizer", lambda: made)
    row = answers({"content": "four", "reasoning_content": "2+2"}, {"content": "<think>3+3</think>six"})
    output = printed(write_rows(tmp_path / "one.jsonl", row), train_reasoning=train_reasoning)
    opening, closing = marks
    assert f"assistant\n{opening}reasoning: <think>\n2+2\n</think>\n\n{closing}[[four<|im_end|>]]\n" in output
    assert f"assistant\n{opening}reasoning: <think>3+3</think>{closing}[[six<|im_end|>]]\n" in output


def test_colors_say_weights_and_reasoning_without_brackets(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    said = {"content": "<think>3+3</think>six", "weight": 0.5}
    output = printed(write_rows(tmp_path / "one.jsonl", answers(said)))
    assert "\x1b[1;7;36m0.5, reasoning: \x1b[0m\x1b[1;36m<think>3+3</think>\x1b[0m" in output
    assert "\x1b[1;7;32m0.5: \x1b[0m\x1b[1;32msix<|im_end|>\x1b[0m" in output
    assert "[[" not in output
    assert "((" not in output


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
        first_row, second_row = table(output, "first"), table(output, "second")
        assert (first_row["rows"], first_row["documents"], first_row["tokens"]) == ("4", "2", str(kept))
        assert "first: left out, no supervised token: 1 (60 tokens)" in output
        assert (second_row["rows"], second_row["documents"], second_row["tokens"]) == ("2", "1", str(short))
        assert second_row["supervised"] == f"{2 / short:.1%}"
    assert output.count("left out, duplicate: 1 (") == 2


def test_what_repeats_a_benchmark_is_counted_and_shown(printed: Printed, tmp_path: Path) -> None:
    item = "how many apples are left if nine of ten are eaten today"
    source = write(tmp_path / "first.jsonl", (f"Tell me, {item}?", "1"), ("2+2?", "4"))
    rule = Decontamination([write(tmp_path / "test.jsonl", (item, "1"))])
    output = printed(source, document_filters=[rule], validation=[write(tmp_path / "held.jsonl", ("3+3?", "6"))])
    assert "first: left out, overlaps with test: 1 (" in output
    assert "first: benchmark test: 1 of 1 items (100.0%) found; rows left out: 1" in output
    assert f"first: {tmp_path}/first.jsonl:1 has 100% of the words of {tmp_path}/test.jsonl:1 (how many" in output
    assert output.count("benchmark test: 1 of 1") == 1  # not below the validation set, too


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

    def masked(self: ChatEncoder, *arguments: Any) -> list[SampleSegment]:
        return [piece._replace(supervised=piece.supervised & False) for piece in encode(self, *arguments)]

    monkeypatch.setattr(ChatEncoder, "encode", masked)
    with pytest.raises(ValueError, match=r"^source one: no token of its 1 examples is supervised"):
        printed(write(tmp_path / "one.jsonl", ("Hi", "Hello")))


def write_pairs(path: Path, *pairs: tuple[str, str, str]) -> Source:
    rows = [dict(zip(("question", "chosen", "rejected"), pair, strict=True)) for pair in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path), name=path.stem)


def test_both_answers_of_a_pair_are_marked_and_their_prompt_is_not(printed: Printed, tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "one.jsonl", ("Is [this] it?", "Yes, [bold]it[/bold] is.", "No."))
    output = printed(source, kind=PreferenceDataModule)
    assert "one.jsonl:1)" in output
    answers = re.search(
        r"<\|im_start\|>user\nIs \[this\] it\?<\|im_end\|>\n<\|im_start\|>assistant\n+"
        r"--- chosen, \d+ tokens, \d+ of them trained\n\[\[Yes, \[bold\]it\[/bold\] is\.<\|im_end\|>\]\]\n+"
        r"--- rejected, \d+ tokens, \d+ of them trained\n\[\[No\.<\|im_end\|>\]\]\n",
        output,
    )
    assert answers is not None


@pytest.mark.skipif("LION_SMOLLM2" in os.environ, reason="the figures are of one token a byte")
def test_each_source_of_pairs_has_its_figures_and_every_loss_its_cause(printed: Printed, tmp_path: Path) -> None:
    first = write_pairs(tmp_path / "first.jsonl", ("1+1?", "2", "333"), ("1+1?", "2", "333"), ("2+2?", "4", "4"))
    second = write_pairs(tmp_path / "second.jsonl", ("3+3?", "6", "7"))
    output = printed(first, second, kind=PreferenceDataModule, max_length=60)
    # a byte a token, markers are single tokens, every turn ends in a line break
    prompt = len("<user\n1+1?>\n<assistant\n")
    chosen, rejected = len("2>\n"), len("333>\n")
    pair = prompt + chosen + rejected
    assert table(output, "first") == {
        "source": "first",
        "rows": "3",
        "pairs": "1",
        "tokens": str(pair),
        "supervised": f"{(2 + 4) / pair:.1%}",
        "prompts": "1",
        "answers": "2",
        "prompt share": f"{prompt / pair:.1%}",
        "mean chosen": "3.0",
        "mean rejected": "5.0",
        "longest": str(prompt + rejected),
    }
    assert f"first: left out, identical answers: 1 ({prompt + 2 * chosen} tokens)" in output
    assert f"first: left out, duplicate: 1 ({pair} tokens)" in output
    total = pair + prompt + 2 * chosen
    assert f"1 packed rows of 120 tokens, {total} tokens in all: {total / 120:.1%} full" in output
    saved = f"{2 * prompt / (total + 2 * prompt):.1%}"
    assert f"sharing the prompt saves {2 * prompt} tokens, {saved} of separate sequences" in output


def test_answers_of_pairs_show_the_reasoning_that_is_not_compared(printed: Printed, tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "one.jsonl", ("2+2?", "<think>a</think>4", "<think>b</think>5"))
    output = printed(source, kind=PreferenceDataModule, train_reasoning=False)
    assert "\n((reasoning: <think>a</think>))[[4<|im_end|>]]\n" in output
    assert "\n((reasoning: <think>b</think>))[[5<|im_end|>]]\n" in output


RANKED = {"question": "2+2?", "answers": ["4", "5", "22"], "scores": [3, 0.5, 0]}
PROMPT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"


def test_a_ranked_row_is_shown_once_with_all_answers_their_scores_and_the_pairs(
    printed: Printed, tmp_path: Path
) -> None:
    output = printed(write_rows(tmp_path / "ranked.jsonl", RANKED), kind=PreferenceDataModule, pairing=AllPairs())
    shown = output[output.index("--- ranked") :]
    # without counts, and without the system turn that the template of a real tokenizer adds
    shown = re.sub(r", \d+ tokens, \d+ of them trained|<\|im_start\|>system\n[^<]*<\|im_end\|>\n", "", shown)
    assert shown == (
        f"--- ranked ({tmp_path}/ranked.jsonl:1)\n{PROMPT}\n"
        "--- answer 1, score 3\n[[4<|im_end|>]]\n\n"
        "--- answer 2, score 0.5\n[[5<|im_end|>]]\n\n"
        "--- answer 3, score 0\n[[22<|im_end|>]]\n\n"
        "--- pairs of answers: 1 over 2, 1 over 3, 2 over 3\n\n"
    )
    found = table(output, "ranked")
    assert (found["pairs"], found["prompts"], found["answers"]) == ("3", "1", "3")
    answers = len("4>\n5>\n22>\n")
    prompt = int(found["tokens"]) - answers
    # Three sequences of a prompt and two answers each: every prompt six times, every answer twice.
    assert f"sharing prompts and answers saves {5 * prompt + answers} tokens" in output


def test_a_pair_of_a_ranked_row_says_the_scores(printed: Printed, tmp_path: Path) -> None:
    output = printed(write_rows(tmp_path / "ranked.jsonl", RANKED), kind=PreferenceDataModule)
    assert "\n--- chosen, score 3, 3 tokens, 2 of them trained\n[[4" in output
    assert "\n--- rejected, score 0, 4 tokens, 3 of them trained\n[[22" in output
    assert "pairs of answers" not in output


def test_labeled_answers_are_shown_with_their_labels_and_the_mismatched_one(printed: Printed, tmp_path: Path) -> None:
    rows = [
        {"question": question, "answer": answer, "label": answer == "4"}
        for question, answer in (("2+2?", "4"), ("2+2?", "5"), ("1+2?", "4"))
    ]
    output = printed(write_rows(tmp_path / "thumbs.jsonl", *rows), kind=UnpairedDataModule)
    lines = [
        line.partition(", ")[2].partition(", ")[0] for line in output.splitlines() if line.startswith("--- answer")
    ]
    assert lines == [*("desirable", "undesirable", "mismatched (it answers another prompt)"), "desirable", lines[2]]
    unknown = [line for line in output.splitlines() if line.startswith("--- answer") and "mismatched" in line]
    assert [line.rpartition(", ")[2] for line in unknown] == ["0 of them trained"] * 2
    assert "thumbs: joined: 2 answers of 2 examples share 1 trees" in output
    assert "form: question + answer + label (3 rows)" in output
    found = table(output, "thumbs")
    assert [found[name] for name in ("answers", "prompts", "desirable", "mismatched")] == ["3", "2", "2", "2"]


def test_groups_are_shown_with_their_scores_and_no_pairs(printed: Printed, tmp_path: Path) -> None:
    output = printed(
        write_rows(tmp_path / "ranked.jsonl", RANKED, {**RANKED, "scores": [1, 1, 1]}), kind=GroupDataModule
    )
    assert "\n--- answer 3, score 0, 4 tokens, 3 of them trained\n" in output
    assert "pairs of answers" not in output
    assert "ranked: left out, scores all equal: 3 (" in output
    assert "form: question + answers + scores (2 rows)" in output


def test_nothing_is_said_of_sharing_where_nothing_is_shared(printed: Printed, tmp_path: Path) -> None:
    assert "sharing" not in printed(write(tmp_path / "one.jsonl", ("Hi", "Hello")))


def ranked_solutions(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Four model solutions, right or wrong; nothing where all are alike."""
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    scores = [float(row[model]["is_correct"]) for model in models]
    answers = [row[model]["solution"] for model in models]
    return [{"question": row["question"], "answers": answers, "scores": scores}] if 0 < sum(scores) < 4 else []


@pytest.mark.slow
@real
def test_right_and_wrong_solutions_of_gsm8k_are_561_pairs(printed: Printed) -> None:
    path = SHARED / "gsm8k" / "example_model_solutions.jsonl"
    source = Source(str(path), name="solutions", transform=ranked_solutions)
    output = printed(source, rows=1, kind=PreferenceDataModule, max_length=4096)
    assert (table(output, "solutions")["rows"], table(output, "solutions")["pairs"]) == ("1,000", "561")
    assert "solutions: rows skipped by the transform: 439" in output
    assert len(re.findall(r"\[\[.*?<\|im_end\|>\]\]", output, re.DOTALL)) == 2


@pytest.mark.slow
@real
def test_gsm8k_as_it_lies(printed: Printed) -> None:
    output = printed(Source(str(SHARED / "gsm8k" / "train.jsonl"), split="train[:300]", name="gsm8k"), rows=1)
    assert (table(output, "gsm8k")["rows"], table(output, "gsm8k")["documents"]) == ("300", "300")
    question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    assert question in output
    trained = re.search(r"\[\[(Natalia.*?)\]\]", output, re.DOTALL)
    assert trained is not None
    assert trained.group(1).startswith("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n")
    assert trained.group(1).endswith("#### 72<|im_end|>")
    assert question not in trained.group(1)


def seed_task(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One Alpaca row for each instance of a Self-Instruct task."""
    for instance in row["instances"]:
        yield {"instruction": row["instruction"], **instance}


@pytest.mark.slow
@real
def test_self_instruct_with_a_transform_of_two_lines(printed: Printed) -> None:
    source = Source(str(SHARED / "self_instruct" / "seed_tasks.jsonl"), name="seeds", transform=seed_task)
    output = printed(source, max_length=8192)
    assert (table(output, "seeds")["rows"], table(output, "seeds")["documents"]) == ("175", "175")
    assert "[[Yes, you can have 1 oatmeal banana protein shake and 4 strips of bacon." in output


@pytest.mark.slow
@real
def test_sharegpt_conversations_as_they_lie(printed: Printed) -> None:
    output = printed(Source(str(SHARED / "fastchat" / "sharegpt_sample.json"), name="sharegpt"))
    assert table(output, "sharegpt")["rows"] == "500"
    shown = output[output.index("sharegpt_sample.json[0]") :]
    # both answers of the first conversation are trained, neither question is
    assert "user\nWho are you?<|im_end|>" in shown
    assert "[[I am Vicuna, a language model trained by researchers from Large Model Systems" in shown
    assert "user\nHave a nice day!<|im_end|>" in shown
    assert "[[You too!<|im_end|>]]" in shown


def test_many_sources_stand_one_below_the_other(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"a_source_of_chats_{number}" for number in range(6)]
    sources = [write(tmp_path / f"{name}.jsonl", (f"{name}?", "2"), (f"{name}!", "3")) for name in names]
    output = printed(*sources)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line[:1] == "│"]
    assert [(row[0], row[1], row[2]) for row in cells] == [(name, "2", "2") for name in names]
