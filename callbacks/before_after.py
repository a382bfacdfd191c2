"""Validation metrics and answers before and after training, side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lion_lightning.callbacks.folders import require_writable_root, write_json
from lion_lightning.callbacks.samples import greedy_answers, log_text, require_answers
from lion_lightning.modules.checkpointing.averaging import run_last
from lion_lightning.modules.trainer.batches import evaluation_batches
from lion_lightning.one_lightning import LionCallback
from lion_lightning.printing import literal


class Snapshot(NamedTuple):
    """A model at one moment.

    Attributes:
        step: Optimizer steps done when the metrics were taken.
        metrics: Validation metrics, by log key.
        answers: Greedy answer, by prompt.
    """

    step: int
    metrics: dict[str, float]
    answers: dict[str, str]


_NOTHING = Snapshot(0, {}, {})


class BeforeAfter(LionCallback):
    """Shows what a fit changed: prints a table and writes ``before_after.json`` under ``default_root_dir``.

    Under ``fast_dev_run`` it prints, and writes nothing.

    *Before* is the sanity check, which must see the full validation set (``trainer.num_sanity_val_steps: -1``) where
    there is one, and greedy answers to the prompts; it is kept in checkpoints, so that a resumed run compares with the
    first run's start.
    *After* is the last validation, and the answers of the run's result (of averaged weights, where they are averaged).
    The answers also go to every logger whose experiment takes text (TensorBoard). Watching changes nothing: random
    state and training mode stay as they were.

    On one device or under DDP, rank 0 alone generates while the others wait; under any other strategy all ranks do,
    since each holds only a shard of the weights.

    Args:
        prompts: What a user says, one turn each; None for no answers.
        max_new_tokens: Length limit of an answer.

    Raises:
        ValueError: If ``max_new_tokens`` is not positive.
        MisconfigurationException: Before training, if the report cannot be written or the module has no policy.
    """

    filename = "before_after.json"

    def __init__(self, prompts: list[str] | None = None, max_new_tokens: int = 64) -> None:
        if max_new_tokens < 1:
            raise ValueError(
                f"BeforeAfter.max_new_tokens: {max_new_tokens} leaves no room for an answer; give at least 1."
            )
        self.prompts = list(prompts or [])
        self.max_new_tokens = max_new_tokens
        self.before: Snapshot | None = None
        self.after: Snapshot | None = None
        self._validated: Snapshot | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if trainer.global_step == 0:  # another run than the one that this object may have seen
            self.before = self.after = self._validated = None
        if self.prompts:
            require_answers(self, trainer, pl_module)
        run_last(trainer, self)
        require_writable_root(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking and trainer.num_sanity_val_batches != trainer.num_val_batches:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._validated = Snapshot(trainer.global_step, metrics, {})

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.before is not None:  # it came with the checkpoint
            return
        if trainer.global_step > 0:
            rank_zero_warn(
                "BeforeAfter: the checkpoint was written without this callback, so nothing is known of before."
            )
            return
        if self._validated is None and evaluation_batches(trainer):  # there is something to validate on
            rank_zero_warn(
                "BeforeAfter: there was no validation of the full set before training, so no metrics of before; set "
                "trainer.num_sanity_val_steps: -1."
            )
        self.before = self._snapshot(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the state after training, write the report and log it (not after an exception)."""
        self.after = self._snapshot(trainer, pl_module)
        if self.after.step != trainer.global_step:
            rank_zero_warn(
                f"BeforeAfter: validation last ran at step {self.after.step} of {trainer.global_step}; set "
                "trainer.val_check_interval so that it runs at the end."
            )
        if trainer.is_global_zero:
            self._write(trainer, self.before or _NOTHING, self.after)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self.after is None:
            return
        from rich.console import Console
        from rich.table import Table

        moments = before, after = self.before or _NOTHING, self.after
        table = Table("", f"before (step {before.step})", f"after (step {after.step})", title="What training did")
        for name in sorted({*before.metrics, *after.metrics}):
            values = (moment.metrics.get(name) for moment in moments)
            table.add_row(name, *("-" if value is None else f"{value:.4g}" for value in values))
        table.add_section()
        for prompt, answer in after.answers.items():
            table.add_row(*map(literal, (prompt, before.answers.get(prompt, "-"), answer)))
        Console().print(table)  # here, below the progress bar

    @override
    def state_dict(self) -> dict[str, Any]:
        kept = {"before": self.before, "validated": self._validated}
        return {name: snapshot and snapshot._asdict() for name, snapshot in kept.items()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            before, validated = state_dict["before"], state_dict["validated"]
            self.before = Snapshot(**before) if before else None
            self._validated = Snapshot(**validated) if validated else None
        except (KeyError, TypeError) as error:
            raise ValueError(f"the checkpoint's state of BeforeAfter is odd ({error!r}); take another one") from error

    def _snapshot(self, trainer: Trainer, module: LightningModule) -> Snapshot:
        validated = self._validated or _NOTHING._replace(step=trainer.global_step)
        return validated._replace(answers=greedy_answers(trainer, module, self.prompts, self.max_new_tokens))

    def _write(self, trainer: Trainer, before: Snapshot, after: Snapshot) -> None:
        answers = [
            {"prompt": prompt, "before": before.answers.get(prompt), "after": answer}
            for prompt, answer in after.answers.items()
        ]
        report = {
            "steps": trainer.global_step,
            "before": {"step": before.step, "metrics": before.metrics},
            "after": {"step": after.step, "metrics": after.metrics},
            "answers": answers,
        }
        write_json(trainer, self.filename, report, ensure_ascii=False)
        texts = (f"**{each['prompt']}**\n\nbefore: {each['before']}\n\nafter: {each['after']}" for each in answers)
        log_text(trainer, "before_after", "\n\n---\n\n".join(texts))
