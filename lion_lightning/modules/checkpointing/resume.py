"""Exact resume: state that Lightning 2.6 leaves out of a checkpoint, or stores wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn


@dataclass
class Resumption:
    """Remaining work of the batch or epoch in which a checkpoint was saved.

    Lightning goes on with the next batch instead: it skips the log's row of the batch, the validation behind it and the
    end of the epoch, and all of the end of a run that has no batch left to train, the callbacks' ``on_train_end`` too.

    Attributes:
        loops: Entry of the checkpoint.
        row: What Lightning was about to log; None for nothing.
        within_batch: True if it was saved in ``on_train_batch_end``, so that validation is still to come.
        ends: True if the epoch ends with the batch before the checkpoint.
        over: True if the epoch was over, and the run with it.
        steps: Optimizer steps that the counters were set back by, so that Lightning does not skip the end of the run.
    """

    loops: dict[str, Any]
    row: Mapping[str, Any] | None = None
    within_batch: bool = False
    ends: bool = False
    over: bool = False
    steps: int = 0

    def begin(self, trainer: Trainer) -> None:
        """Give back the steps, and the loader its place, at the start of training."""
        steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
        steps.total.completed += self.steps
        # Lightning does not hand over the loader's state where the loader was set up before the restore. Doing so twice
        # does no harm: nothing has been trained on yet, and a batch that Lightning has read ahead, as it does from a
        # loader without a length, is read anew.
        states = self.loops.get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
        loader: Any = trainer.train_dataloader
        if len(states) == 1 and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(states[0])
            fetcher: Any = trainer.fit_loop._data_fetcher
            if getattr(fetcher, "batches", None):
                iter(fetcher)

    def finish(self, trainer: Trainer) -> None:
        """Do what is left, by Lightning's own methods, before training goes on."""
        if self.row is not None:
            for logger in trainer.loggers:
                logger.log_metrics(dict(self.row["metrics"]), self.row["step"])
                logger.save()
        fit: Any = trainer.fit_loop
        loop = fit.epoch_loop
        if self.over:
            for counts in (fit.epoch_progress.total, fit.epoch_progress.current):
                counts.processed = counts.completed = counts.started
            _as_if_never_stopped(fit)
        elif self.ends:
            _as_if_never_stopped(fit)
            loop._skip_next_val = not self.within_batch
            loop.on_advance_end(fit._data_fetcher)
            fit.on_advance_end()
        elif self.within_batch and loop._should_check_val_fx(fit._data_fetcher):
            loop.batch_progress.increment_completed()
            loop.update_restart_stage()  # Lightning's name for this place: validation is done, the batch's end is not
            loop.val_loop.on_iteration_done()
            trainer.validating = True
            loop.val_loop.run()
            trainer.training = True


def _as_if_never_stopped(loop: Any) -> None:
    for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
        part.on_iteration_done()


def resumption(checkpoint: dict[str, Any], trainer: Trainer) -> Resumption:
    """Remaining work of a checkpoint; its counters are changed so that Lightning resumes at that place.

    Lightning's counters say of an epoch's last batch, or of its end, that the epoch is neither running nor over. It
    then counts an epoch too many under ``max_steps``, or repeats batches when a resumed run is resumed there again.
    """
    loops, said = _fit_loop(checkpoint), checkpoint.get("lion", {})
    left = Resumption(checkpoint["loops"], row=said.get("unlogged"))
    if loops is None:
        return left
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    enough = 0 <= trainer.max_steps <= steps["completed"]
    ended = epochs["current"]["processed"] == epochs["current"]["started"]  # saved in on_train_epoch_end, or later
    within_hook = batches["total"]["completed"] < batches["total"]["processed"]  # saved in on_train_batch_end
    left.within_batch = within_hook and not said.get("rewound", False)
    last_epoch = -1 if trainer.max_epochs is None else trainer.max_epochs
    left.over = ended and (enough or 0 <= last_epoch <= epochs["current"]["processed"])
    left.ends = not ended and batches["current"]["processed"] > 0 and (batches["is_last_batch"] or enough)
    left.steps = int(enough)
    steps["completed"] -= left.steps
    if left.ends and within_hook:
        for counts in (batches["total"], batches["current"]):
            counts["completed"] = counts["processed"]
    elif left.over or (ended and not batches["is_last_batch"] and batches["current"]["processed"]):
        # Go on within an epoch that max_steps or an early stop cut short: Lightning counts it as over.
        for counts in (epochs["total"], epochs["current"]):
            counts["processed"] = counts["completed"] = counts["started"] - 1
    elif ended and batches["is_last_batch"]:
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
        for counts in (epochs["total"], epochs["current"]):
            counts["processed"] = counts["completed"] = counts["started"]
        for place in loops["state_dict"].get("combined_loader", []):  # a limit ends it before the loader's end
            if "batches" in place:  # a stream has no length until it ends
                place["batches"] = place["length"] = max(place["batches"], place.get("length", 0))
    return left


