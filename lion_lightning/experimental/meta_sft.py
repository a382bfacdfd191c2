"""Meta-learned training: a step improves what a few further gradient steps make of the weights (first-order MAML)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from typing_extensions import override

from lion_lightning.callbacks.optimization.fused_backward import steps_within_backward
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.optimization.metrics import StepMetrics
from lion_lightning.modules.optimization.run_length import accumulation
from lion_lightning.modules.sft import SFTModule
from lion_lightning.types import PackedBatch


class MetaSFTModule(SFTModule):
    """Fine-tunes for the loss after k gradient steps, after arXiv 2004.05568 and first-order MAML (arXiv 1703.03400).

    The accumulation window is the episode, so ``k = trainer.accumulate_grad_batches - 1``. From the weights ``w_0``:

    1. Meta-train: each micro-batch but the last takes a plain gradient step, ``w_j = w_(j-1) - inner_lr * grad L_j``.
    2. Meta-test: the last one gives the gradient ``G = grad L_(k+1)(w_k)``.
    3. The optimizer moves ``w_0`` by ``G``; clipping, schedule and logged metrics are those of the last micro-batch.

    Only within a micro-batch does the policy hold adapted weights: validation, checkpoints and callbacks see ``w_0``. A
    window that the epoch's end cuts short is a shorter episode. One more copy of the trained weights is held. Under DDP
    each rank runs an episode of its own, and the gradients ``G`` are averaged.

    Args:
        policy: How to build the policy.
        inner_lr: Rate of the steps within an episode, which are not clipped; 0 for training on the last micro-batches.
        **kwargs: Further arguments of :class:`SFTModule`.

    Raises:
        ValueError: ``inner_lr`` is negative, or a setting has no meaning within an episode.
        MisconfigurationException: The trainer does not accumulate, shards the weights, or scales the loss.
    """

    def __init__(self, policy: PolicySpec | str | dict[str, Any], *, inner_lr: float, **kwargs: Any) -> None:
        super().__init__(policy=policy, **kwargs)
        if not 0 <= inner_lr < math.inf:
            raise ValueError(f"model.inner_lr is {inner_lr}; give a number of at least 0")
        if self.policy_spec.trainable_rows is not None or self._balance is not None:
            raise ValueError(
                "policy.trainable_rows and model.router_aux_loss_coef apply to an optimizer step, and MetaSFTModule "
                "takes steps between those; leave them out, or use SFTModule"
            )
        self.inner_lr = inner_lr
        self._spare: list[Tensor] = []  # w_j between micro-batches, w_0 within one, nothing between episodes
        self._adapted = self._last = False  # whether the policy holds w_j, and whether the micro-batch is the last
        self.register_state_dict_pre_hook(_put_start_back)  # type: ignore[no-untyped-call]

    @override
    def setup(self, stage: str) -> None:
        """Refuse what an episode cannot be run with, and leave one that a run in this process was stopped in."""
        super().setup(stage)
        _put_start_back(self)
        self._spare, self._last = [], False
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
            raise MisconfigurationException(
                f"MetaSFTModule: {type(strategy).__name__} averages gradients over ranks in every micro-batch, and "
                "adapted weights differ from rank to rank; use trainer.strategy: ddp, or one device"
            )
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise MisconfigurationException(
                "MetaSFTModule: 16-mixed scales the loss, and with it the steps within an episode; use trainer."
                "precision: bf16-mixed"
            )
        if steps_within_backward(self.trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "MetaSFTModule takes its inner steps after the backward pass, and FusedBackward leaves no gradient "
                "until then; take it out of trainer.callbacks, or use SFTModule"
            )
        if stage == "fit" and accumulation(self.trainer, self.trainer.current_epoch) < 2:
            raise MisconfigurationException(
                "MetaSFTModule: an episode is an accumulation window, and one micro-batch makes no step within it; set "
                "trainer.accumulate_grad_batches to the number of inner steps plus one, or use SFTModule"
            )

    @override
    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Loss of a micro-batch at the weights that the episode has come to."""
        if self._spare:
            self._swap()
        return super().training_step(batch, batch_idx)

    @override
    def on_after_backward(self) -> None:
        """Take an inner step; after the episode's last micro-batch, leave its gradient to the optimizer."""
        if not self._last:
            self._inner_step()
        elif self._adapted:
            self._swap()
            self._spare = []

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step from ``w_0``. Lightning runs a window's last micro-batch within the closure."""
        self._last = True
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._last = False

    @torch.no_grad()
    def _inner_step(self) -> None:
        """``w_j = w_(j-1) - inner_lr * grad L_j``; then drop the gradient and the totals of the micro-batch."""
        items = float(self.normalizer(self._step.num_items))
        # The gradient is of the micro-batch's total loss over the length of the window, as Lightning divides it.
        rate = self.inner_lr * self.trainer.accumulate_grad_batches / items if items else 0.0
        if not self._spare:  # the episode's first step
            self._spare = [parameter.detach().clone() for parameter in self._trained()]
            self._swap()
        for parameter in self._trained():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=rate)
                parameter.grad = None
        self._swap()
        self._step = StepMetrics()

    def _swap(self) -> None:
        """Exchange the policy's weights and the spare ones."""
        for place, parameter in enumerate(self._trained()):
            parameter.data, self._spare[place] = self._spare[place], parameter.data
        self._adapted = not self._adapted

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def _put_start_back(module: MetaSFTModule, *_: Any) -> None:
    """Leave a micro-batch that an error has ended: a checkpoint of that moment holds the weights of the last step."""
    if module._adapted:
        module._swap()
