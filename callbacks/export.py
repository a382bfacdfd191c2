"""A Hugging Face folder at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lion_lightning.callbacks.folders import require_writable
from lion_lightning.models.checkpoints import PREFIX
from lion_lightning.models.export import export_policy
from lion_lightning.models.gathering import whole_tensors
from lion_lightning.models.pieces import unwrapped
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.unsharding import with_shapes


class HuggingFaceExport(Callback):
    """Writes the trained policy as a Hugging Face folder when the fit is over: see :func:`export_policy`.

    The weights are gathered by all ranks, a tensor at a time, and kept and written by global rank 0. A run that ends in
    an exception or is interrupted writes nothing; ``lion export CKPT OUT`` makes the same folder from a checkpoint.

    Args:
        dirpath: Folder to write; None for ``export`` under the trainer's ``default_root_dir``.

    Raises:
        MisconfigurationException: Before training, if the folder cannot be written or the module cannot be exported.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._written: Path | None = None

    def folder(self, trainer: Trainer) -> Path:
        """Where the export goes.

        Args:
            trainer: The trainer of the run.
        """
        return Path(self.dirpath or Path(trainer.default_root_dir) / "export")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before training what would fail after it (Lightning calls this)."""
        if stage != "fit":
            return
        if not callable(getattr(pl_module, "provenance", None)):
            raise MisconfigurationException(
                f"HuggingFaceExport: {type(pl_module).__name__} has no provenance() method, which says what to export; "
                "subclass AlignmentModule, or take the callback out of trainer.callbacks."
            )
        fix = "give HuggingFaceExport another dirpath, or the trainer another default_root_dir."
        require_writable(trainer, self.folder(trainer), fix)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the folder (Lightning calls this, and not after an exception)."""
        state = _weights(pl_module.policy_model, kept=trainer.is_global_zero)
        if trainer.is_global_zero:
            with isolate_rng():  # the model to fill is created with random weights
                self._written = export_policy(
                    {"state_dict": state, "lion": pl_module.provenance()}, self.folder(trainer)
                )
        trainer.strategy.barrier("HuggingFaceExport")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where it is, below the progress bar (Lightning calls this)."""
        if self._written is not None:
            rank_zero_info(f"HuggingFaceExport: wrote the policy to {self._written}")


def _weights(policy: PolicyModel, kept: bool) -> dict[str, Tensor]:
    """The policy's weights on the CPU where they are kept; all ranks must call this, each holds a tensor at a time."""
    with with_shapes(policy):
        weights = whole_tensors((unwrapped(name), tensor) for name, tensor in policy.model.state_dict().items())
        return {f"{PREFIX}{name}": tensor.to("cpu", copy=True) for name, tensor in weights if kept}
