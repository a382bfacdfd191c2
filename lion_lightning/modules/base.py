"""The LightningModule that every stage extends: one abstract method, exact normalization, exact resume."""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.parsing import clean_namespace
from torch import Tensor, nn
from typing_extensions import override

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.distributed.replicas import Replica
from lion_lightning.distributed.same_settings import check_same_on_all_ranks
from lion_lightning.models.checkpoints.io import remove_stale_run_files, use_checked_checkpoints
from lion_lightning.models.embeddings import TrainableRows, new_token_ids
from lion_lightning.models.policy import PolicyModel, position_limit
from lion_lightning.models.settings import asked_spec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import broadcast_parameters
from lion_lightning.modules.checkpointing.averaging import refuse_averaging
from lion_lightning.modules.optimization.expert_balance import ExpertBalance
from lion_lightning.modules.optimization.limits import (
    refuse_tuners,
    require_finite_settings,
    require_monitored,
    require_same_batches,
    require_trainer_numbers,
    require_validation,
    warn_of_slow_precision,
)
from lion_lightning.modules.optimization.metrics import StageMetrics
from lion_lightning.modules.optimization.step import SteppedPolicy
from lion_lightning.modules.trainer.batch_kinds import require_packed
from lion_lightning.modules.trainer.sharding import sharding_of
from lion_lightning.one_lightning import require_one_lightning, warn_of_other_lightning
from lion_lightning.printing import holds_secret, is_secret
from lion_lightning.types import LossOutput, PackedBatch

AGREED = (
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "limit_val_batches",
    "max_epochs",
    "max_steps",
    "precision",
    "val_check_interval",
)
"""Settings of a Trainer that must be the same on all ranks."""


