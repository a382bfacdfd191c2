"""The oracle of benchmarks/oracle: its loops by hand and one trainer of TRL's beside ours, for a few steps."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.losses import BCOPairLoss, GRPOLoss, KTOLoss, ORPOLoss, SigmoidLoss

slow = pytest.mark.slow
by_hand: Any = importlib.import_module("benchmarks.oracle.by_hand")
ours: Any = importlib.import_module("benchmarks.oracle.ours")
comparison: Any = importlib.import_module("benchmarks.oracle.comparison")
rows: Any = importlib.import_module("benchmarks.oracle.rows")
SETTINGS = comparison.Settings(steps=4, learning_rate=1e-3)
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}

LOOPS: dict[str, tuple[str, Callable[[], Any], Callable[..., Any], Any]] = {
    "SFT": ("conversations", lambda: by_hand.sft, ours.sft, SETTINGS),
    "DPO": ("pairs", lambda: by_hand.of_pairs(by_hand.dpo), partial(ours.pairs, loss=SigmoidLoss(0.1)), SETTINGS),
    "ORPO": ("pairs", lambda: by_hand.of_pairs(by_hand.orpo), partial(ours.pairs, loss=ORPOLoss(0.1)), SETTINGS),
    "BCO": ("pairs", by_hand.BCO, partial(ours.pairs, loss=BCOPairLoss(0.1)), SETTINGS),
    "KTO": ("labeled", lambda: by_hand.kto, partial(ours.labeled, loss=KTOLoss(0.1)), SETTINGS),
    "reward": ("pairs", lambda: by_hand.reward, ours.reward, SETTINGS),
    "GRPO": (
        "groups",
        partial(by_hand.GRPO, beta=0.1, updates=2),
        partial(ours.groups, loss=GRPOLoss(beta=0.1)),
        comparison.Settings(steps=4, learning_rate=1e-3, updates=2),
    ),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return rows.prepare(tmp_path_factory.mktemp("oracle"), **TINY)


@slow
@pytest.mark.parametrize("name", LOOPS)
def test_steps_equal_those_of_the_papers_equations_by_hand(name: str, prepared: Any) -> None:
    kind, objective, train, settings = LOOPS[name]
    found = comparison.Comparison(train(prepared, settings), by_hand.train(kind, objective(), prepared, settings))
    assert len(found.ours) == settings.steps
    assert len({step.norm for step in found.ours}) == settings.steps  # it trains
    assert (found.loss, found.norm) < (1e-5, 1e-4)
    assert found.agrees


@slow
def test_steps_of_dpo_equal_those_of_trl_from_the_same_file_of_rows(prepared: Any) -> None:
    pytest.importorskip("trl", reason="needs the test extra: pip install -e '.[test]'")
    theirs: Any = importlib.import_module("benchmarks.oracle.theirs")
    mine = ours.pairs(prepared, SETTINGS, loss=SigmoidLoss(0.1))
    found = comparison.Comparison(mine, theirs.train(prepared, SETTINGS, "DPOTrainer"))
    assert len(found.ours) == 4
    assert found.agrees


def step(loss: float, norm: float) -> Any:
    return comparison.Step(loss, norm)


def test_losses_are_compared_absolutely_and_above_one_relatively_and_norms_relatively() -> None:
    found = comparison.Comparison([step(0.5, 2.0), step(30.0, 2.0)], [step(0.4, 2.0), step(20.0, 1.6)])
    assert found.loss == pytest.approx(0.5)  # 10 of 20, against 0.1
    assert found.norm == pytest.approx(0.25)
    assert not found.agrees


@pytest.mark.parametrize(
    ("loss", "norm", "agrees"), [(1e-3 + 9e-5, 1.0, True), (1e-3, 1.00011, False), (float("nan"), 1.0, False)]
)
def test_what_is_beyond_the_tolerance_or_no_number_does_not_agree(loss: float, norm: float, agrees: bool) -> None:
    assert comparison.Comparison([step(1e-3, 1.0)], [step(loss, norm)]).agrees is agrees


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    code = "def one():\n    x = 1\n\n\ndef two():\n    x = 1\n"
    tmp_path.joinpath("oracle_peer.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "oracle_peer"


def test_a_difference_names_the_number_of_its_line_and_fails_where_the_line_is_gone(module: str) -> None:
    differences: Any = importlib.import_module("benchmarks.oracle.differences")
    assert differences.Difference("why", module, "x = 1").place == "oracle_peer.py:2"
    assert differences.Difference("why", module, "x = 1", after="def two").place == "oracle_peer.py:6"
    with pytest.raises(ValueError, match="oracle_peer has no line 'x = 2'"):
        _ = differences.Difference("why", module, "x = 2").place


def test_the_table_says_what_was_not_expected_and_is_renewed_row_by_row(tmp_path: Path) -> None:
    report: Any = importlib.import_module("benchmarks.oracle.report")
    same, other = [step(1.0, 2.0)], [step(1.5, 2.0)]
    agree, differ = report.Row("A", "x", None, None, same, same), report.Row("B", "x", "because", "f.py:3", same, other)
    gone, wrong = report.Row("C", "x", None, None, same, same), report.Row("A", "x", None, None, same, other)
    assert agree.line() == "| A | x | 1 | 0e+00 | 0e+00 | agrees |"
    assert differ.line() == "| B | x | 1 | 3e-01 | 0e+00 | differs: because (`f.py:3`) |"
    assert (agree.expected, differ.expected, wrong.expected) == (True, True, False)
    assert "DIFFERS" in wrong.line()
    report.save(tmp_path / "found.json", [agree, differ, gone], minutes=1.5)
    known = report.read(tmp_path / "found.json")
    assert known == [agree, differ, gone]
    assert report.merged(known, [wrong], [("B", "x"), ("A", "x")]) == [differ, wrong]
