"""The demonstration of LOMO and AdaLomo in little, and a run of theirs that the system kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.collie import low_memory
from tests.demo import copy_demo
from tests.integration.killed_runs import assert_a_killed_run_ends_equal
from tests.marks import exhaustive

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[3]


def test_the_curve_is_the_same_with_one_gradient_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path), "--rows", "300", "--seeds", "1"]
    after, within, losses = low_memory.main(arguments)  # type: ignore[no-untyped-call]
    assert within.losses == pytest.approx(after.losses, abs=1e-4)
    assert within.most < 0.1 * after.most  # the largest weight, of all
    assert after.losses[-1] < after.losses[0] - 1
    assert losses.keys() == {"AdamW", "AdaLomo"}
    assert all(loss < 4.5 for runs in losses.values() for loss in runs)
    printed = capsys.readouterr().out
    assert "bytes of gradients at once" in printed
    assert printed.rstrip().endswith(", of one seed")  # an interval needs two


@pytest.mark.parametrize("name", ["adalomo", *exhaustive("lomo")])
def test_a_killed_run_goes_on_within_its_epoch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_demo(tmp_path / "runs" / "demo", train=200, validation=11)
    monkeypatch.chdir(tmp_path)
    options = ["-c", str(ROOT / "configs/sft.yaml"), "-c", str(ROOT / f"configs/optimizer/{name}.yaml")]
    options += ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]
    fused = {"class_path": "lion_lightning.callbacks.FusedBackward"}
    assert_a_killed_run_ends_equal(tmp_path, options, steps=20, callbacks=[fused])
