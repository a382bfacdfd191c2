"""Documents chosen by when they were learnt: which, how many, for what cause, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.formats.sft import recognize
from lion_lightning.data.learning import LatestLearnt
from lion_lightning.data.learning.__main__ import main
from lion_lightning.data.learning.record import RecordedLosses
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.digests import content_digest
from tests.unit.data.learning.recorded import recorded
from tests.unit.data.letters import byte_tokenizer

PERCENTAGES = (0.9, 0.2, 0.5, 0.4)


def row(number: int) -> dict[str, Any]:
    return {"question": f"{number} + {number}?", "answer": str(2 * number)}


def lengths(texts: Sequence[str]) -> list[list[int]]:
    """An embedding of a text: 0 for answers of one digit, 9 for the others."""
    return [[9 * (len(text) > len("1 + 1?\n2"))] for text in texts]


def a_row_too_few(texts: Sequence[str]) -> list[list[int]]:
    return lengths(texts)[1:]


def a_word(texts: Sequence[str]) -> list[list[str]]:
    return [[text] for text in texts]


def none_at_all(texts: Sequence[str]) -> Any:
    return np.zeros((len(texts), 0))


def failing(texts: Sequence[str]) -> Any:
    raise RuntimeError("no model\nhere")


class Bench:
    """A record of some rows, and data modules that choose among them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "learning.arrow"

    def record(self, percentages: Sequence[float], **options: Any) -> RecordedLosses:
        """A record of rows by their learning percentages: perplexities of 11, 11 - 10 LP and 1; none of NaN."""
        moments = [(11, 11 - 10 * one, 1) if one == one else (5, 4, 5) for one in percentages]
        digests = b"".join(content_digest(recognize(row(number))) for number in range(len(moments)))
        losses = replace(recorded(moments, **options), digests=np.frombuffer(digests, np.uint64).reshape(-1, 2))
        losses.write(self.path)
        return losses

    def source(self, numbers: Sequence[int] = range(len(PERCENTAGES)), **options: Any) -> Source:
        (self.folder / "a.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in numbers))
        return Source(str(self.folder / "a.jsonl"), name="a", **options)

    def data(self, rule: LatestLearnt, source: Source | None = None, kind: Any = SFTDataModule, **options: Any) -> Any:
        options = {"max_length": 64, "cache_dir": self.folder / "cache", "document_filters": [rule]} | options
        data = kind([source or self.source()], byte_tokenizer(), **options)
        data.prepare_data()
        data.setup()
        return data

    def kept(self, share: float, source: Source | None = None, **options: Any) -> list[int]:
        """Lines of the rows that are kept."""
        documents = self.data(LatestLearnt(str(self.path), share, **options), source).train_mixture.documents
        return [int(documents.where(number).rpartition(":")[2]) for number in range(len(documents))]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_those_of_the_lowest_percentage_are_kept_and_the_others_counted(bench: Bench) -> None:
    bench.record(PERCENTAGES)
    data = bench.data(LatestLearnt(str(bench.path), 0.5))
    documents = data.train_mixture.documents
    assert [Path(documents.where(number)).name for number in range(2)] == ["a.jsonl:2", "a.jsonl:4"]
    assert data.reports[0].left_out["learnt early"].documents == 2
    (described,) = json.loads(json.dumps(data.description()))["document_filters"]
    assert described["found"] == [
        {
            "source": "a",
            "documents": 4,
            "kept": 2,
            "mean_learning_percentage": pytest.approx(0.5),
            "mean_learning_percentage_kept": pytest.approx(0.3),
        }
    ]
    assert data.document_filters.lines()[:2] == [
        "a: 2 of 4 documents kept (latest); mean learning percentage of these 0.300, of all 0.500",
        "a: learnt last: a.jsonl:2 (learning percentage 0.200)",
    ]


@pytest.mark.parametrize(
    ("keep", "cause", "rows"),
    [("earliest", "learnt late", [1, 3]), ("middle", "learnt early or late", [3, 4]), ("random", "not drawn", None)],
)
def test_the_controls_of_the_paper(keep: Any, cause: str, rows: list[int] | None, bench: Bench) -> None:
    bench.record(PERCENTAGES)
    kept = bench.kept(0.5, keep=keep)
    assert len(kept) == 2
    assert rows is None or kept == rows
    assert bench.data(LatestLearnt(str(bench.path), 0.5, keep=keep)).reports[0].left_out[cause].documents == 2


def test_what_is_drawn_at_random_rests_on_the_seed_and_the_content(bench: Bench) -> None:
    bench.record([0.5] * 20)
    drawn = bench.kept(0.25, bench.source(range(20)), keep="random")
    assert drawn == bench.kept(0.25, bench.source(range(20)), keep="random")
    assert drawn != bench.kept(0.25, bench.source(range(20)), keep="random", seed=1)
    # equal percentages are ordered by content, too: other lines, the same rows
    for options in ({"keep": "random"}, {}):
        forward = {line - 1 for line in bench.kept(0.25, bench.source(range(20)), **options)}
        backward = {20 - line for line in bench.kept(0.25, bench.source(range(19, -1, -1)), **options)}
        assert forward == backward


@pytest.mark.parametrize("share", [0.03, 0.29, 1.0])
def test_exactly_the_share_is_kept(share: float, bench: Bench) -> None:
    bench.record(np.random.default_rng(0).random(50).tolist())
    assert len(bench.kept(share, bench.source(range(50)))) == round(share * 50)


def test_the_approximate_percentage_is_of_the_first_epoch_alone(bench: Bench) -> None:
    """Perplexities 10, 4, 2 and 10, 5, 4: LP is 0.75 and 0.83, its approximation 0.6 and 0.5."""
    losses = bench.record([0.5, 0.5])
    nll = np.log(np.array([[10, 10], [4, 5], [2, 4]])) * losses.targets
    replace(losses, nll=nll).write(bench.path)
    assert bench.kept(0.5, bench.source(range(2))) == [1]
    assert bench.kept(0.5, bench.source(range(2)), approximate=True) == [2]


def test_documents_without_a_percentage_are_left_out_and_counted_apart(bench: Bench) -> None:
    bench.record([0.9, np.nan, 0.2, 0.5], targets=[2, 2, 2, 0])
    data = bench.data(LatestLearnt(str(bench.path), 0.5))  # of the two that have one
    assert {cause: counts.documents for cause, counts in data.reports[0].left_out.items()} == {
        "no supervised token when losses were recorded": 1,
        "no learning percentage": 1,
        "learnt early": 1,
    }
    assert Path(data.train_mixture.documents.where(0)).name == "a.jsonl:3"


def test_each_cluster_gives_its_share(bench: Bench) -> None:
    """Five texts are short and five long. All the short ones are learnt later, and yet each kind gives two of four."""
    bench.record([0.1, 0.2, 0.3, 0.15, 0.25, *(0.8, 0.7, 0.9, 0.6, 0.5)])
    source = bench.source(range(10))
    assert bench.kept(0.4, source) == [1, 2, 4, 5]
    assert bench.kept(0.4, source, clusters=2, embed=f"{__name__}.lengths") == [1, 4, 9, 10]


def test_what_validates_is_not_chosen_and_needs_no_losses(bench: Bench) -> None:
    plain = SFTDataModule(
        [bench.source(range(40))], byte_tokenizer(), max_length=64, validation_share=0.2, cache_dir=bench.folder
    )
    plain.prepare_data()
    plain.setup()
    losses = bench.record([0.5] * 40)
    documents = plain.train_mixture.documents  # type: ignore[union-attr]
    trained = np.unique([documents[number].index for number in range(len(documents))])
    losses.take(trained).write(bench.path)  # as a run with the same share of validation records them
    data = bench.data(LatestLearnt(str(bench.path), 0.5), bench.source(range(40)), validation_share=0.2)
    assert len(data.train_mixture.documents) == round(len(trained) / 2)
    assert len(data.validation_mixture.documents) == 40 - len(trained)


def test_another_tokenizer_finds_the_same_documents(bench: Bench) -> None:
    bench.record(PERCENTAGES)
    other = byte_tokenizer()
    other.add_tokens(["+"])
    data = SFTDataModule(
        [bench.source()],
        other,
        max_length=64,
        cache_dir=bench.folder,
        document_filters=[LatestLearnt(str(bench.path), 0.5)],
    )
    data.prepare_data()
    data.setup()
    assert len(data.train_mixture.documents) == 2  # type: ignore[union-attr]


def test_the_content_of_the_record_decides_and_not_its_place(bench: Bench) -> None:
    bench.record(PERCENTAGES)
    first = LatestLearnt(str(bench.path), 0.5).identity()
    moved = bench.path.rename(bench.folder / "moved.arrow")
    assert LatestLearnt(str(moved), 0.5).identity() == first
    bench.record(PERCENTAGES[::-1])
    assert LatestLearnt(str(bench.path), 0.5).identity() != first
    by_cluster = LatestLearnt(str(moved), 0.5, clusters=2, embed=f"{__name__}.lengths").identity()
    assert by_cluster["embed"] != f"{__name__}.lengths"  # but what it does


def test_an_epoch_that_was_cut_short_is_warned_of(bench: Bench) -> None:
    bench.record(PERCENTAGES, share=0.5)
    data = bench.data(LatestLearnt(str(bench.path), 0.5))
    assert [line.partition(" trained ")[2] for line in data.document_filters.warnings()] == [
        "50% of epoch 2, so that some documents look late for want of training; record whole epochs"
    ]
    assert bench.data(LatestLearnt(str(bench.path), 0.5, approximate=True)).document_filters.warnings() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 0.0}, "share is 0.0; give a share of the documents, above 0 and at most 1"),
        ({"share": 1.5}, "share is 1.5"),
        ({"clusters": 0}, "clusters is 0 and seed 42"),
        ({"seed": -1}, "clusters is 1 and seed -1"),
        ({"seed": 2**63}, r"and a seed from 0 to 2\*\*63 - 1"),
        ({"clusters": 2}, "clusters above 1 and embed, .* go together"),
        ({"embed": "a.b"}, "clusters above 1 and embed, .* go together"),
        ({"keep": "hardest"}, "keep 'hardest' is unknown; choose latest, earliest, middle, random"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LatestLearnt(**{"record": "x", "share": 0.5, **options})


def test_documents_that_are_not_in_the_record_are_refused(bench: Bench) -> None:
    bench.record(PERCENTAGES)
    with pytest.raises(
        ValueError, match=r"2 of the 4 documents of source a are not in .*, the first of them .*a\.jsonl:2: .* the same"
    ):
        bench.kept(0.5, bench.source([0, 7, 1, 8]))
    pair = {"prompt": "a", "chosen": "yes", "rejected": "no"}
    (bench.folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: they are prompts with answers, which are not learnt one by"):
        bench.data(
            LatestLearnt(str(bench.path), 0.5), Source(str(bench.folder / "pairs.jsonl")), kind=PreferenceDataModule
        )


def test_what_cannot_be_chosen_from_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match=r"there is no learning record .*; the recorded run's log names it"):
        bench.kept(0.5)
    bench.record(PERCENTAGES)
    embed = {"embed": f"{__name__}.lengths"}
    wrong: list[tuple[float, dict[str, Any], str]] = [
        (0.1, {}, "a share of 0.1 of the 4 documents of source a with a learning percentage is none; raise share"),
        (0.5, {"clusters": 5, **embed}, "4 documents with a learning percentage, too few for 5 clusters"),
        (0.5, {"clusters": 2, "embed": "no.such"}, "embed 'no.such' cannot be imported"),
        (0.5, {"clusters": 2, "embed": f"{__name__}.a_row_too_few"}, r"an array of shape \(3, 1\) for 4 texts"),
        (0.5, {"clusters": 2, "embed": f"{__name__}.none_at_all"}, r"an array of shape \(4, 0\) for 4 texts"),
        (
            0.5,
            {"clusters": 2, "embed": f"{__name__}.a_word"},
            r"no array of numbers for 4 texts \(UFuncTypeError|TypeError",
        ),
        (
            0.5,
            {"clusters": 2, "embed": f"{__name__}.failing"},
            r"for 4 texts \(RuntimeError: no model\); return one row",
        ),
    ]
    for share, options, said in wrong:
        with pytest.raises(ValueError, match=said):
            bench.kept(share, **options)
    bench.record([float("nan")] * 4)
    with pytest.raises(ValueError, match=r"no document of source a has a learning percentage: .*; look at .*, and rec"):
        bench.kept(0.5)
    bench.record(PERCENTAGES).first(2).write(bench.path)
    with pytest.raises(ValueError, match="needs losses after 2 epochs at least, and the record has 1"):
        bench.kept(0.5)
    with pytest.raises(ValueError, match="LatestLearnt needs all examples of a source, and a streams"):
        bench.data(LatestLearnt(str(bench.path), 0.5), bench.source(streaming=True))


def test_the_program_lists_what_was_learnt_least_or_last(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    losses = bench.record([0.9, 0.2, 0.5, 0.5], targets=[1, 1, 1, 0])
    nll = np.log(np.array([[10, 10, 10, 1], [4, 5, 8, 1], [2, 4, 3, 1]]))
    replace(losses, nll=nll).write(bench.path)
    main([str(bench.path), "--first", "2"])
    first, second, *rows = capsys.readouterr().out.splitlines()
    assert first == "3 documents; 1 more have no supervised token"
    assert second == "mean loss of a token before training and after each epoch:"
    assert rows == ["  2.303    1.609    1.386  a.jsonl:2", "  2.303    2.079    1.099  a.jsonl:3"]
    nll[2, 0] = np.nan
    replace(losses, nll=nll).write(bench.path)
    main([str(bench.path), "--first", "1"])
    assert capsys.readouterr().out.splitlines()[2:] == ["  2.303    1.386      nan  a.jsonl:1"]
    nll[2, 0] = np.log(2)
    replace(losses, nll=nll).write(bench.path)
    main([str(bench.path), "--by", "percentage", "--first", "1"])  # 0.75, 0.83 and 0.29
    assert capsys.readouterr().out.splitlines()[2:] == ["  2.303    2.079    1.099  a.jsonl:3"]
