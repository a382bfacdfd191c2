"""The exact mean over the items of an optimizer step, for any LightningModule."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lion_lightning.data.packing.padded import as_packed
from lion_lightning.distributed.replicas import Replica, sum_over_replicas
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.optimization.gradients import scale_gradients
from lion_lightning.one_lightning import LionCallback

Items = Literal["targets", "pairs", "answers", "samples"]


class StepMean(LionCallback):
    """Divides the gradients of a step by the items of all of its micro-batches on all ranks.

    For a LightningModule of your own whose ``training_step`` returns the **sum** of its loss over a micro-batch's
    items. The mean of the micro-batches' means would weigh a token by how many others happen to be in its micro-batch.
    Gradients are divided before they are clipped. An ``AlignmentModule`` does this itself.

    Args:
        items: What the loss is a sum over: supervised tokens (``targets``), ``pairs``, ``answers``, or ``samples``
            (documents; prompts with all of their answers).

    Raises:
        MisconfigurationException: Before training, if the module makes its steps itself; at the first batch, if that is
            neither packed nor padded as transformers takes it; at the first step, if pairs or answers are counted and
            there are none.
    """

    def __init__(self, items: Items = "targets") -> None:
        self.items = items
        self._count = self._batch = 0  # items of the step so far, and of the micro-batch

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        own = isinstance(pl_module, AlignmentModule)
        if own or not pl_module.automatic_optimization:
            why = "divides its gradients by the items of a step itself" if own else "optimizes manually"
            raise MisconfigurationException(
                f"StepMean: {type(pl_module).__name__} {why}; take the callback out of trainer.callbacks"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count = 0  # of a run in this process that was stopped within a step

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        names = {"samples": "sample_indices"}
        self._batch = len(getattr(as_packed(batch, self), names.get(self.items, self.items)))

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._count += self._batch  # not where training_step returned None: that batch is no part of the step

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        count = torch.tensor(float(self._count), dtype=torch.float64, device=trainer.strategy.root_device)
        items = float(sum_over_replicas(count, trainer.strategy))
        self._count = 0
        if not items and self.items in ("pairs", "answers"):  # targets may well be masked in all of a step
            raise MisconfigurationException(
                f'StepMean("{self.items}"): the batches of a step have no {self.items}; count what the loss is a sum '
                'over: padded batches, and those of SFTDataModule, have "targets" and "samples"'
            )
        # Lightning has divided by the micro-batches of a full step, and the strategy by the ranks: both are undone.
        batches = trainer.accumulate_grad_batches * Replica.of(trainer.strategy).size
        scale_gradients(pl_module, batches / items if items else 0.0)
