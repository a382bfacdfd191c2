"""A Hugging Face folder at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from lion_lightning.callbacks.folders import require_writable, writes_files
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.checkpoints.export import export_policy, refuse_own_base
from lion_lightning.models.checkpoints.folders import PREFIX
from lion_lightning.models.checkpoints.lion_entry import read_entry
from lion_lightning.models.checkpoints.model_folder import describe_model, write_model
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.generation.trained import builds_early, find_policy, find_tokenizer
from lion_lightning.models.packing.model import PackedModel
from lion_lightning.models.weights.dtensor import unwrapped
from lion_lightning.models.weights.full_state import full_tensors, unflattened
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.checkpointing.averaging import run_last
from lion_lightning.one_lightning import LionCallback


class HuggingFaceExport(LionCallback):
    """Writes the trained policy as a Hugging Face folder when the fit is over: see :func:`export_policy`.

    The weights are gathered by all ranks, a tensor at a time, and kept and written by global rank 0. They are the run's
    result, after every callback that changes them (weight averaging), wherever it is listed. A run that ends in an
    exception or is interrupted writes nothing, nor does ``fast_dev_run``; ``lion export CKPT OUT`` makes the same
    folder from a checkpoint.

    Works with any LightningModule that trains one causal LM of transformers, bare, under PEFT's adapters (which are
    merged) or in a :class:`~lion_lightning.PolicyModel`. The tokenizer is the module's (``self.tokenizer``) or the data
    module's (:mod:`lion_lightning.models.generation.trained`).

    Args:
        dirpath: Folder to write; None for ``export`` under the trainer's ``default_root_dir``.

    Raises:
        MisconfigurationException: Before training, if the folder cannot be written, or the module has no model or no
            tokenizer to write; after it, if a weight is not finite.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._written: Path | None = None

    def folder(self, trainer: Trainer) -> Path:
        """Where the export goes."""
        return Path(self.dirpath or Path(trainer.default_root_dir) / "export")

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if builds_early(pl_module):
            self._rollout_policy(trainer, pl_module)
        run_last(trainer, self)
        fix = "give HuggingFaceExport another dirpath, or the trainer another default_root_dir."
        require_writable(trainer, self.folder(trainer), fix)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder, left_out = self.folder(trainer), []
        try:  # not in setup: the model is built by now
            if isinstance(pl_module, AlignmentModule):
                refuse_own_base(read_entry({"lion": pl_module.provenance()}, trust_remote_code=False), folder)
            else:
                describe_model(self._rollout_policy(trainer, pl_module), folder)
        except ValueError as error:
            raise MisconfigurationException(f"HuggingFaceExport: {type(pl_module).__name__}: {error}") from error
        policy: Any = find_policy(pl_module, type(self).__name__)
        written = {id(parameter) for parameter in policy.parameters()}
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and id(parameter) not in written:
                left_out.append(name)
        if left_out:
            rank_zero_warn(
                f"HuggingFaceExport writes the policy alone; trained, and not in it: {', '.join(left_out[:3])}."
            )

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not writes_files(trainer):
            return
        write = self._of_module if isinstance(pl_module, AlignmentModule) else self._of_model
        reason = write(trainer, pl_module)
        if reason := trainer.strategy.broadcast(reason):  # a rank that went on alone would wait for the others
            raise MisconfigurationException(f"HuggingFaceExport: nothing was exported: {reason}")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._written is not None:  # said here, below the progress bar
            rank_zero_info(f"HuggingFaceExport: wrote the policy to {self._written}")

    def _of_module(self, trainer: Trainer, module: Any) -> str | None:
        """Write the folder by the specs that a module was built by, and return why it could not be done."""
        provenance, state = module.provenance(), _weights(module.policy_model, kept=trainer.is_global_zero)
        checkpoint = {"state_dict": state, "lion": provenance}
        code = bool(provenance["policy"].get("trust_remote_code"))  # said by this run's config, not by a file
        write = partial(export_policy, checkpoint, self.folder(trainer), trust_remote_code=code)
        return self._write(write) if trainer.is_global_zero else None

    def _of_model(self, trainer: Trainer, module: LightningModule) -> str | None:
        """Write the folder as the model is, and return why it could not be done."""
        policy, kept = self._rollout_policy(trainer, module), {}
        data: Any = getattr(trainer, "datamodule", None)
        for name, tensor in policy.weights():
            if trainer.is_global_zero:
                kept[name] = tensor.detach().to("cpu", copy=True)
        described = data.description() if hasattr(data, "description") else {}
        about = {"module": type(module).__name__, "steps": trainer.global_step, "data": described}
        folder = self.folder(trainer)
        write = partial(write_model, policy, kept, describe_model(policy, folder, **about), folder)
        return self._write(write) if trainer.is_global_zero else None

    def _write(self, write: Callable[[], Path]) -> str | None:
        try:
            with isolate_rng():  # the model to fill is created with random weights
                self._written = write()
        except (ValueError, OSError) as error:
            return str(error)
        return None

    def _rollout_policy(self, trainer: Trainer, module: LightningModule) -> RolloutPolicy:
        policy: Any = find_policy(module, type(self).__name__)
        tokenizer = find_tokenizer(module, getattr(trainer, "datamodule", None), type(self).__name__)
        return RolloutPolicy(policy, tokenizer, Ranks.of(trainer.strategy))


def _weights(policy: PackedModel, kept: bool) -> dict[str, Tensor]:
    """The policy's weights on the CPU where they are kept; all ranks must call this, each holds a tensor at a time."""
    with unflattened(policy):
        weights = full_tensors((unwrapped(name), tensor) for name, tensor in policy.model.state_dict().items())
        return {f"{PREFIX}{name}": tensor.to("cpu", copy=True) for name, tensor in weights if kept}