class AlignmentModule(SteppedPolicy, ABC):
    """Trains a policy on packed rows. A subclass implements :meth:`compute_loss`.

    A micro-batch returns totals over its items; gradients are divided by the number of items of the global step,
    so that they do not depend on how rows are split over micro-batches, accumulation and ranks, short last steps
    included. (Lightning divides each micro-batch by a constant, so that a token's weight depends on its neighbours.)

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        tokenizer: The tokenizer; None for the one in the policy's folder.
        optimizer: From parameter groups to an optimizer; None for AdamW at
            ``default_learning_rate`` without weight decay.
        lr_scheduler: From the optimizer to a schedule, stepped every optimizer step; None for a constant rate.
        router_aux_loss_coef: Weight of the load-balancing loss of a mixture of experts over the global step
            (:class:`~lion_lightning.modules.optimization.expert_balance.ExpertBalance`); 0 for none, whatever the
            model's own config says.

    Raises:
        ValueError: If the specs contradict each other.

    Attributes:
        items: What the loss of a global step is divided by the number of, as people say it.
        typical_answers: Answers to a prompt that estimates of memory and time assume; 0 for documents.
        spec_class: How the trained model is built from what ``policy`` says.
    """

    items: ClassVar[str] = "items"
    typical_answers: ClassVar[int] = 0
    spec_class: ClassVar[type[PolicySpec]] = PolicySpec

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        tokenizer: TokenizerSpec | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        router_aux_loss_coef: float = 0.0,
    ) -> None:
        super().__init__()
        warn_of_other_lightning(self)
        with warnings.catch_warnings():  # a loss among the hyper-parameters is meant: see _plain
            warnings.filterwarnings("ignore", message=".*is an instance of `nn.Module`")
            warnings.filterwarnings("ignore", message="Attribute .* removed from hparams")
            self.save_hyperparameters()
            for name, value in list(self.hparams.items()):
                if is_secret(name) or holds_secret(str(value)):  # it would be in each checkpoint, and in hparams.yaml
                    del self.hparams[name], cast(dict[str, Any], self._hparams_initial)[name]
            clean_namespace(self.hparams)  # of functions, as the Trainer would do, with advice that is for us
        self.policy_spec = self.spec_class.of(policy)
        self.tokenizer_spec = _as_tokenizer_spec(tokenizer, self.policy_spec)
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        if not 0 <= router_aux_loss_coef < math.inf:
            raise ValueError(f"model.router_aux_loss_coef is {router_aux_loss_coef}; give a number of at least 0")
        self._balance = ExpertBalance(router_aux_loss_coef) if router_aux_loss_coef else None
        self._draws = self._stepped = False
        metrics = {stage: StageMetrics(self.metric_transforms, self.metric_differences) for stage in ("val", "test")}
        self._stage_metrics = nn.ModuleDict(metrics)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy all but what makes optimizer and schedule: a config's factories lead to the program that read it."""
        memo.update({id(each): each for each in (self.optimizer_factory, self.lr_scheduler_factory) if each})
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return made

    @abstractmethod
    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        """Loss of a micro-batch: totals over its items, their number, and sums of metrics.

        Args:
            batch: Rows on the module's device.
        """

    def require_data(self, data: Any) -> None:
        """Refuse data that the objective is not for, as far as that is known before there is a batch: here, none."""

    def require_kind(self, batch: PackedBatch) -> None:
        """Refuse batches that the objective is not for, by what they are: here, any but packed rows."""
        require_packed(batch)

    @property
    def objective(self) -> str:
        """The objective in words: ``SigmoidLoss(beta=0.1, label_smoothing=0) over pairs``."""
        loss = getattr(self, "loss", None)
        return f"{_described(loss) if isinstance(loss, nn.Module) else type(self).__name__} over {self.items}"

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model has positions for, or None if it has no such limit."""
        return position_limit(self.policy_spec.load_config())

    @override
    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "objective": self.objective}

    @override
    def configure_callbacks(self) -> list[Callback]:
        # The first hook of a run: before setup, Lightning asks the data module, of which the other's is no class to it.
        require_one_lightning(self, *self.trainer.callbacks, *self.trainer.loggers, self.trainer.datamodule)  # type: ignore[attr-defined]
        return []

    @override
    def setup(self, stage: str) -> None:
        """Refuse ranks that were started with different settings, and bad checkpoints."""
        super().setup(stage)
        refuse_tuners(self.trainer)
        require_trainer_numbers(self.trainer)
        require_finite_settings(self.model_settings)
        warn_of_slow_precision(self.trainer)
        use_checked_checkpoints(self.trainer.strategy)
        if stage == "fit" and self.trainer.is_global_zero:
            remove_stale_run_files(self.trainer)
        self.require_data(getattr(self.trainer, "datamodule", None))
        made_with = {"optimizer": self.optimizer_factory, "lr_scheduler": self.lr_scheduler_factory}
        ranks = Ranks.of(self.trainer.strategy)
        check_same_on_all_ranks(ranks, "model", {**self.hparams, **made_with})
        check_same_on_all_ranks(ranks, "trainer", {name: getattr(self.trainer, name) for name in AGREED})

    @override
    def configure_model(self) -> None:
        """Build the policy, once, however often Lightning (or a callback that averages weights) calls this."""
        if self._trainer is not None:
            refuse_averaging(self.trainer)
        if self.policy is not None:
            return
        self._new_ids = new_token_ids(self.tokenizer_spec)
        self.policy = self.build()
        if self._balance is not None:
            self.policy.record_routers()
        rows = self.policy_spec.rows_to_train(self.policy.causal_lm, self._new_ids)
        if rows is not None:
            self._trainable_rows = TrainableRows(self.policy.causal_lm, rows)
        self._dims = {name: parameter.dim() for name, parameter in self.named_parameters()}

    def build(self, spec: PolicySpec | None = None) -> PolicyModel:
        """A model with the policy's tokenizer, split over ranks where the trainer's strategy says so.

        Args:
            spec: How to build it; None for another policy as the stage starts from it.
        """
        sharding = sharding_of(self.trainer) if self._trainer is not None else None
        model = (spec or self.policy_spec).build(self.tokenizer_spec.load(), self._new_ids, sharding)
        if self._trainer is not None and isinstance(self.trainer.strategy, FSDPStrategy):
            broadcast_parameters(model)  # it is split as it is: ranks that were seeded apart would train a patchwork
        return model

    @override
    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Total loss of a micro-batch; ``optimizer_step`` normalizes the gradients."""
        self.require_kind(batch)
        output = self.compute_loss(batch)
        if self._balance is not None:
            output = self._balance.add(output, self.policy_model.record_routers().take(), self.trainer.strategy)
        self._step.add(output)
        return output.total

    @override
    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        self._evaluation_step(batch, "val")

    @override
    def test_step(self, batch: PackedBatch, batch_idx: int) -> None:
        self._evaluation_step(batch, "test")

    @override
    def on_train_start(self) -> None:
        """Look for what draws random numbers."""
        self._draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.modules())
        require_validation(self.trainer)
        require_same_batches(self.trainer)
        super().on_train_start()

    @override
    def on_validation_epoch_start(self) -> None:
        """Forget what a run in this process that was stopped within a validation left."""
        cast(StageMetrics, self._stage_metrics["val"]).reset()

    @override
    def on_test_epoch_start(self) -> None:
        """The same of a test."""
        cast(StageMetrics, self._stage_metrics["test"]).reset()

    @override
    def on_validation_epoch_end(self) -> None:
        """Refuse callbacks that wait for a metric that does not come."""
        require_monitored(self.trainer, "val/")

    @override
    def on_train_batch_end(self, outputs: Any, batch: PackedBatch, batch_idx: int) -> None:
        """Refuse callbacks that wait for a metric that the first step did not bring."""
        if not self._stepped and self.global_step > 0:
            self._stepped = True
            require_monitored(self.trainer, "train/")

    @override
    def on_train_batch_start(self, batch: PackedBatch, batch_idx: int) -> None:
        """Seed the step where dropout is active (LoRA's), so that a resumed run draws what the first one would have."""
        if self._draws:
            replica = Replica.of(self.trainer.strategy).rank  # ranks that run the same batch draw the same
            entropy = [int(os.environ.get("PL_GLOBAL_SEED", "0")), self.current_epoch, batch_idx, replica]
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def _evaluation_step(self, batch: PackedBatch, stage: str) -> None:
        """Log the loss and the metrics under ``val/`` or ``test/``."""
        self.require_kind(batch)
        metrics = self._stage_metrics[stage]
        assert isinstance(metrics, StageMetrics)
        for name, metric in metrics.update(self.compute_loss(batch)).items():
            self.log(f"{stage}/{name}", metric, on_epoch=True, prog_bar=name == "loss", batch_size=1)


def _described(loss: nn.Module) -> str:
    """A loss with the numbers that it was made with, and those within it."""
    settings = [f"{name}={value:g}" for name, value in vars(loss).items() if type(value) in (int, float)]
    parts = [_described(part) for part in loss.children()]
    inside = ", ".join([*settings, *parts])
    return f"{type(loss).__name__}({inside})" if inside else type(loss).__name__


def _as_tokenizer_spec(tokenizer: TokenizerSpec | dict[str, Any] | None, policy: PolicySpec) -> TokenizerSpec:
    if tokenizer is not None:
        return asked_spec(TokenizerSpec, tokenizer, "tokenizer")
    source = policy.path or (policy.config if isinstance(policy.config, str) else None)
    if source is None:
        raise ValueError(
            "model.tokenizer: give a tokenizer; a policy built from a mapping has no folder to find one in."
        )
    return TokenizerSpec(path=source, revision=policy.revision)
