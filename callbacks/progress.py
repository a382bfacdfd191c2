"""A progress bar with the few metrics that matter, and plain lines without a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomTimeColumn, ProcessingSpeedColumn
from rich.console import Console
from rich.progress import BarColumn
from torch.optim import Optimizer
from typing_extensions import override

from lion_lightning.one_lightning import LionCallback
from lion_lightning.printing import clock


class LionProgressBar(LionCallback, RichProgressBar):
    """Shows loss, accuracy, margin, speed and learning rate under short names, in numbers that can be read at a glance.

    On a terminal it is Lightning's rich bar with other metrics. Anywhere else (a pipe, a file, a CI log) it prints
    plain lines without control characters: at the first step, then every so often, at the end of each epoch and after
    each validation. They tell the share of the fit that is done and the time left at the speed of this process, so
    that they are right after a resume. Only rank 0 prints. Metrics that are not logged are left out; what a module
    logs with ``prog_bar=True`` is shown too.

    A subclass says what to show by :attr:`metrics`.

    Args:
        refresh_rate: Times a second that the bar is drawn; 0 shows nothing.
        leave: True to keep the bar of a finished epoch on the screen.
        every_seconds: Without a terminal: seconds between two lines. The first lines come sooner (a tenth of the time
            since the start apart, at least 2 seconds), so that a short fit shows how it goes.
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
        "on_policy/pairs": "pairs",
        "on_policy/groups": "groups",
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
            raise ValueError(f"LionProgressBar.every_seconds is {every_seconds}; give the seconds between two lines.")
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"LionProgressBar.every_steps is {every_steps}; give at least 1.")
        super().__init__(refresh_rate, leave, console_kwargs=console_kwargs)
        self.every_seconds, self.every_steps = every_seconds, every_steps
        self._animated = False
        self._due = 0.0  # when the next line is, on the monotonic clock
        self._said = 0  # optimizer steps at the last line
        self._clock = _FitClock(0.0)
        self._rate: float | None = None  # of the step that was made last
        self._left = math.nan  # seconds of the fit

    @property
    @override
    def is_enabled(self) -> bool:
        """True if the bar is drawn; else plain lines are printed."""
        return super().is_enabled and self._animated

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        console = Console(**self._console_kwargs)
        self._animated = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
        self._due, self._said, self._rate = 0.0, trainer.global_step, None
        self._clock, self._left = _FitClock(time.monotonic()), math.nan

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        logged: dict[str, Any] = {**trainer.callback_metrics}
        if self._rate is not None:
            logged["lr"] = self._rate
        known = {short: logged[key] for key, short in self.metrics.items() if key in logged}
        left = {} if math.isnan(self._left) or not self._animated else {"left": clock(self._left)}
        others = {key: value for key, value in trainer.progress_bar_metrics.items() if key not in self.metrics}
        return left | {name: readable(float(value)) for name, value in (known | others).items()}

    @override
    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """A short bar, no batches a second and no time of the epoch, so that the metrics fit next to it."""
        left_out = (ProcessingSpeedColumn, CustomTimeColumn)
        columns = [column for column in super().configure_columns(trainer) if not isinstance(column, left_out)]
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = 16
        return columns

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        """The epoch, counted from 1 as in the plain lines (Lightning 2.6 counts from 0)."""
        epochs = self.trainer.max_epochs or -1
        return f"epoch {current_epoch + 1}/{epochs}" if epochs > 0 else f"epoch {current_epoch + 1}"

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again: what follows is the first epoch's data."""
        super().on_sanity_check_end(trainer, pl_module)
        self._clock = _FitClock(time.monotonic())

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # The time before an epoch's first batch, or this process's first, is that of sampling and data.
        first = self._clock.share_before is None
        if first:
            self._clock.share_before = _share_done(trainer, batch_idx)
        if first or batch_idx == 0:
            # Before the first batch there is much that comes once, unless each epoch has its own round of data.
            counts = not first or trainer.reload_dataloaders_every_n_epochs > 0  # type: ignore[attr-defined]
            self._clock.between_epochs(time.monotonic(), counts)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._rate = float(optimizer.param_groups[0]["lr"])  # a schedule changes it before the batch ends

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step, batches = time.monotonic(), trainer.global_step, batch_idx + 1
        self._clock.trained(now)
        epochs_left = max(0, (trainer.max_epochs or -1) - trainer.current_epoch - 1)
        self._left = self._clock.left(_share_done(trainer, batches), epochs_left)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        due = now >= self._due or (self.every_steps is not None and step % self.every_steps == 0)
        ends = 0 <= trainer.max_steps <= step or batches >= trainer.num_training_batches
        if self._speaks and step > self._said and (ends or due):
            self._said = step
            # The first lines come sooner, so that a short fit shows how it goes.
            self._due = now + min(self.every_seconds, max(2.0, (self._clock.training + self._clock.between) / 10))
            self._say(self._position(trainer, batches), self.get_metrics(trainer, pl_module))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._speaks and trainer.state.fn == "fit":  # Lightning prints the metrics of other validations itself
            title = "sanity check" if trainer.sanity_checking else f"validation at step {trainer.global_step}"
            shown = {short for key, short in self.metrics.items() if key.startswith("val/")}
            metrics = self.get_metrics(trainer, pl_module)
            self._say(title, {name: value for name, value in metrics.items() if name in shown})

    @property
    def _speaks(self) -> bool:
        return super().is_enabled and not self._animated

    def _position(self, trainer: Trainer, batches: int) -> str:
        """Share of the fit that is done, epoch, step, and the time left."""
        share = _share_done(trainer, batches)
        max_epochs = trainer.max_epochs or -1
        epochs = f"/{max_epochs}" if max_epochs > 0 else ""
        position = f"epoch {trainer.current_epoch + 1}{epochs}, step {trainer.global_step}"
        return position if math.isnan(self._left) else f"{share:.0%}, {position}, {clock(self._left)} left"

    def _say(self, title: str, metrics: Mapping[str, str]) -> None:
        self.print(f"{title}: {', '.join(f'{name} {value}' for name, value in metrics.items())}", flush=True)


