"""One Lightning of two: ``lightning.pytorch`` and ``pytorch_lightning`` have the same classes, which are not the same.

Each refuses what is of the other by ``isinstance``, or ignores it without a word.
"""

from __future__ import annotations

import sys
from types import FrameType, ModuleType
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
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
        if not _is_other(sys.modules.get(frame.f_globals.get("__name__", ""))) and _imports_other(frame):
            rank_zero_warn(
                f"{frame.f_code.co_filename} imports pytorch_lightning, whose Trainer and modules do not take "
                f"{type(owner).__name__}, which is built on lightning.pytorch: {FIX}"
            )
            return
        frame = frame.f_back


def _imports_other(frame: FrameType) -> bool:
    return any(_is_other(value) for value in [*frame.f_globals.values()])


def _is_other(value: Any) -> bool:
    """True for the other package, its modules and classes."""
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__ if isinstance(value, type) else ""
    return str(name).split(".")[0] == OTHER