def require_same_shapes(
    stored: Mapping[str, Any], own: Mapping[str, Any], then: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse weights of other shapes in one line, where torch has one for each tensor."""
    wrong = [name for name, tensor in stored.items() if name in own and own[name].shape != tensor.shape]
    if not wrong:
        return
    keys = [key for key in then.keys() & now.keys() if isinstance(now[key], int) and then[key] != now[key]]
    named = "; ".join(f"policy.config.{key} was {then[key]}, is {now[key]}" for key in sorted(keys))
    first = f"{wrong[0]} is {tuple(stored[wrong[0]].shape)} there and {tuple(own[wrong[0]].shape)} here"
    raise ValueError(
        f"the checkpoint's weights are of another shape than the model's ({named or first}; {len(wrong)} tensors): "
        "give the policy and the tokenizer that it was written with"
    )


def unlogged(trainer: Trainer) -> dict[str, Any] | None:
    """The row of metrics that Lightning 2.6 logs right after the hook that a checkpoint is saved in; None for none."""
    fit: Any = trainer.fit_loop
    connector = trainer._logger_connector
    batches, epochs = fit.epoch_loop.batch_progress, fit.epoch_progress
    step = fit.epoch_loop._batches_that_stepped
    if not trainer.training or not trainer.loggers:
        return None
    if batches.total.completed < batches.total.processed:
        due = connector.should_update_logs and not fit._should_accumulate()
    else:  # at the end of an epoch, where the step is that of its last batch
        due, step = epochs.total.completed < epochs.total.processed, step - 1
    metrics = connector.metrics["log"] if due else {}
    plain = {name: float(value) for name, value in metrics.items()}
    return {"step": step, "metrics": {**plain, "epoch": trainer.current_epoch}} if plain else None


def _fit_loop(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The counters of training, if they have the form of Lightning 2.6; a later one may have fixed them itself."""
    loops: dict[str, Any] = checkpoint["loops"].get("fit_loop", {})
    if {"epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict", "state_dict"} <= loops.keys():
        return loops
    rank_zero_warn("This Lightning keeps other counters than 2.6 does: a resume from this checkpoint may be inexact.")
    return None


def rewind(checkpoint: dict[str, Any], trainer: Trainer) -> bool:
    """Let a checkpoint that is saved within an accumulation window, or within a batch, stand right after the last step.

    Lightning saves neither a half-filled window's gradients nor that a batch was handed out but not trained. Weights
    and optimizer are those of the last step, so counters and loader go back to it, on all ranks alike: the checkpoint
    becomes the one that ``ModelCheckpoint(every_n_train_steps=...)`` would have saved there.

    Returns:
        True if anything was undone. What follows the last step, its row in the log and validation, was then done.
    """
    loops = _fit_loop(checkpoint)
    if loops is None:
        return False
    batches, places = loops["epoch_loop.batch_progress"], loops["state_dict"].get("combined_loader", [])
    if any("batches" not in place for place in places):
        return False  # a loader of another make, which cannot be told to go back
    current = batches["current"]
    ended = batches["is_last_batch"] and current["processed"] == current["ready"]
    kept = current["processed"] - (0 if ended else current["processed"] % trainer.accumulate_grad_batches)
    for place in places:
        place["batches"] = min(place["batches"], kept)
    if undone := current["ready"] - kept:
        for counts in (current, batches["total"]):
            ready = counts["ready"] - undone
            counts.update(ready=ready, started=ready, processed=ready, completed=ready - 1)
        batches["is_last_batch"] = False
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    return bool(undone)
