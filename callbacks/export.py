"""A Hugging Face folder at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from typing_extensions import override

from lion_lightning.callbacks.folders import require_writable, writes_files
from lion_lightning.models.checkpoints.export import export_policy, refuse_own_base
from lion_lightning.models.checkpoints.folders import PREFIX
from lion_lightning.models.checkpoints.lion_entry import read_entry
from lion_lightning.models.packing.model import PackedModel
from lion_lightning.models.weights.dtensor import unwrapped
from lion_lightning.models.weights.full_state import full_tensors, unflattened
from lion_lightning.modules.checkpointing.averaging import run_last


class HuggingFaceExport(Callback):
    """Writes the trained policy as a Hugging Face folder when the fit is over: see :func:`export_policy`.

    The weights are gathered by all ranks, a tensor at a time, and kept and written by global rank 0. They are the run's
    result, after every callback that changes them (weight averaging), wherever it is listed. A run that ends in an
    exception or is interrupted writes nothing, nor does ``fast_dev_run``; ``lion export CKPT OUT`` makes the same
    folder from a checkpoint.

    Args:
        dirpath: Folder to write; None for ``export`` under the trainer's ``default_root_dir``.

    Raises:
        MisconfigurationException: Before training, if the folder cannot be written or the module cannot be exported;
            after it, if a weight is not finite.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._written: Path | None = None

    def folder(self, trainer: Trainer) -> Path:
        """Where the export goes."""
        return Path(self.dirpath or Path(trainer.default_root_dir) / "export")

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not callable(getattr(pl_module, "provenance", None)):
            raise MisconfigurationException(
                f"HuggingFaceExport: {type(pl_module).__name__} has no provenance() method, which says what to export; "
                "subclass AlignmentModule, or take the callback out of trainer.callbacks."
            )
        run_last(trainer, self)
        fix = "give HuggingFaceExport another dirpath, or the trainer another default_root_dir."
        require_writable(trainer, self.folder(trainer), fix)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        try:  # not in setup: the model is built by now
            entry = read_entry({"lion": pl_module.provenance()}, trust_remote_code=False)
            refuse_own_base(entry, self.folder(trainer))
        except ValueError as error:
            raise MisconfigurationException(f"HuggingFaceExport: {type(pl_module).__name__}: {error}") from error
        model = getattr(pl_module, "policy_model", None)
        if isinstance(model, FullyShardedDataParallel):
            model = model.module
        if not isinstance(model, PackedModel):
            raise MisconfigurationException(
                f"HuggingFaceExport: {type(pl_module).__name__}.policy_model is not a PackedModel, so there is nothing "
                "to export; subclass AlignmentModule, or take the callback out of trainer.callbacks."
            )
        trained = [name for name, parameter in pl_module.named_parameters() if parameter.requires_grad]
        if left_out := [name for name in trained if not unwrapped(name).startswith(PREFIX)]:
            rank_zero_warn(
                f"HuggingFaceExport writes the policy alone; trained, and not in it: {', '.join(left_out[:3])}."
            )

    @override
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not writes_files(trainer):
            return
        state = _weights(pl_module.policy_model, kept=trainer.is_global_zero)
        reason = self._write(trainer, pl_module, state) if trainer.is_global_zero else None
        if reason := trainer.strategy.broadcast(reason):  # a rank that went on alone would wait for the others
            raise MisconfigurationException(f"HuggingFaceExport: nothing was exported: {reason}")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._written is not None:  # said here, below the progress bar
            rank_zero_info(f"HuggingFaceExport: wrote the policy to {self._written}")

    def _write(self, trainer: Trainer, module: Any, state: dict[str, Tensor]) -> str | None:
        """Write the folder, and return why it could not be done."""
        provenance = module.provenance()
        checkpoint = {"state_dict": state, "lion": provenance}
        code = bool(provenance["policy"].get("trust_remote_code"))  # said by this run's config, not by a file
        try:
            with isolate_rng():  # the model to fill is created with random weights
                self._written = export_policy(checkpoint, self.folder(trainer), trust_remote_code=code)
        except (ValueError, OSError) as error:
            return str(error)
        return None


def _weights(policy: PackedModel, kept: bool) -> dict[str, Tensor]:
    """The policy's weights on the CPU where they are kept; all ranks must call this, each holds a tensor at a time."""
    with unflattened(policy):
        weights = full_tensors((unwrapped(name), tensor) for name, tensor in policy.model.state_dict().items())
        return {f"{PREFIX}{name}": tensor.to("cpu", copy=True) for name, tensor in weights if kept}
