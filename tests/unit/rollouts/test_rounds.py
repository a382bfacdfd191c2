"""Rounds on disk: everything comes back, whole or not at all; their metrics and plots."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from lion_lightning.rollouts import files
from lion_lightning.rollouts.files import DamagedFileError, has_rollouts, write_rollouts
from lion_lightning.rollouts.metrics.diversity import distinct, self_bleu
from lion_lightning.rollouts.metrics.rounds import round_metrics
from lion_lightning.rollouts.rollout import Rollout, with_pairs, with_usable
from lion_lightning.rollouts.rounds import Round, find_rounds, kept_items, restored_round, round_path, set_aside
from lion_lightning.tools.evaluate.intervals import wilson
from lion_lightning.tools.rounds.report import report, rounds_folder
from lion_lightning.types import Answer, Prompt

PROMPT = Prompt(
    "<q>hi", (5, 6), ({"role": "user", "content": "hi [bold]\x1b[31m"},), {"a": [1, None], "ü": "x"}, None, "f:1"
)
ANSWERS = (Answer("a b c", "stop", (7, 8, 9, 2)), Answer("a b", "length", (7, 8)), Answer("own", "original", (11, 2)))
SCORES = (1.0, 0.0, 4.0)
ONE = Rollout(
    *(PROMPT, ANSWERS, b"\x00" * 16, False, 3, 1, SCORES, {"j": SCORES}, (True, False, True)),
    usable=(0, 1, 2),
    pairs=((0, 1), (2, 1)),
)
NONE = Rollout(replace(PROMPT, where="f:2"), left_out="prompt longer than 3 tokens")
MONITOR = Rollout(PROMPT, ANSWERS[:2], b"m" * 16, True, 4, 1, (0.0, 1.0), final_answers=("c", "b"))


def made(folder: Path, number: int, *rollouts: Rollout, identity: str = "0123456789abcdef") -> Round:
    write_rollouts(round_path(folder, number), rollouts, {"round": number, "identity": identity})
    return Round(round_path(folder, number))


def test_everything_comes_back(tmp_path: Path) -> None:
    one = made(tmp_path, 3, ONE, NONE, MONITOR)
    assert one.rollouts == [ONE, NONE, MONITOR]
    assert (one.number, one.metadata["identity"], one.num_pairs) == (3, "0123456789abcdef", 2)
    assert [other.path for other in find_rounds(tmp_path)] == [one.path]


def test_a_round_for_groups_counts_prompts_with_two_usable_answers(tmp_path: Path) -> None:
    one = made(tmp_path, 0, ONE, replace(ONE, usable=(0, 2)), replace(ONE, usable=(1,)), NONE, MONITOR)
    assert (one.items, one.num_items, one.num_groups) == ("pairs", 6, 2)
    write_rollouts(one.path, one.rollouts, {"round": 0, "identity": "x", "items": "groups"})
    again = Round(one.path)
    assert (again.items, again.num_items) == ("groups", 2)


@pytest.mark.parametrize(
    ("items", "report", "kept"),
    [
        ("pairs", {"kept": {"pairs": 5}, "prompts": 2}, 5.0),
        ("groups", {"kept": {"answers": 8}, "prompts": 2}, 2.0),
    ],
)
def test_kept_items_are_those_of_the_report(items: str, report: dict[str, Any], kept: float) -> None:
    assert kept_items(report, items) == kept
    assert kept_items({}, items) != kept_items({}, items)  # NaN


def test_usable_answers_are_paired_by_their_places_in_the_rollout() -> None:
    scored = replace(ONE, usable=(), pairs=())
    found = with_usable(scored, lambda answer: answer.finish_reason != "stop")
    assert (found.usable, found.left_out) == ((1, 2), "")
    seen = []

    def pairs(prompt: Prompt, answers: Any, scores: Any) -> list[tuple[int, int]]:
        seen.append((prompt, answers, scores))
        return [(1, 0)]

    assert with_pairs(found, pairs).pairs == ((2, 1),)
    assert seen == [(PROMPT, [ANSWERS[1], ANSWERS[2]], [0.0, 4.0])]
    assert with_pairs(found, lambda *_: []).left_out == "the pairing made no pair"
    few = with_usable(scored, lambda answer: answer.finish_reason == "stop")
    assert (few.usable, few.left_out) == ((0,), "fewer than two answers that are complete and not empty")
    assert with_pairs(few, pairs) == few
    assert with_usable(MONITOR, lambda _: True) == MONITOR


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    one = made(tmp_path, 0, ONE)
    with pytest.raises((TypeError, ValueError, pa.ArrowException)):
        write_rollouts(one.path, [replace(ONE, seed="no number")], {"round": 0})  # type: ignore[arg-type]
    assert Round(one.path).rollouts == [ONE]
    assert [path.name for path in tmp_path.iterdir()] == ["round-0000.arrow"]


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    one = made(tmp_path, 0, ONE)
    one.path.write_bytes(one.path.read_bytes()[:-40])
    with pytest.raises(DamagedFileError, match=r"round-0000.arrow: damaged .*; restore the file, or resume from"):
        _ = Round(one.path).metadata
    assert not has_rollouts(one.path)
    assert not one.path.exists()  # it is made again
    table = pa.table({"x": [1]})
    with pa.OSFile(str(one.path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="not a round of on-policy sampling"):
        _ = Round(one.path).metadata


def written_before(path: Path) -> Path:
    """The file as a version of the package wrote it whose rollouts had no final answers."""
    earlier = files.SCHEMA.remove(files.SCHEMA.get_field_index("final_answers"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SCHEMA", earlier)
        write_rollouts(path, [replace(ONE, final_answers=())], {"round": 0, "identity": "x"})
    return path


def test_a_round_of_another_version_is_named(tmp_path: Path) -> None:
    path = written_before(round_path(tmp_path, 0))
    message = r"round-0000.arrow: written by another version of lion_lightning \(columns: final_answers\); use that"
    with pytest.raises(files.OtherVersionError, match=message):
        _ = Round(path).metadata
    assert Round(path).identity is None
    with pytest.raises(ValueError, match="stands within this round, which is of another version; restore"):
        restored_round(path, "x")
    with pytest.raises(ValueError, match="another version"):
        report(tmp_path, console=Console(quiet=True))
    set_aside(tmp_path, 0, "other settings")
    assert (tmp_path / "set_aside" / "round-0000-another-version.arrow").exists()


def test_a_chunk_of_another_version_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written_before(tmp_path / "judged-00000.arrow")
    assert not has_rollouts(path)
    assert "removed, and will be made again (written by another version of lion_lightning (columns" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": (True,)}, "1 right of 3 answers"),
        ({"scores": (1.0, 2.0)}, "2 scores of 3 answers"),
        ({"final_answers": ("a",) * 4}, "4 final_answers of 3 answers"),
        ({"num_added": 3}, "3 of 3 answers were added"),
        ({"num_added": -1}, "-1 of 3 answers were added"),
    ],
)
def test_a_row_whose_columns_do_not_fit_is_no_rollout(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """A file may have a checksum and be made by anybody."""
    with pytest.raises(DamagedFileError, match=rf"damaged \(a row is not a rollout: {message}\)"):
        _ = made(tmp_path, 0, replace(ONE, **change)).rollouts


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """A score's last bit is as good a score; offsets of another row would be read beyond the file's end."""
    path = made(tmp_path, 0, ONE, MONITOR).path
    content = path.read_bytes()
    for place in range(0, len(content), 11):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=r"round-0000.arrow: damaged"):
            _ = Round(path).rollouts


def test_a_text_that_looks_like_a_checksum_comes_back(tmp_path: Path) -> None:
    odd = replace(ONE, prompt=replace(PROMPT, text="lion crc-32 -------- lion crc-32 12345678"))
    assert made(tmp_path, 0, odd).rollouts == [odd]


def test_a_file_without_a_checksum_is_no_round(tmp_path: Path) -> None:
    path = made(tmp_path, 0, ONE).path
    table = pa.ipc.open_file(str(path)).read_all()
    plain = table.replace_schema_metadata({"lion": table.schema.metadata[b"lion"]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, plain.schema) as writer:
        writer.write_table(plain)
    with pytest.raises(ValueError, match="not a round of on-policy sampling"):
        _ = Round(path).rollouts


SUMMARIES = [
    *("[]", "7", "{", "\x00", '{"metrics": []}', '{"metrics": {"on_policy/score": "x"}}'),
    *('{"report": 1}', '{"report": {"left_out": 3}}', '{"report": {"left_out": {"ties": 3}}}'),
    '{"report": {"kept": {"pairs": "x"}}}',
]


@pytest.mark.parametrize("text", SUMMARIES)
def test_a_summary_that_is_other_json_is_one_line(tmp_path: Path, text: str) -> None:
    one = made(tmp_path, 0, ONE)
    one.summary_path.write_text(text)
    with pytest.raises(ValueError, match=r"round-0000\.json: .*summary of a round.*remove it") as caught:
        _ = one.summary
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("about", [None, [1], {"round": "0", "identity": "x"}, {"round": 0}])
def test_a_file_that_does_not_say_which_round_it_is(tmp_path: Path, about: Any) -> None:
    write_rollouts(round_path(tmp_path, 0), [ONE], about)
    with pytest.raises(ValueError, match=r"round-0000\.arrow: not a round of on-policy sampling"):
        _ = Round(round_path(tmp_path, 0)).number


def test_a_damaged_round_is_set_aside_like_one_of_another_run(tmp_path: Path) -> None:
    made(tmp_path, 0, ONE)
    path = made(tmp_path, 1, ONE).path
    path.write_bytes(path.read_bytes()[:-1])
    set_aside(tmp_path, 1, "of another policy")
    assert [other.number for other in find_rounds(tmp_path)] == [0]
    assert [kept.name for kept in (tmp_path / "set_aside").iterdir()] == ["round-0001-damaged.arrow"]


def test_other_runs_rounds_are_moved_with_those_that_followed(tmp_path: Path) -> None:
    rounds = [made(tmp_path, number, ONE, identity=f"{number}" * 16) for number in range(3)]
    rounds[1].write_summary({"on_policy/score": float("nan")}, {})
    set_aside(tmp_path, 1, "of another policy")
    assert [other.number for other in find_rounds(tmp_path)] == [0]
    kept = sorted(path.name for path in (tmp_path / "set_aside").iterdir())
    assert kept == ["round-0001-111111111111.arrow", "round-0001-111111111111.json", "round-0002-222222222222.arrow"]
    assert json.loads((tmp_path / "set_aside" / kept[1]).read_text()) == {
        "report": {},
        "metrics": {"on_policy/score": None},
    }


# --- metrics


def test_distinct_counts_word_pairs() -> None:
    assert distinct(["a b c", "a b d"]) == 3 / 4  # ab bc ab bd
    assert distinct(["a b", "c d"]) == 1
    assert distinct(["a"]) != distinct(["a"])  # NaN


def test_self_bleu_by_hand() -> None:
    assert self_bleu(["a b c d e"] * 3) == 1
    assert self_bleu(["a b", "c d"]) == 0
    # "a b" in "a c": one of two words; no pair, smoothed to (0 + 1) / (1 + 1); the same the other way round
    assert self_bleu(["a b", "a c"]) == pytest.approx((0.5 * 0.5) ** 0.5)
    # "a" in "a a a": precision 1, brevity exp(1 - 3); "a a a" in "a": 1/3, (0+1)/(2+1), (0+1)/(1+1), no 4-gram
    expected = (2.718281828459045**-2 + (1 / 3 * 1 / 3 * 1 / 2) ** (1 / 3)) / 2
    assert self_bleu(["a", "a a a"]) == pytest.approx(expected)


def test_self_bleu_of_many_answers_is_that_of_eight(tmp_path: Path) -> None:
    """The first eight say all the same, the others something else."""
    answers = tuple(Answer("a b" if number < 8 else f"c{number}", token_ids=(3,)) for number in range(64))
    metrics = round_metrics(made(tmp_path, 0, Rollout(PROMPT, answers, scores=(0.0,) * 64)))
    assert metrics["self_bleu"] == 1


def test_metrics_by_hand(tmp_path: Path) -> None:
    metrics = round_metrics(made(tmp_path, 1, ONE, NONE, MONITOR))
    wanted = {
        "score": 0.5,  # of what was sampled: 1 and 0, without the row's own answer
        "score_spread": 0.5,
        "score_best": 1.0,
        "score_worst": 0.0,
        "monitor_score": 0.0,
        "win_rate": 0.0,
        "length": 3.0,
        "unfinished": 0.5,
        "distinct_2": 2 / 3,
        "prompts": 2.0,
        "answers": 2.0,
        "pairs": 2.0,
        "prompts_with_pairs": 0.5,
        "groups": 1.0,
    }
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted)


def test_wilsons_interval() -> None:
    # p = 1/2, n = 4, z = 2: middle (1/2 + 1/2) / 2, half 2 / 2 * sqrt(1/16 + 4/64)
    low, high = wilson(0.5, 4, z=2)
    assert (low, high) == pytest.approx((0.5 - 0.125**0.5, 0.5 + 0.125**0.5))


# --- the report


@pytest.mark.slow
def test_the_report_prints_samples_literally_and_draws(tmp_path: Path) -> None:
    for number in range(3):
        one = made(tmp_path, number, ONE, NONE, MONITOR)
    one.write_summary({"on_policy/kl": 0.25}, {"kept": {"pairs": 1}, "left_out": {"equal scores": {"pairs": 1}}})
    parts = tmp_path / "round-0003.parts-abc"
    parts.mkdir()
    (parts / "plan.json").write_text('{"chunks": 7}')
    (parts / "sampled-00000.arrow").touch()
    console = Console(record=True, width=120)
    report(tmp_path, console=console)
    text = console.export_text()
    assert "round-0003.parts-abc: unfinished, 1 of 7 chunks sampled and 0 judged" in text
    assert "hi [bold]" in text
    assert "\x1b" not in text
    assert "0.25" in text
    assert "prompt longer than 3 tokens" in text.replace("\n", " ")
    assert (tmp_path / "rounds.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    narrow = Console(record=True, width=80)
    report(tmp_path, samples=0, png=tmp_path / "other.png", console=narrow)
    assert (tmp_path / "other.png").exists()
    words = set(re.findall(r"\w+", narrow.export_text()))
    assert {"unfinished", "distinct", "spread", "monitor"} <= words  # no title of a column is broken


@pytest.mark.parametrize("items", ["pairs", "groups"])
def test_the_report_shows_trees_with_all_answers_their_scores_and_pairs(
    tmp_path: Path, items: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lion_lightning.tools.rounds.report.plot", lambda *_: None)  # it takes a second
    ranked = replace(ONE, usable=(0, 1, 2), pairs=((2, 0), (2, 1), (0, 1)) if items == "pairs" else ())
    fewer = replace(ONE, usable=(0, 2), pairs=((2, 0),) if items == "pairs" else ())
    tied = replace(ranked, scores=(2.0, 1.0, 2.0), pairs=((0, 2), (0, 1), (2, 1)) if items == "pairs" else ())
    path = round_path(tmp_path, 0)
    write_rollouts(
        path,
        [replace(tied, scores=(2.0,) * 3), ranked, fewer, tied, MONITOR],
        {"round": 0, "identity": "x", "items": items},
    )
    left_out = {"equal scores": {"pairs": 4}} if items == "pairs" else {"scores all equal": {"answers": 4}}
    Round(path).write_summary({f"on_policy/{items}_kept": 0.25}, {"left_out": left_out})
    console = Console(record=True, width=80)
    report(tmp_path, console=console)
    text = console.export_text()
    lines = [line.replace("│", "|").split("|")[2:] for line in text.splitlines() if line.startswith("│")]
    shown = [[cell.strip() for cell in cells[:-1]] for cells in lines]
    trees = shown[[cells[0] for cells in shown].index("1. a b c") :]
    first = ["1. a b c", "= 1", "2. a b", "= 0, cut off", "3. own", "= 4"]
    second = [*first[:3], "= 0, cut off, not trained on", *first[4:]]
    assert [cells[0] for cells in trees[:12]] == first + second
    if items == "pairs":
        pairs = [cells[1] for cells in trees]
        assert pairs[:12] == ["3 > 1, 2", "1 > 2", "", "", "", "", "3 > 1", "", "", "", "", ""]
        assert pairs[12:15] == ["1 > 2", "3 > 2", "1 of equal scores"]
    assert "25.0%" in text
    assert next(iter(left_out)) in text
    assert ("groups" in text) == (items == "groups")


def test_the_report_says_which_model_gave_an_answer_and_how_each_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lion_lightning.tools.rounds.report.plot", lambda *_: None)
    by = tuple(answer._replace(model=name) for answer, name in zip(ANSWERS, ("sft", "base", "sft"), strict=True))
    tied = replace(ONE, answers=by, scores=(1.0, 1.0, 0.0), pairs=((0, 1),))
    one = made(tmp_path, 0, replace(ONE, answers=by), tied, replace(MONITOR, answers=by[:2]), NONE)
    assert one.rollouts[0].answers == by
    console = Console(record=True, width=100)
    report(tmp_path, console=console)
    text = console.export_text()
    assert "= 0, by base, cut off" in text
    rows = [re.split(r"\s*│\s*", line)[1:-1] for line in text.splitlines() if re.match(r"│ (sft|base) ", line)]
    # Scores of sft: 1, 4, 1 and 0; of base: 0 and 1. Two pairs: sft over base, sft over base; one tie.
    assert rows == [["sft", "4", "1.500", "2", "0"], ["base", "2", "0.500", "0", "2"]]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        report(tmp_path / "none")
    with pytest.raises(ValueError, match="no finished rounds"):
        report(tmp_path)


def test_the_folder_of_a_stage_or_a_run_stands_for_that_of_its_rounds(tmp_path: Path) -> None:
    rounds = tmp_path / "run" / "online" / "rounds"
    rounds.mkdir(parents=True)
    made(rounds, 0, ONE)
    for folder in (rounds, rounds.parent, tmp_path / "run"):
        assert rounds_folder(folder) == rounds
    (tmp_path / "run" / "other" / "rounds").mkdir(parents=True)
    made(tmp_path / "run" / "other" / "rounds", 0, ONE)
    with pytest.raises(ValueError, match=r"several folders have rounds; name one of .*online/rounds, .*other/rounds$"):
        rounds_folder(tmp_path / "run")
