"""What the progress bar says, on a terminal and in a pipe."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lion_lightning.callbacks import LionProgressBar, TokenThroughput
from lion_lightning.callbacks.progress import _FitClock, readable
from tests import tiny
from tests.unit.callbacks.conftest import Bench, batches


@pytest.fixture(autouse=True)
def console() -> Iterator[None]:
    yield
    rich.reconfigure()  # Lightning's bar changes the console of the whole process


class Few(LionProgressBar):
    """Shows what a test can know."""

    metrics: ClassVar[dict[str, str]] = {"train/loss": "loss", "val/loss": "val loss", "lr": "lr"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.69314, "0.6931"),
        (123.456, "123.5"),
        (5e-7, "5e-07"),
        (1000.0, "1k"),
        (12_345.0, "12.3k"),
        (999_800.0, "1000k"),
        (-2_500_000.0, "-2.5M"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert readable(value) == text


def lines(text: str) -> list[str]:
    return re.sub(r"\d+:\d\d left", "T left", text).splitlines()


def test_a_pipe_gets_plain_lines_with_the_figures_that_the_run_logged(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    losses: list[float] = []

    class Watch(TokenThroughput):
        def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    bar = Few(every_seconds=1e9, every_steps=4)
    trainer = bench.trainer(bar, Watch(), enable_progress_bar=True)
    bench.fit(trainer)
    printed = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in printed)
    said = lines(printed)
    # six batches, one step each: the first, the fourth (every_steps), the last; Lightning validates before and after
    starts = [f"{n / 6:.0%}, epoch 1/1, step {n}, T left: loss {readable(losses[n - 1])}" for n in (1, 4, 6)]
    sanity, *steps, validation = said
    assert re.fullmatch(r"sanity check: val loss [\d.]+", sanity)
    assert [line[: len(start)] for line, start in zip(steps, starts, strict=True)] == starts
    assert all(line.endswith(", lr 0.01") for line in steps)
    assert "val loss" not in steps[0]  # a sanity check is not a result
    assert validation == f"validation at step 6: val loss {readable(float(trainer.callback_metrics['val/loss']))}"


def test_a_line_is_due_by_time_too_and_only_where_a_step_was_made(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Few(every_seconds=0)
    bench.fit(bench.trainer(bar, enable_progress_bar=True, accumulate_grad_batches=2, limit_val_batches=0))
    said = [line.partition(", T left")[0] for line in lines(capsys.readouterr().out)]
    assert said == [f"{share}, epoch 1/1, step {step}" for step, share in ((1, "33%"), (2, "67%"), (3, "100%"))]


def test_the_first_lines_come_sooner_than_later_ones(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    class Second(Callback):
        """Lets a batch take a second."""

        def on_train_batch_end(self, *arguments: Any) -> None:
            nonlocal now
            now += 1

    monkeypatch.setattr("lion_lightning.callbacks.progress.time", SimpleNamespace(monotonic=lambda: now))
    trainer = bench.trainer(Second(), Few(every_seconds=3), enable_progress_bar=True, limit_val_batches=0)
    bench.fit(trainer, train=batches(40))
    steps = [int(step) for step in re.findall(r"step (\d+)", capsys.readouterr().out)]
    # 2 seconds apart, after 20 seconds a tenth of the time since the start, and at last every_seconds
    assert steps == [*range(1, 22, 2), 24, 27, 30, 33, 36, 39, 40]


def test_the_time_left_counts_the_rounds_that_are_still_to_be_sampled() -> None:
    clock = _FitClock(0.0, share_before=0.0)
    clock.between_epochs(40.0, True)  # the first of five rounds
    for second in range(1, 11):
        clock.trained(40.0 + second)
    assert clock.left(0.2, 4) == pytest.approx(4 * 10 + 4 * 40)
    assert math.isnan(clock.left(0.0, 4))
    assert math.isnan(clock.left(math.nan, 4))


def test_a_resumed_fit_counts_all_that_is_done_and_times_only_its_own_part(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trainer = bench.trainer(enable_progress_bar=False, max_epochs=2, limit_val_batches=0, max_steps=6)
    bench.fit(trainer)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    bar = Few(every_seconds=0)
    resumed = bench.trainer(bar, enable_progress_bar=True, max_epochs=2, limit_val_batches=0)
    bench.fit(resumed, ckpt_path=str(tmp_path / "half.ckpt"))
    shares = [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert shares == ["58%", "67%", "75%", "83%", "92%", "100%"]
    assert bar._clock.share_before == 0.5


def test_a_terminal_gets_the_bar_with_short_names_and_nothing_else(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    bar = LionProgressBar(console_kwargs={"force_terminal": True, "file": screen, "width": 150, "color_system": None})
    trainer = bench.trainer(TokenThroughput(peak_flops=1e6), bar, enable_progress_bar=True)
    bench.fit(trainer)
    assert capsys.readouterr().out == ""
    drawn = screen.getvalue()
    assert "\x1b[" in drawn  # it is drawn in place
    metrics = trainer.callback_metrics
    last = drawn[drawn.rindex("loss:") :]
    expected: dict[str, Any] = {
        "loss": metrics["train/loss"],
        "accuracy": metrics["train/accuracy"],
        "val loss": metrics["val/loss"],
        "lr": 0.01,
    }
    shown = bar.get_metrics(trainer, trainer.lightning_module)
    assert {name: shown[name] for name in expected} == {name: readable(float(v)) for name, v in expected.items()}
    assert shown.keys() - expected.keys() == {"left", "tok/s"}
    assert "v_num" not in drawn
    assert "train/" not in drawn
    assert f"lr: {shown['lr']}" in last


def test_the_rate_that_is_shown_is_the_one_that_the_step_had(capsys: pytest.CaptureFixture[str]) -> None:
    class Falling(BoringModel):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    bar = LionProgressBar(every_seconds=0)
    tiny.trainer(callbacks=[bar], enable_progress_bar=True, max_steps=2, limit_val_batches=0).fit(Falling())
    said = [line.rpartition("lr ")[2] for line in lines(capsys.readouterr().out)]
    assert said == ["0.5", "0.25"]  # and not 0.25 and 0, which the schedule has set for the step after


def test_only_rank_zero_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    class Second(Few):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            super().setup(trainer, pl_module, stage)
            self.disable()  # what Lightning's bar does on other ranks

    tiny.trainer(callbacks=[Second(every_seconds=0)], enable_progress_bar=True, max_steps=2).fit(BoringModel())
    assert "step" not in capsys.readouterr().out


def test_any_module_may_show_a_figure_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    class Own(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("agreement", torch.tensor(0.25), prog_bar=True)
            return super().training_step(batch, batch_idx)

    bar = LionProgressBar(every_seconds=1e9)
    tiny.trainer(callbacks=[bar], enable_progress_bar=True, max_steps=2, limit_val_batches=0).fit(Own())
    assert lines(capsys.readouterr().out) == [  # the second for the end, which max_steps brings early
        f"{n / 2:.0%}, epoch 1, step {n}, T left: lr 0.1, agreement 0.25" for n in (1, 2)
    ]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every_seconds is -1"):
        LionProgressBar(every_seconds=-1)
    with pytest.raises(ValueError, match=r"every_steps is 0; give at least 1"):
        LionProgressBar(every_steps=0)


def test_on_a_terminal_epochs_count_from_one_and_the_time_left_is_that_of_the_fit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    options = {"file": screen, "force_terminal": True, "width": 200, "color_system": None}
    bench.fit(bench.trainer(Few(refresh_rate=1000, console_kwargs=options), enable_progress_bar=True, max_epochs=2))
    drawn = screen.getvalue()
    assert "epoch 1/2" in drawn
    assert "epoch 2/2" in drawn
    assert "epoch 0" not in drawn.lower()
    assert re.search(r"left: \d+:\d\d", drawn)
