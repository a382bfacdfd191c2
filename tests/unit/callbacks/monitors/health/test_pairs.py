"""The detector of degenerate pairs, and the pairs that it is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lion_lightning.callbacks.monitors.health import DegeneratePairs, Pairs, Ties
from lion_lightning.callbacks.monitors.health.pairs import degenerate
from lion_lightning.callbacks.monitors.health.views import pairs_of, places
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.models.tokenizer import TokenizerSpec

END = 2
PLAIN = ([3, 4, 5, 6, 7, END], [8, 9, 3, END])


@pytest.mark.parametrize(
    ("chosen", "rejected", "kind"),
    [
        ([3, 4, END], [3, 4, END], "identical"),
        ([3, 4, END], [END], "empty"),
        ([3, 4, 5, 6, END], [3, 4, END], "cut off or continued"),
        ([3, 4, END], [3, 4, 5, 6, END], "cut off or continued"),
        ([3, 4, 5, 6], [3, 4], "cut off or continued"),  # both were truncated, and have no end
        ([3, 4, 5, 6, END], [3, 4, 9, 6, END], "one token apart"),
        ([3, 4, 5, 6, 7, END], [3, 4, 6, 7, END], "one token apart"),
        ([3, END], [4, END], None),  # a letter is the answer
        ([3, 4, 5, 6, END], [3, 9, 8, 6, END], None),
        (*PLAIN, None),
    ],
)
def test_kinds_of_pairs(chosen: list[int], rejected: list[int], kind: str | None) -> None:
    assert degenerate(chosen, rejected) == kind
    assert degenerate(rejected, chosen) == kind


def test_a_share_of_degenerate_pairs_is_found_with_those_that_were_left_out() -> None:
    # Of 20 pairs 2 are left out; of the 18 others 6 are drawn, each for 3: 1 is empty. 2/20 + 3/20 = 25%.
    drawn = [PLAIN] * 5 + [([3, 4, END], [END])]
    pairs = Pairs(20, {"identical answers": 2}, drawn, lambda place: f"a.jsonl:{place}")
    (finding,) = filter(None, [DegeneratePairs(share=0.2).on_pairs(pairs)])
    assert finding.value == pytest.approx(0.25)
    assert finding.severity == pytest.approx(1.25)
    assert finding.seen == "of 20 pairs 15% empty, 10% identical (limits 20%, and 50% one token apart)"
    assert finding.rows == ("a.jsonl:5",)
    assert DegeneratePairs(share=0.3).on_pairs(pairs) is None


def test_answers_one_token_apart_have_a_limit_of_their_own() -> None:
    close = ([3, 4, 5, 6, END], [3, 4, 9, 6, END])
    assert DegeneratePairs().on_pairs(Pairs(10, {}, [close] * 4 + [PLAIN] * 6, str)) is None
    (finding,) = filter(None, [DegeneratePairs().on_pairs(Pairs(10, {}, [close] * 6 + [PLAIN] * 4, str))])
    assert (finding.value, finding.severity) == (0.6, 1.2)


def test_pairs_of_equal_scores_are_ties() -> None:
    pairs = Pairs(20, {"equal scores": 12}, [PLAIN] * 8, str)
    (finding,) = filter(None, [Ties(share=0.5).on_pairs(pairs)])
    assert finding.seen == "60% of 20 pairs of the data have equal scores and are left out (limit 50%)"
    assert Ties(share=0.7).on_pairs(pairs) is None


def data_module(folder: Path, tokenizer: TokenizerSpec, rows: list[dict[str, Any]]) -> Any:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PreferenceDataModule(
        [Source(str(path), format="text")], tokenizer, max_length=16, row_length=32, cache_dir=folder / "cache"
    )
    data.prepare_data()
    data.setup("fit")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.datamodule = data  # type: ignore[attr-defined]
    return trainer


def test_the_pairs_of_a_data_module_are_seen_with_their_places(tmp_path: Path, tokenizer: TokenizerSpec) -> None:
    rows = [
        {"prompt": "w3 w4", "chosen": " w5 w6", "rejected": " w7"},
        {"prompt": "w3 w5", "chosen": " w8", "rejected": " w8"},
        {"prompt": "w3 w6", "chosen": " w9", "rejected": " w10 w11"},
    ]
    trainer = data_module(tmp_path, tokenizer, rows)
    pairs = pairs_of(trainer)
    assert pairs is not None
    assert pairs.read == 3
    assert pairs.left_out == {"identical answers": 1}
    assert list(pairs.answers) == [([5, 6, END], [7, END]), ([9, END], [10, 11, END])]
    assert [pairs.where(place) for place in range(2)] == [f"{tmp_path}/pairs.jsonl:{line}" for line in (1, 3)]
    assert places(trainer, [2]) == (f"{tmp_path}/pairs.jsonl:3",)
