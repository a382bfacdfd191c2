"""One Lightning of two: ``lightning.pytorch`` and ``pytorch_lightning`` have the same classes, which are not the same.

Each refuses what is of the other by ``isinstance``, or ignores it without a word.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

OTHER = "pytorch_lightning"
FIX = "import Lightning as lightning.pytorch everywhere (`import lightning.pytorch as pl`)"


class LionCallback(Callback):
    """A callback that refuses a Trainer of ``pytorch_lightning``; one that overrides ``setup`` calls this one first.

    Raises:
        MisconfigurationException: In ``setup``, if Trainer, module or data are of that package.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require_one_lightning(self, trainer, pl_module, getattr(trainer, "datamodule", None))
        super().setup(trainer, pl_module, stage)


class LionDataModule(LightningDataModule):
    """A data module that refuses a Trainer of ``pytorch_lightning``, and warns where a file that makes it imports that.

    Raises:
        MisconfigurationException: Where a Trainer of that package is set.
    """

    def __init__(self) -> None:
        """Look at the files that make the data module."""
        super().__init__()
        warn_of_other_lightning(self)

    @property  # type: ignore[explicit-override]
    def trainer(self) -> Trainer | None:
        """The Trainer that the data is attached to."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        require_one_lightning(self, trainer)
        self._trainer = trainer


def require_one_lightning(owner: object, *others: object) -> None:
    """Refuse to work with objects of ``pytorch_lightning``.

    Args:
        owner: An object of this package, which is built on ``lightning.pytorch``.
        others: A Trainer, module, data module, callbacks.

    Raises:
        MisconfigurationException: One of them is of the other package.
    """
    for other in others:
        if any(_is_other(base) for base in type(other).__mro__):
            raise MisconfigurationException(
                f"{type(owner).__name__} is built on lightning.pytorch, and {type(other).__name__} on "
                f"pytorch_lightning, two packages that do not know each other's classes: {FIX}"
            )


def warn_of_other_lightning(owner: object) -> None:
    """Warn where a file that makes an object of this package has imported ``pytorch_lightning``.

    Its Trainer would refuse the object as no LightningModule, before any code of this package runs.
    """
    frame = sys._getframe(1) if OTHER in sys.modules else None
    while frame is not None:
        if not _is_other(sys.modules.get(frame.f_globals.get("__name__", ""))) and any(
            _is_other(value) for value in [*frame.f_globals.values()]
        ):
            rank_zero_warn(
                f"{frame.f_code.co_filename} imports pytorch_lightning, whose Trainer and modules do not take "
                f"{type(owner).__name__}, which is built on lightning.pytorch: {FIX}"
            )
            return
        frame = frame.f_back


def _is_other(value: Any) -> bool:
    """True for the other package, its modules and classes."""
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__ if isinstance(value, type) else ""
    return str(name).split(".")[0] == OTHER
