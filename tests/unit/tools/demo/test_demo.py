from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from lion_lightning.cli import main
from lion_lightning.tools.demo import (
    FAMILIES,
    FILES,
    Row,
    check,
    make_pairs,
    make_prompts,
    make_rows,
    make_tokenizer,
    make_written,
    solve,
    write_demo,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer()


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Say mibo again.", "mibo"),
        ("Write nule two times.", "nule nule"),
        ("Shout fudi!", "FUDI"),
        ("How do you spell rafuki?", "r-a-f-u-k-i"),
        ("Turn pido around.", "odip"),
        ("Put the letters of sogupi in order.", "giopsu"),
        ("First letter of pabo?", "p"),
        ("How long is nilago?", "6"),
        ("Which is larger, 9 or 70?", "70"),
        ("Put 8 5 3 1 in order, smallest first.", "1 3 5 8"),
        ("What comes after 3599?", "3600"),
    ],
)
def test_each_family_is_solved_and_checked(question: str, answer: str) -> None:
    assert solve(question) == answer
    assert check(question, f" {answer}\n")
    assert check(question, f"Well, {answer} maybe!")
    assert not check(question, f"{answer} x")


def test_a_question_that_no_wording_fits_is_named() -> None:
    with pytest.raises(ValueError, match="Sing mibo"):
        solve("Sing mibo.")


def families_of(question: str) -> dict[str, str]:
    """Families that a wording fits in, and the question's input under it."""
    splits = [(name, w.split("{}")) for name, family in FAMILIES.items() for w in family.wordings]
    return {
        name: question[len(before) : len(question) - len(after)]
        for name, (before, after) in splits
        if question.startswith(before) and question.endswith(after)
    }


def test_no_question_fits_the_wording_of_two_families() -> None:
    for row in make_prompts(300, Random(0), set()):
        assert list(families_of(row["question"])) == [row["family"]]


def test_rows_to_train_on_have_no_column_that_training_would_not_use() -> None:
    for make in (make_rows, make_written):
        assert make(1, Random(0), set())[0].keys() == {"messages"}
    assert make_pairs(1, Random(0), set())[0].keys() == {"prompt", "chosen", "rejected"}


def test_rows_hold_the_families_evenly_and_the_right_answers() -> None:
    rows = make_rows(110, Random(0), set())
    assert Counter(input_of(row).partition(":")[0] for row in rows) == dict.fromkeys(FAMILIES, 10)
    assert all(check(*(turn["content"] for turn in row["messages"])) for row in rows)
    assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant"]


def input_of(row: Row) -> str:
    """The family and the input that a row asks about."""
    question = row["question"] if "question" in row else (row.get("messages") or row["prompt"])[0]["content"]
    ((family, drawn),) = families_of(question).items()
    return f"{family}: {drawn}"


def test_no_two_rows_of_all_files_share_an_input(tmp_path: Path) -> None:
    sizes = {"train": 700, "validation": 110, "preferences": 400, "prompts": 300, "questions": 110, "ranked": 200}
    write_demo(tmp_path, **sizes)
    inputs = [input_of(row) for name in FILES for row in read(tmp_path / name)]
    assert len(set(inputs)) == len(inputs) == sum(sizes.values()) + 2 * sizes["validation"]


def test_more_rows_than_there_are_inputs_is_an_error_not_a_hang() -> None:
    taken = {f"larger: {a} or {b}" for a in range(100) for b in range(100)}
    with pytest.raises(ValueError, match="larger"):
        make_rows(len(FAMILIES), Random(0), taken)


def test_the_same_seed_writes_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_demo(tmp_path / name, train=20, validation=10, seed=seed)
    a, b, c = ({f.relative_to(r): f.read_bytes() for f in r.rglob("*.*")} for r in (tmp_path / x for x in "abc"))
    assert a == b
    assert a[Path("train.jsonl")] != c[Path("train.jsonl")]
    assert [len(read(tmp_path / "a" / f"{split}.jsonl")) for split in ("train", "validation")] == [20, 10]


def test_the_written_folder_loads_with_the_auto_classes_and_holds_no_weights(tmp_path: Path) -> None:
    write_demo(tmp_path, train=10, validation=10)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.vocab_size == len(tokenizer)
    assert tokenizer.tokenize("Well, po maybe!") == ["Well", ",", "\u0120", "p", "o", "\u0120maybe", "!"]
    assert config.tie_word_embeddings
    assert config.head_dim == 32
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_special_tokens_differ_and_no_bos_is_added(tokenizer: PreTrainedTokenizerBase) -> None:
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<|user|>", "<|end|>", "<|pad|>")]
    assert len({*marks, tokenizer.unk_token_id}) == 4
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|end|>", "<|pad|>", None)
    assert tokenizer("").input_ids == []


def test_words_of_the_wordings_are_whole_and_inputs_are_letters(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("Sort the letters of theno.") == [
        *("Sort", "\u0120the", "\u0120letters", "\u0120of", "\u0120"),
        *("t", "h", "e", "n", "o", "."),
    ]


@pytest.mark.parametrize("text", ["Spell übè  user.\n\n x", "日本 🦁\ttab", " in order, ", "<|im_start|>user\nSay"])
def test_any_text_comes_back_from_its_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_an_unwritable_folder_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", str(tmp_path / "file" / "demo")]) == 2
    assert str(tmp_path / "file" / "demo") in capsys.readouterr().err
