"""A progress bar with the few figures that matter, and plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.console import Console
from rich.progress import BarColumn
from torch.optim import Optimizer
from typing_extensions import override


class LionProgressBar(RichProgressBar):
    """Shows loss, accuracy, margin, speed and learning rate under short names, in numbers that can be read at a glance.

    On a terminal it is Lightning's rich bar with other figures. Anywhere else (a pipe, a file, a CI log) it prints a
    plain line at the first step, then every so often, at the end of each epoch and after each validation; no control
    characters. Rank 0 alone shows anything. Put it into ``trainer.callbacks`` of any Trainer; figures that nobody logs
    are left out, and what a module logs with ``prog_bar=True`` is shown besides.

    A subclass says what to show by :attr:`metrics`.

    Args:
        refresh_rate: Times a second that the bar is drawn; 0 shows nothing.
        leave: Whether the bar of a finished epoch stays on the screen.
        every_seconds: Without a terminal: seconds between two lines.
        every_steps: Without a terminal: a line also whenever the number of optimizer steps is a multiple of this; None
            for by time alone.
        console_kwargs: Arguments of the rich console, as of ``RichProgressBar``.

    Raises:
        ValueError: If ``every_seconds`` is negative or ``every_steps`` is not positive.

    Example:
        ``Trainer(callbacks=[TokenThroughput(), LionProgressBar()])``
    """

    metrics: ClassVar[Mapping[str, str]] = {
        "train/loss": "loss",
        "train/accuracy": "accuracy",
        "train/rewards/accuracy": "reward acc",
        "train/rewards/margin": "margin",
        "on_policy/score": "score",
        "val/loss": "val loss",
        "val/rewards/accuracy": "val acc",
        "test/loss": "test loss",
        "perf/tokens_per_second": "tok/s",
        "lr": "lr",
    }
    """Log key to short name, in the order in which they are shown; ``lr`` is the first parameter group's rate in the
    step that was made last, not the one that a schedule has set for the next."""

    def __init__(
        self,
        refresh_rate: int = 4,
        leave: bool = False,
        every_seconds: float = 30.0,
        every_steps: int | None = None,
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if every_seconds < 0:
            raise ValueError(f"LionProgressBar.every_seconds: {every_seconds} is negative; give seconds between lines.")
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"LionProgressBar.every_steps: {every_steps} is no number of steps; give at least 1.")
        super().__init__(refresh_rate, leave, console_kwargs=console_kwargs)
        self.every_seconds, self.every_steps = every_seconds, every_steps
        self._animated = False
        self._due = 0.0  # when the next line is, on the monotonic clock
        self._said = 0  # optimizer steps at the last line
        self._began: tuple[float, int] | None = None  # when this epoch was joined, and at which of its batches
        self._rate: float | None = None  # of the step that was made last

    @property
    @override
    def is_enabled(self) -> bool:
        """Whether the bar is drawn; the plain lines are for where it is not."""
        return super().is_enabled and self._animated

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out where the output goes."""
        super().setup(trainer, pl_module, stage)
        console = Console(**self._console_kwargs)
        self._animated = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
        self._due, self._said, self._began, self._rate = 0.0, trainer.global_step, None, None

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The figures of this moment, readable, by short name."""
        logged: dict[str, Any] = {**trainer.callback_metrics}
        if self._rate is not None:
            logged["lr"] = self._rate
        figures = {short: logged[key] for key, short in self.metrics.items() if key in logged}
        others = {key: value for key, value in trainer.progress_bar_metrics.items() if key not in self.metrics}
        return {name: readable(float(value)) for name, value in (figures | others).items()}

    @override
    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """A short bar and no batches a second, so that the figures fit beside it."""
        columns = [column for column in super().configure_columns(trainer) if type(column) is not ProcessingSpeedColumn]
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = 16
        return columns

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to reckon the epoch's time."""
        super().on_train_epoch_start(trainer, pl_module)
        self._began = None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the first batch, which is not the epoch's where a run is resumed."""
        self._began = self._began or (time.monotonic(), batch_idx)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Remember the rate of this step: a schedule changes it before the batch ends."""
        self._rate = float(optimizer.param_groups[0]["lr"])

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, or say a line where one is due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        ends = _ahead(trainer, batch_idx + 1) <= 0
        if self._speaks and trainer.global_step > self._said and (ends or self._is_due(trainer.global_step)):
            self._said, self._due = trainer.global_step, time.monotonic() + self.every_seconds
            self._say(self._place(trainer, batch_idx + 1), self.get_metrics(trainer, pl_module))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what a validation within a fit came to; Lightning prints others itself."""
        super().on_validation_end(trainer, pl_module)
        if self._speaks and trainer.state.fn == "fit":
            title = "sanity check" if trainer.sanity_checking else f"validation at step {trainer.global_step}"
            shown = {short for key, short in self.metrics.items() if key.startswith("val/")}
            figures = self.get_metrics(trainer, pl_module)
            self._say(title, {name: value for name, value in figures.items() if name in shown})

    @property
    def _speaks(self) -> bool:
        return super().is_enabled and not self._animated

    def _is_due(self, step: int) -> bool:
        return time.monotonic() >= self._due or (self.every_steps is not None and step % self.every_steps == 0)

    def _place(self, trainer: Trainer, done: int) -> str:
        """Where training stands: epoch, batch, step, time spent in the epoch, time that is left of it."""
        began, first = self._began or (time.monotonic(), done - 1)
        spent, ahead, total = time.monotonic() - began, _ahead(trainer, done), trainer.num_training_batches
        left = "" if math.isinf(ahead) else f", {_clock(spent / (done - first) * ahead)} left"
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        batches = "" if math.isinf(total) else f"/{int(total)}"
        place = f"epoch {trainer.current_epoch + 1}{epochs}, batch {done}{batches}, step {trainer.global_step}"
        return f"{place} ({_clock(spent)}{left})"

    def _say(self, title: str, figures: Mapping[str, str]) -> None:
        self.print(f"{title}: {', '.join(f'{name} {value}' for name, value in figures.items())}", flush=True)


def readable(value: float) -> str:
    """A number in at most four digits: ``12.3k``, ``0.4142``, ``5e-07``.

    Args:
        value: Any number, infinite ones and NaN included.
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if math.isfinite(value) and abs(value) >= size:
            return f"{value / size:.3g}{unit}" if abs(value) < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:.4g}"


def _ahead(trainer: Trainer, done: int) -> float:
    """Micro-batches that are still to come in this epoch, which ``max_steps`` may end early; infinity if unknown."""
    rest = float(trainer.num_training_batches) - done
    if trainer.max_steps < 0:
        return rest
    return min(rest, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
