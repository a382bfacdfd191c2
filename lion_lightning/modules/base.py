"""The LightningModule that every stage extends: one abstract method, exact normalisation, exact resume."""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lion_lightning.agreement import require_agreement
from lion_lightning.functional import segment_parents
from lion_lightning.models.checkpoint_io import remove_left_drafts, use_checked_checkpoints
from lion_lightning.models.embeddings import TrainableRows, new_token_ids, token_embeddings
from lion_lightning.models.pieces import share, unwrapped
from lion_lightning.models.policy import PolicyModel, position_limit
from lion_lightning.models.settings import asked_spec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.averaging import refuse_averaging
from lion_lightning.modules.checkpoints import PolicyCheckpoints
from lion_lightning.modules.gradients import clips_flat_pieces, gradient_norm, scale_gradients
from lion_lightning.modules.meters import StageMeter, StepTotals
from lion_lightning.modules.process import require_rows_of, require_sharded, sharding_of
from lion_lightning.modules.rates import RateWatch
from lion_lightning.modules.run_length import accumulation, run_length
from lion_lightning.modules.schedules import WarmupSchedule
from lion_lightning.printing import is_secret
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
"""What of a Trainer must be the same on all ranks: its steps, and what is done in them."""


class AlignmentModule(PolicyCheckpoints, ABC):
    """Trains a policy on packed rows. Subclass it and say what the loss of a micro-batch is; the rest is here.

    A micro-batch returns totals over its items; gradients are divided by the number of items of the whole global step,
    so that they do not depend on how rows are split over micro-batches, accumulation and ranks, short last steps
    included. (Lightning divides each micro-batch by a constant, so that a token's weight depends on its neighbours.)

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        tokenizer: The tokenizer; None for the one in the policy's folder.
        optimizer: From parameter groups to an optimizer; None for AdamW at
            ``default_learning_rate`` without weight decay.
        lr_scheduler: From the optimizer to a schedule, stepped every optimizer step; None for a constant rate.

    Raises:
        ValueError: If the specs contradict each other.
    """

    default_learning_rate: ClassVar[float] = 2e-5
    """Of the AdamW that is used where no optimizer is given."""

    finishers: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = {}
    """What to do to a metric's mean before it is logged, by log key, e.g. ``{"perplexity": torch.exp}``."""

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        tokenizer: TokenizerSpec | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():  # a loss among the hyper-parameters is meant: see _plain
            warnings.filterwarnings("ignore", message=".*is an instance of `nn.Module`")
            secret = [name for name in signature(type(self).__init__).parameters if is_secret(name)]
            self.save_hyperparameters(ignore=secret)  # they would be in each checkpoint, and in hparams.yaml
        self.policy_spec = PolicySpec.of(policy)
        self.tokenizer_spec = _as_tokenizer_spec(tokenizer, self.policy_spec)
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self._dims: dict[str, int] = {}  # of parameters, before FSDPStrategy flattens them
        self._trainable_rows: TrainableRows | None = None
        self._step = StepTotals()
        self._draws = False
        self._endless: list[WarmupSchedule] = []
        self._rates = RateWatch()
        self._meters = nn.ModuleDict({stage: StageMeter(self.finishers) for stage in ("val", "test")})

    @abstractmethod
    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        """Loss of a micro-batch: totals over its items, their number, and sums of metrics.

        Args:
            batch: Rows on the module's device.
        """

    def require_data(self, data: Any) -> None:
        """Refuse data that the objective is not for, as far as that is known before there is a batch: here, none.

        Args:
            data: The trainer's data module, if it has one.

        Raises:
            MisconfigurationException: If it is for another objective.
        """

    def require_kind(self, batch: PackedBatch) -> None:
        """Refuse batches that the objective is not for, by what they are: here, any but packed rows.

        Args:
            batch: Of whatever data, about to be trained on or evaluated.

        Raises:
            ValueError: If it is of another kind.
        """
        segment_parents(batch)

    def normaliser(self, weight: Tensor) -> Tensor:
        """What the global step's total loss is divided by: its items. Override it for another reduction.

        Args:
            weight: Items of the global step, over all micro-batches and ranks.
        """
        return weight

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model has positions for, or None if it has no such limit."""
        return position_limit(self.policy_spec.load_config())

    @property
    def global_batches(self) -> int:
        """Micro-batches that make one optimizer step, over accumulation and data-parallel ranks."""
        replicas = getattr(self.trainer.strategy, "distributed_sampler_kwargs", None) or {}
        return self.trainer.accumulate_grad_batches * int(replicas.get("num_replicas", 1))

    def setup(self, stage: str) -> None:
        """Refuse ranks that were started with different settings, and bad checkpoints (Lightning calls this)."""
        super().setup(stage)
        use_checked_checkpoints(self.trainer.strategy)
        if stage == "fit" and self.trainer.is_global_zero:
            remove_left_drafts(self.trainer)
        self.require_data(getattr(self.trainer, "datamodule", None))
        require_agreement("model", self.hparams)
        require_agreement("trainer", {name: getattr(self.trainer, name) for name in AGREED})

    def configure_model(self) -> None:
        """Build the policy, once, however often Lightning (or a callback that averages weights) calls this."""
        if self._trainer is not None:
            refuse_averaging(self.trainer)
        if self.policy is not None:
            return
        self._new_ids = new_token_ids(self.tokenizer_spec)
        self.policy = self.build(self.policy_spec)
        rows = self.policy_spec.rows_to_train(self.policy.causal_lm, self._new_ids)
        if rows is not None:
            self._trainable_rows = TrainableRows(self.policy.causal_lm, rows)
        self._dims = {name: parameter.dim() for name, parameter in self.named_parameters()}

    def build(self, spec: PolicySpec) -> PolicyModel:
        """A model with the policy's tokenizer, split over ranks where the trainer's strategy says so.

        Args:
            spec: How to build it.
        """
        sharding = sharding_of(self.trainer) if self._trainer is not None else None
        model = spec.build(self.tokenizer_spec.load(), self._new_ids, sharding)
        if self._trainer is not None and isinstance(self.trainer.strategy, FSDPStrategy):
            share(model)  # it is split as it is: ranks that were seeded apart would train a patchwork
        return model

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Total loss of a micro-batch; ``optimizer_step`` normalises the gradients (Lightning calls this)."""
        self.require_kind(batch)
        output = self.compute_loss(batch)
        self._step.add(output)
        return output.total

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Log the loss and the metrics under ``val/`` (Lightning calls this)."""
        self._evaluation_step(batch, "val")

    def test_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Log the loss and the metrics under ``test/`` (Lightning calls this)."""
        self._evaluation_step(batch, "test")

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule; norms, biases, row-masked embeddings take no weight decay (Lightning calls this)."""
        if self._trainer is not None:
            require_sharded(self.trainer.strategy, self)
            require_rows_of(self._trainable_rows, self.trainer.strategy)
        optimizer = (self.optimizer_factory or self._default_optimizer)(self.parameter_groups())
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = self.lr_scheduler_factory(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Tell the schedule how long the run is, and look for what draws random numbers (Lightning calls this).

        The length not in ``configure_optimizers``: asking the trainer there makes it set up the loader before it has
        read the checkpoint's loader state, which it then never hands over. Others may ask, so that is mended here too.
        """
        super().on_train_start()
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.begin(self.trainer)
        # A run that is resumed within an epoch does not start it, which is where Lightning's callback would set this.
        self.trainer.accumulate_grad_batches = accumulation(self.trainer, self.current_epoch)
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        own = [schedule for schedule in schedules if isinstance(schedule, WarmupSchedule)]
        self._endless = [schedule for schedule in own if schedule.total_steps is None]
        self.begin_schedules()
        for schedule in own:
            schedule.set_rates()  # of this run's settings, where a checkpoint brought others
        self._rates.begin(self.trainer)
        self._draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.modules())
        if resumed is not None:
            resumed.finish(self.trainer)

    def on_train_end(self) -> None:
        """Say so where nothing was trained (Lightning calls this)."""
        super().on_train_end()
        self._rates.end()

    def begin_schedules(self) -> None:
        """Tell the schedules that were given no length how long the run is, as far as that is known now."""
        for schedule in self._endless:
            schedule.begin(_finite(run_length(self.trainer)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters in two groups, the second free of weight decay."""
        masked = token_embeddings(self.policy_model.causal_lm) if self._trainable_rows else []
        frozen_rows = {id(parameter) for parameter in masked}
        trainable = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        matrices = {id(p) for name, p in trainable if self._dims.get(unwrapped(name), p.dim()) > 1} - frozen_rows
        decayed, plain = ([p for _, p in trainable if (id(p) in matrices) is wanted] for wanted in (True, False))
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Normalise and mask the gradients between the last backward and the step (Lightning calls this).

        After the step they are let go. Lightning would keep them until the next backward, beside the activations of the
        next forward. To look at them, there is ``on_before_optimizer_step``.
        """

        def closure() -> Any:
            result = optimizer_closure() if optimizer_closure is not None else None
            self._normalise_gradients()
            return result

        self._rates.step(optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the global step's loss, metrics, rate, and gradient norm before clipping (Lightning calls this)."""
        for name, mean in self._step.means(self.finishers).items():
            self.log(f"train/{name}", mean, prog_bar=name == "loss", batch_size=1)
        self.log("train/grad_norm", gradient_norm(self, self.trainer.strategy), batch_size=1)
        self.log("train/lr", float(optimizer.param_groups[0]["lr"]), batch_size=1)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of the whole gradient under every strategy (Lightning calls this)."""
        if gradient_clip_val and clips_flat_pieces(self.trainer.strategy, gradient_clip_algorithm):
            root: Any = self.trainer.strategy.model
            root.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_start(self, batch: PackedBatch, batch_idx: int) -> None:
        """Seed the step where dropout is active (LoRA's), so that a resumed run draws what the first one would have."""
        if self._draws:
            entropy = [int(os.environ.get("PL_GLOBAL_SEED", "0")), self.current_epoch, batch_idx, self.global_rank]
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def _evaluation_step(self, batch: PackedBatch, stage: str) -> None:
        self.require_kind(batch)
        meter = self._meters[stage]
        assert isinstance(meter, StageMeter)
        for name, metric in meter.update(self.compute_loss(batch)).items():
            self.log(f"{stage}/{name}", metric, on_epoch=True, prog_bar=name == "loss", batch_size=1)

    def _default_optimizer(self, parameters: Any) -> Optimizer:
        return AdamW(parameters, lr=self.default_learning_rate, weight_decay=0.0)

    def _normalise_gradients(self) -> None:
        self._step.reduce(self.trainer.strategy)
        divisor = float(self.normaliser(self._step.weight))
        # The strategy has averaged over ranks and Lightning over the window: both are undone here.
        scale_gradients(self, self.global_batches / divisor if divisor else 0.0)
        if self._trainable_rows is not None:
            self._trainable_rows.mask_gradients()


def _finite(steps: float) -> int:
    if math.isinf(steps):
        raise MisconfigurationException(
            "lr_scheduler: the run has no known end; set trainer.max_steps, max_epochs or lr_scheduler.total_steps."
        )
    return int(steps)


def _as_tokenizer_spec(tokenizer: TokenizerSpec | dict[str, Any] | None, policy: PolicySpec) -> TokenizerSpec:
    if tokenizer is not None:
        return asked_spec(TokenizerSpec, tokenizer, "tokenizer")
    source = policy.path or (policy.config if isinstance(policy.config, str) else None)
    if source is None:
        raise ValueError(
            "model.tokenizer: give a tokenizer; a policy built from a mapping has no folder to find one in."
        )
    return TokenizerSpec(path=source, revision=policy.revision)
