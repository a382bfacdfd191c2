"""When callbacks that look at the weights run among those that change them (Lightning's weight averaging)."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer


def run_first(trainer: Trainer, callback: Callback) -> None:
    """Have a callback's hooks run before those of the others, wherever it is listed.

    At the end of a validation it then finds the weights that were validated, not those that averaging puts back.

    Args:
        trainer: In ``setup``. It gets a new list: Lightning goes through the old one meanwhile.
        callback: One of its callbacks.
    """
    trainer.callbacks = [callback, *_others(trainer, callback)]  # type: ignore[attr-defined]


def run_last(trainer: Trainer, callback: Callback) -> None:
    """Have a callback's hooks run after those of the others, wherever it is listed.

    At the end of training it then finds the weights that are the run's result, e.g. averaged ones.

    Args:
        trainer: In ``setup``. It gets a new list: Lightning goes through the old one meanwhile.
        callback: One of its callbacks.
    """
    trainer.callbacks = [*_others(trainer, callback), callback]  # type: ignore[attr-defined]


def _others(trainer: Trainer, callback: Callback) -> list[Callback]:
    return [one for one in trainer.callbacks if one is not callback]  # type: ignore[attr-defined]
