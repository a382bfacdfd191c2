"""The tokenized store: found by content, whole or not at all, and read without loading."""

import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from lion_lightning import cache
from lion_lightning.cache import atomic_write, cache_folder
from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import Completion, Example, Text, recognize
from lion_lightning.data.reports.row_messages import add_warning
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store import tokenize as tokenizing
from lion_lightning.data.store.tokenize import tokenize
from lion_lightning.data.store.tokenized import TokenTable
from lion_lightning.types import SampleSegment
from tests.unit.data.letters import LetterPairs, piece


class Letters:
    """One token a letter; of a completion only the completion is trained, of a text every letter but ``.``."""

    def __init__(self, name: str = "letters") -> None:
        self.name, self.calls = name, 0

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Example]:
        return [recognize(row, columns)]

    def encode_samples(self, examples: Sequence[Example], where: Sequence[str]) -> list[tuple[SampleSegment]]:
        self.calls += 1
        return [(self._one(example),) for example in examples]

    def _one(self, example: Example) -> SampleSegment:
        if isinstance(example, Completion):
            letters, known = example.prompt + example.completion, len(example.prompt)
            mask = [position >= known for position in range(len(letters))]
        else:
            letters = cast(Text, example).text
            mask = [letter != "." for letter in letters]
        return SampleSegment(np.array([ord(letter) for letter in letters], np.int32), np.array(mask, bool))

    def fingerprint(self) -> str:
        return self.name


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Source]:
    def write(*rows: Any, name: str = "a", **options: Any) -> Source:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Source(str(path), **options)

    return write


Write = Callable[..., Source]


def stores(folder: Path) -> set[str]:
    return {path.name for path in (folder / "tokens").iterdir()}


def test_what_is_read_is_what_was_encoded(write: Write, tmp_path: Path) -> None:
    table = tokenize(write({"prompt": "ab", "completion": "cd"}, {"text": "x.y"}), Letters(), tmp_path)
    assert (len(table), table.raw_rows, table.skipped_rows) == (2, 2, 0)
    assert (table.segment_lengths.tolist(), table.segment_offsets.tolist()) == ([4, 3], [0, 1, 2])
    assert (table.pairs.tolist(), table.pair_offsets.tolist()) == ([], [0, 0, 0])
    whole = table.segment(0, 0, 4)
    assert bytes(whole.input_ids.tolist()) == b"abcd"
    assert whole.supervised.tolist() == [False, False, True, True]
    part = table.segment(1, 1, 3)
    assert bytes(part.input_ids.tolist()) == b".y"
    assert part.supervised.tolist() == [False, True]
    assert part.input_ids.dtype == np.int32
    assert table.where(1) == f"{tmp_path}/a.jsonl:2"


def test_what_is_warned_of_is_counted_by_its_text_and_said_again_by_a_later_run(write: Write, tmp_path: Path) -> None:
    class Doubtful(Letters):
        def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Example]:
            add_warning("short" if len(row["text"]) < 3 else "long")
            return super().read(row, columns)

    source = write({"text": "a"}, {"text": "bb"}, {"text": "ccc"})
    assert tokenize(source, Doubtful(), tmp_path).messages["warning"] == {"short": 2, "long": 1}
    add_warning("nobody collects this")
    assert tokenize(source, Doubtful(), tmp_path).messages["warning"] == {"short": 2, "long": 1}


