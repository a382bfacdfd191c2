"""What Lightning 2.6 leaves out of a checkpoint, or gets wrong in one, that an exact resume needs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn


def mend_progress(checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint of an epoch's last batch, or of its end, resume at the start of the next epoch.

    Lightning's counters say there that the epoch is neither running nor over. It then counts an epoch too many under
    ``max_steps``, or repeats batches when a run that was resumed there is resumed once more.

    Args:
        checkpoint: A loaded checkpoint, before Lightning restores its loops from it; changed in place.
    """
    loops = _fit_loop(checkpoint)
    if loops is None:
        return
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    within_hook = batches["total"]["completed"] < batches["total"]["processed"]  # saved in on_train_batch_end
    ended = epochs["current"]["processed"] == epochs["current"]["started"]  # saved in on_train_epoch_end, or later
    if ended and not batches["is_last_batch"] and batches["current"]["processed"]:
        _reopen_epoch(epochs)
    if not batches["is_last_batch"] or not (within_hook or ended):
        return
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["started"]
    batches["total"]["completed"] = batches["total"]["processed"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] += within_hook


def _fit_loop(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The counters of training, if they have the form of Lightning 2.6; a later one may have mended them itself."""
    loops: dict[str, Any] = checkpoint["loops"].get("fit_loop", {})
    if {"epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict", "state_dict"} <= loops.keys():
        return loops
    rank_zero_warn("This Lightning keeps other counters than 2.6 does: a resume from this checkpoint may be inexact.")
    return None


def _reopen_epoch(epochs: dict[str, Any]) -> None:
    """Go on within an epoch that ``max_steps`` or an early stop cut short: Lightning counts it as over."""
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["started"] - 1


def restore_loader(trainer: Trainer, loops: dict[str, Any]) -> None:
    """Hand the train loader its saved state, which Lightning does not where the loader was set up before the restore.

    Doing so twice does no harm: nothing has been read from the loader yet.

    Args:
        trainer: At the start of training.
        loops: Entry of the checkpoint.
    """
    states = loops.get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
    loader: Any = trainer.train_dataloader
    if len(states) == 1 and hasattr(loader, "load_state_dict"):
        loader.load_state_dict(states[0])


def rewind(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Let a checkpoint that is saved within an accumulation window, or within a batch, stand right after the last step.

    Lightning saves neither a half-filled window's gradients nor that a batch was handed out but not trained. Weights
    and optimizer are those of the last step, so counters and loader go back to it, on all ranks alike: the checkpoint
    becomes the one that ``ModelCheckpoint(every_n_train_steps=...)`` would have saved there.

    Args:
        checkpoint: What is about to be saved; changed in place.
        trainer: Whose checkpoint it is.
    """
    loops = _fit_loop(checkpoint)
    if loops is None:
        return
    batches, places = loops["epoch_loop.batch_progress"], loops["state_dict"].get("combined_loader", [])
    if any("batches" not in place for place in places):
        return  # a loader of another make, which cannot be told to go back
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
