"""What Lightning 2.6 leaves out of a checkpoint, or gets wrong in one, that an exact resume needs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

WINDOW = "lion_window"
"""Key in a checkpoint of the gradients of an accumulation window that was open when it was saved."""


def mend_progress(checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint of an epoch's last batch, or of its end, resume at the start of the next epoch.

    Lightning's counters say there that the epoch is neither running nor over. It then counts an epoch too many under
    ``max_steps``, or repeats batches when a run that was resumed there is resumed once more.

    Args:
        checkpoint: A loaded checkpoint, before Lightning restores its loops from it; changed in place.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    within_hook = batches["total"]["completed"] < batches["total"]["processed"]  # saved in on_train_batch_end
    ended = epochs["current"]["processed"] == epochs["current"]["started"]  # saved in on_train_epoch_end, or later
    if not batches["is_last_batch"] or not (within_hook or ended):
        return
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["started"]
    batches["total"]["completed"] = batches["total"]["processed"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] += within_hook


def restore_loader(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Hand the train loader its saved state, which Lightning does not where the loader was set up before the restore.

    Doing so twice does no harm: nothing has been read from the loader yet.

    Args:
        trainer: At the start of training.
        checkpoint: Its ``loops`` entry is read.
    """
    states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    loader: Any = trainer.train_dataloader
    if len(states) == 1 and hasattr(loader, "load_state_dict"):
        loader.load_state_dict(states[0])


def save_window(module: LightningModule, totals: dict[str, Tensor], checkpoint: dict[str, Any]) -> None:
    """Keep the gradients of a half-filled accumulation window, which Lightning does not save.

    Args:
        module: Its parameters hold the gradients.
        totals: What the window's micro-batches added up so far.
        checkpoint: Where to keep both.
    """
    if module.trainer.world_size > 1:
        rank_zero_warn(
            "This checkpoint lies within an accumulation window, and each rank's part of the gradient is not saved: a "
            "run resumed from it is not exact. Let ModelCheckpoint save every_n_train_steps."
        )
        return
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    checkpoint[WINDOW] = {"gradients": gradients, "totals": totals}


def restore_window(module: LightningModule, window: dict[str, Any]) -> dict[str, Tensor]:
    """Put the gradients of an open window back and return its totals.

    Args:
        module: The module, on its device.
        window: What :func:`save_window` kept.
    """
    for name, parameter in module.named_parameters():
        if name in window["gradients"]:
            parameter.grad = window["gradients"][name].to(parameter.device, parameter.dtype)
    return {name: total.to(module.device) for name, total in window["totals"].items()}