def test_rows_are_found_across_write_batches(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_BATCH_EXAMPLES", 3)
    words = ["a" * n for n in range(1, 11)]
    table = tokenize(write(*({"text": word} for word in words)), Letters(), tmp_path)
    assert [len(table.segment(row, 0, row + 1).input_ids) for row in range(10)] == list(range(1, 11))
    assert [table.where(row).rpartition(":")[2] for row in range(10)] == [str(n) for n in range(1, 11)]
    assert table.segment_lengths.tolist() == list(range(1, 11))


def test_targets_leave_out_the_first_token_of_a_span(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "_BATCH_EXAMPLES", 2)
    table = tokenize(write({"text": "ab.cd"}, {"text": "."}, {"text": "x"}, {"text": "..yz"}), Letters(), tmp_path)
    rows = np.array([3, 0, 0, 1, 2])
    starts, stops = np.array([0, 0, 2, 0, 0]), np.array([3, 5, 5, 1, 1])
    # "ab.cd" trains b, c, d; its part ".cd" c, d; "." and "x" have nothing to be predicted from; "..y" trains y
    assert table.targets(rows, starts, stops, np.ones(5, bool)).tolist() == [1, 3, 2, 0, 0]


def test_pairs_keep_their_pieces_their_values_and_the_prompt_that_they_share(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "_BATCH_EXAMPLES", 2)
    source = write({"pairs": ["ab CD E 1.5", "ab F GhI"]}, {"pairs": ["xyz KL m 0"]})
    table = tokenize(source, LetterPairs(), tmp_path)
    assert table.segment_lengths.tolist() == [2, 2, 1, 2, 1, 3, 3, 2, 1]
    assert table.segment_offsets.tolist() == [0, 3, 6, 9]
    assert (table.pairs.tolist(), table.pair_offsets.tolist()) == ([[0, 1]] * 3, [0, 1, 2, 3])
    assert (table.groups[0] == table.groups[1]).all()
    assert (table.groups[0] != table.groups[2]).any()
    assert len({tuple(digest) for digest in table.digests.tolist()}) == 3
    assert np.nan_to_num(table.values, nan=-1).tolist() == [-1, 1.5, 0.0, -1, -1, -1, -1, 0.0, 0.0]
    assert table.longest == 5  # ab GhI, and xyz KL
    assert bytes(table.segment(1, 3, 6).input_ids.tolist()) == b"GhI"


def test_prompts_keep_any_number_of_answers(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trees(Letters):
        """Rows of words: the prompt, then the answers, whose values are their numbers."""

        def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Any:
            prompt, *answers = row["words"].split()
            pairs = tuple((0, other) for other in range(1, len(answers)))
            values = tuple(map(float, range(len(answers))))
            return [PromptAnswers(tuple(Completion(prompt, answer) for answer in answers), values, pairs)]

        def encode_samples(self, examples: Sequence[Any], where: Sequence[str]) -> Any:
            return [
                (piece(tree.answers[0].prompt), *(piece(answer.completion, 0) for answer in tree.answers))
                for tree in examples
            ]

    monkeypatch.setattr(tokenizing, "_BATCH_EXAMPLES", 2)
    source = write(*({"words": words} for words in ("ab C", "cd EFG H iJ", "efg H ijKLM", "h IJ K L MnO")))
    table = tokenize(source, Trees(), tmp_path)
    assert table.segment_offsets.tolist() == [0, 2, 6, 9, 14]
    assert table.segment_lengths.tolist() == [2, 1, 2, 3, 1, 2, 3, 1, 5, 1, 2, 1, 1, 3]
    assert np.nan_to_num(table.values, nan=-1).tolist() == [-1, 0, -1, 0, 1, 2, -1, 0, 1, -1, 0, 1, 2, 3]
    assert (table.pair_offsets.tolist(), table.pairs.tolist()) == (
        [0, 0, 2, 3, 6],
        [[0, 1], [0, 2], [0, 1], [0, 1], [0, 2], [0, 3]],
    )
    assert table.longest == 8  # efg ijKLM
    assert bytes(table.segment(3, 5, 8).input_ids.tolist()) == b"MnO"
    # MnO, C, then E of EFG, H and iJ
    rows, starts = np.array([3, 0, 1, 1, 1]), np.array([5, 2, 2, 5, 6])
    assert table.targets(rows, starts, np.array([8, 3, 3, 6, 8]), np.zeros(5, bool)).tolist() == [2, 1, 1, 1, 1]


def test_the_segments_of_an_example_are_a_part_of_the_hash_of_tokens(write: Write, tmp_path: Path) -> None:
    class Split(Letters):
        """All of a text, or its first letter and the rest."""

        def encode_samples(self, examples: Sequence[Example], where: Sequence[str]) -> Any:
            cut = 1 if self.name == "split" else 2
            return [(piece(text), piece(text[:cut], 0), piece(text[cut:], 0)) for (text,) in cast(Any, examples)]

    source = write({"text": "ab"}, {"text": "cd"})
    assert tokenize(source, Split("split"), tmp_path).tokens != tokenize(source, Split(), tmp_path).tokens


def test_the_first_token_of_an_answer_is_a_target_and_that_of_a_prompt_is_not(write: Write, tmp_path: Path) -> None:
    table = tokenize(write({"pairs": ["AB CD eF", "a B c"]}), LetterPairs(), tmp_path)
    rows, roots = np.array([0, 0, 0, 1, 1, 1]), np.array([True, False, False] * 2)
    starts, stops = np.array([0, 2, 4, 0, 1, 2]), np.array([2, 4, 6, 1, 2, 3])
    assert table.targets(rows, starts, stops, roots).tolist() == [1, 2, 1, 0, 1, 0]
    # the prompt cut to B, chosen to C
    starts[0], stops[1] = 1, 3
    assert table.targets(rows[:3], starts[:3], stops[:3], roots[:3]).tolist() == [0, 1, 1]


def test_a_document_is_a_group_of_its_own(write: Write, tmp_path: Path) -> None:
    table = tokenize(write({"text": "ab"}, {"text": "cd"}), Letters(), tmp_path)
    assert (table.groups == table.digests).all()
    assert np.isnan(table.values).all()


def test_the_second_run_encodes_nothing(write: Write, tmp_path: Path) -> None:
    source, first, second = write({"text": "ab"}), Letters(), Letters()
    tokenize(source, first, tmp_path)
    assert tokenize(source, second, tmp_path).segment_lengths.tolist() == [2]
    assert (first.calls, second.calls) == (1, 0)


def shout(row: dict[str, Any]) -> dict[str, Any]:
    return {"text": row["text"].upper()}


def whisper(row: dict[str, Any]) -> dict[str, Any]:
    return {"text": row["text"].lower()}


def test_everything_that_changes_the_tokens_changes_the_key(write: Write, tmp_path: Path) -> None:
    rows = [{"text": "ab", "other": "cd"}, {"text": "efg", "other": "h"}]
    sources = [
        write(*rows),
        write(*rows, split="train[1:]"),
        write(*rows, fraction=0.5),
        write(*rows, fraction=0.5, seed=3),
        write(*rows, columns={"text": "other"}),
        write(*rows, transform=shout),
        write(*rows, transform=whisper),
        write(*reversed(rows), name="b"),
    ]
    for source in sources:
        tokenize(source, Letters(), tmp_path)
    assert len(stores(tmp_path)) == len(sources)
    tokenize(sources[0], Letters("another tokenizer"), tmp_path)
    assert len(stores(tmp_path)) == len(sources) + 1
    tokenize(write({"text": "changed"}), Letters(), tmp_path)  # the same path, other bytes
    assert len(stores(tmp_path)) == len(sources) + 2


def test_a_repeat_does_not_tokenize_again(write: Write, tmp_path: Path) -> None:
    tokenize(write({"text": "ab"}), Letters(), tmp_path)
    tokenize(write({"text": "ab"}, fraction=2.5, seed=9, name="a"), Letters(), tmp_path)
    assert len(stores(tmp_path)) == 1


def test_an_edit_of_a_transform_is_noticed(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where only a helper of it changed."""
    from importlib import import_module, reload

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    code = "def helper(t):\n    return t + {}\n\ndef change(row):\n    return dict(text=helper(row['text']))\n"
    (tmp_path / "my_rows.py").write_text(code.format("'x'"))
    module = import_module("my_rows")
    before = tokenize(write({"text": "ab"}, transform=module.change), Letters(), tmp_path)
    (tmp_path / "my_rows.py").write_text(code.format("'yes'"))
    import linecache

    linecache.clearcache()
    after = tokenize(write({"text": "ab"}, transform=reload(module).change), Letters(), tmp_path)
    assert (before.segment_lengths.tolist(), after.segment_lengths.tolist()) == ([3], [5])


def nothing_of_short_ones(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"text": letter * 2} for letter in row["text"]] if len(row["text"]) > 1 else []


def test_rows_that_a_transform_skips_are_counted(write: Write, tmp_path: Path) -> None:
    source = write({"text": "a"}, {"text": "bcd"}, transform=nothing_of_short_ones)
    table = tokenize(source, Letters(), tmp_path)
    assert (table.raw_rows, table.skipped_rows, len(table)) == (2, 1, 3)
    assert {table.where(row) for row in range(3)} == {f"{source.path}:2"}


def test_a_transform_that_skips_all_gives_an_empty_table(write: Write, tmp_path: Path) -> None:
    table = tokenize(write({"text": "a"}, transform=nothing_of_short_ones), Letters(), tmp_path)
    assert (len(table), table.digests.shape) == (0, (0, 2))


def test_a_run_that_fails_leaves_no_half_part(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl:2: .*format"):
        tokenize(write({"text": "a"}, {"nonsense": 1}), Letters(), tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    assert os.listdir(folder) == []


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "flipped", "list", "null", "other"])
def test_a_damaged_store_is_made_again_with_a_warning(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    source = write({"text": "ab"})
    (path,) = tokenize(source, Letters(), tmp_path).folder.glob("*.arrow")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    if damage == "gone":
        path.unlink()
    if damage == "flipped":  # a token, which nothing but a checksum can know
        content = bytearray(path.read_bytes())
        content[content.index(np.array([97, 98], np.int32).tobytes())] ^= 1
        path.write_bytes(content)
    manifests = {"manifest": "{", "list": "[1]", "null": "null", "other": '{"rows": 1, "bytes": null}'}
    if damage in manifests:
        path.with_suffix(".json").write_text(manifests[damage])
    again = Letters()
    assert tokenize(source, again, tmp_path).segment_lengths.tolist() == [2]
    assert again.calls == 1
    assert "damaged" in caplog.text
    assert str(path.parent) in caplog.text


def test_a_table_in_a_worker_does_not_read_all_files_again(write: Write, tmp_path: Path) -> None:
    (path,) = tokenize(write({"text": "ab"}), Letters(), tmp_path).folder.glob("*.arrow")
    path.with_suffix(".json").write_text(path.with_suffix(".json").read_text().replace('"crc32": "', '"crc32": "0'))
    assert len(TokenTable(path.parent)) == 1
    with pytest.raises(ValueError, match="its bytes are not those that were written"):
        TokenTable(path.parent, check=True)


def test_drafts_of_killed_runs_are_removed_by_the_next_that_makes_a_store(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_GRACE", -1.0)
    with atomic_write(tokenize(write({"text": "a"}), Letters(), tmp_path).folder / "x") as temporary:
        name = temporary.name
        other = temporary.with_name(name[:-1] + "y")
        other.write_text("of a killed run")
        tokenize(write({"text": "b"}, name="b"), Letters(), tmp_path)
        assert temporary.exists()  # this one's writer lives
        assert not other.exists()


@pytest.mark.parametrize("stage", ["write_batch", "close"])
def test_a_full_disk_names_the_store(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    class Full:
        def __init__(self, *_: Any) -> None: ...

        def write_batch(self, _: Any) -> None:
            self.fail("write_batch")

        def close(self) -> None:
            self.fail("close")

        def fail(self, at: str) -> None:
            if at == stage:
                raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.ipc.new_stream", Full)
    with pytest.raises(ValueError, match=r"tokens/\w+: cannot write tokenized data \(No space left on device\)"):
        tokenize(write({"text": "a"}), Letters(), tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/tokens/\w+: cannot write tokenized data .*LION_CACHE"):
        tokenize(write({"text": "ab"}), Letters(), tmp_path / "file")


def test_where_the_stores_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LION_CACHE", "/lion")
    assert cache_folder("tokens") == Path("/lion/tokens")
    assert cache_folder("tokens", "/mine") == Path("/mine/tokens")
    monkeypatch.delenv("LION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder("tokens") == Path("/xdg/lion_lightning/tokens")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("tokens") == Path.home() / ".cache/lion_lightning/tokens"


def test_a_table_travels_to_workers_as_its_path(write: Write, tmp_path: Path) -> None:
    table = tokenize(write({"text": "ab" * 5000}), Letters(), tmp_path)
    letter = pickle.dumps(table)
    assert len(letter) < 1000
    assert pickle.loads(letter).segment_lengths.tolist() == [10000]


def test_equal_examples_of_two_sources_have_equal_digests(write: Write, tmp_path: Path) -> None:
    one = tokenize(write({"text": "ab"}, {"text": "cd"}), Letters(), tmp_path)
    two = tokenize(write({"text": "cd", "more": 1}, name="b"), Letters(), tmp_path)
    assert (one.digests[1] == two.digests[0]).all()
    assert (one.digests[0] != two.digests[0]).any()


# --- weights of targets


class Weighted(Letters):
    """A digit is a token that counts so much, in halves; rows without digits have no weights."""

    def _one(self, example: Example) -> SampleSegment:
        piece = super()._one(example)
        counts = np.array([(ord(letter) - ord("0")) / 2 for letter in cast(Text, example).text], np.float32)
        return piece._replace(weights=counts) if counts[0] < 5 else piece


def test_weights_are_read_as_they_were_encoded_whole_and_in_part(write: Write, tmp_path: Path) -> None:
    table = tokenize(write({"text": "11144"}, {"text": "abc"}, {"text": "3"}), Weighted(), tmp_path)
    pieces = [table.segment(row, 0, length) for row, length in enumerate(table.segment_lengths.tolist())]
    weights = [None if piece.weights is None else piece.weights.tolist() for piece in pieces]
    assert weights == [[0.5, 0.5, 0.5, 2, 2], None, [1.5]]
    part = table.segment(0, 2, 4).weights
    assert part is not None
    assert part.dtype.name == "float32"
    assert part.tolist() == [0.5, 2]


def test_weights_are_kept_a_run_and_not_a_token(write: Write, tmp_path: Path) -> None:
    def size(text: str) -> int:
        source = write({"text": text}, name=text[-3:])
        return sum(path.stat().st_size for path in tokenize(source, Weighted(), tmp_path).folder.glob("*.arrow"))

    assert size("1" * 4000 + "4" * 4000) - size("a" * 8000) < 256  # two runs, padded, where a float a token is 32,000


def test_reasoning_is_read_as_it_was_found_next_to_weights_and_alone(write: Write, tmp_path: Path) -> None:
    class Reasoning(Weighted):
        def _one(self, example: Example) -> SampleSegment:
            piece = super()._one(example)
            thought = np.isin(piece.input_ids, [ord("1"), ord("b")])
            return piece._replace(reasoning=thought if thought.any() else None)

    table = tokenize(write({"text": "1144"}, {"text": "abb"}, {"text": "ac"}), Reasoning(), tmp_path)
    pieces = [table.segment(row, 0, length) for row, length in enumerate(table.segment_lengths.tolist())]
    found = [None if piece.reasoning is None else piece.reasoning.tolist() for piece in pieces]
    assert found == [[True, True, False, False], [False, True, True], None]
    assert [piece.weights is None for piece in pieces] == [False, True, True]
    part = table.segment(1, 0, 2).reasoning
    assert part is not None
    assert part.tolist() == [False, True]


def test_other_weights_are_other_tokens(write: Write, tmp_path: Path) -> None:
    class Doubled(Weighted):
        def _one(self, example: Example) -> SampleSegment:
            piece = super()._one(example)
            return piece if piece.weights is None else piece._replace(weights=2 * piece.weights)

    source = write({"text": "11"}, {"text": "ab"})
    tables = [tokenize(source, encoder, tmp_path) for encoder in (Weighted("one"), Doubled("two"), Letters("none"))]
    assert len({table.tokens for table in tables}) == 3
    assert tokenize(source, Weighted("again"), tmp_path).tokens == tables[0].tokens