@dataclass
class _FitClock:
    """Time that this process spent in training batches, and between epochs.

    Attributes:
        last: When the last batch ended, or the first one was waited for.
        share_before: Share of the fit that was done when this process joined; None before its first batch.
        training: Seconds in batches, validation within an epoch included.
        between: Seconds between epochs: validation, sampling, data.
        epochs: Epochs that ``between`` is of.
    """

    last: float
    share_before: float | None = None
    training: float = 0.0
    between: float = 0.0
    epochs: int = 0

    def between_epochs(self, now: float, counts: bool) -> None:
        if counts:
            self.between += now - self.last
            self.epochs += 1
        self.last = now

    def trained(self, now: float) -> None:
        self.training += now - self.last
        self.last = now

    def left(self, share: float, epochs: int) -> float:
        """Seconds left with this share of the fit done and that many epochs to come; NaN if unknown."""
        gained = share - (self.share_before or 0.0)
        if not gained > 0:
            return math.nan
        return self.training / gained * (1 - share) + epochs * self.between / max(self.epochs, 1)


def readable(value: float) -> str:
    """A number in at most four digits: ``12.3k``, ``0.4142``, ``5e-07``; infinite ones and NaN too."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if math.isfinite(value) and abs(value) >= size:
            return f"{value / size:.3g}{unit}" if abs(value) < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:.4g}"


def _share_done(trainer: Trainer, batches: int) -> float:
    """Share of a fit that is done, by epochs or by ``max_steps``, whichever ends it first; NaN if neither is known.

    Epochs count alike, though those of on-policy training differ in length.
    """
    total = float(trainer.num_training_batches)
    epochs = trainer.max_epochs or -1
    by_epochs = by_steps = math.nan
    if epochs > 0 and math.isfinite(total) and total > 0:
        by_epochs = (trainer.current_epoch + batches / total) / epochs
    if trainer.max_steps > 0:
        by_steps = trainer.global_step / trainer.max_steps
    return max((share for share in (by_epochs, by_steps) if not math.isnan(share)), default=math.nan)
