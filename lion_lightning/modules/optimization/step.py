"""The optimizer step: schedules that know the run's length, gradients divided by the step's items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typing_extensions import override

from lion_lightning.distributed.replicas import Replica
from lion_lightning.models.embeddings import TrainableRows, token_embeddings
from lion_lightning.models.weights.dtensor import unwrapped
from lion_lightning.modules.checkpointing.policy_checkpoints import PolicyCheckpoints
from lion_lightning.modules.optimization.expert_balance import ExpertBalance
from lion_lightning.modules.optimization.gradients import StepGradients
from lion_lightning.modules.optimization.limits import made, require_finite_loss, require_optimizer_numbers
from lion_lightning.modules.optimization.metrics import StepMetrics
from lion_lightning.modules.optimization.rates import RateWatch
from lion_lightning.modules.optimization.run_length import accumulation, run_length
from lion_lightning.modules.optimization.schedules import WarmupSchedule
from lion_lightning.modules.trainer.sharding import require_rows_of, require_sharded


class SteppedPolicy(PolicyCheckpoints):
    """A module with policy, optimizer and schedule; gradients are divided by the items of the global step."""

    default_learning_rate: ClassVar[float] = 2e-5
    """Of the AdamW that is used where no optimizer is given."""

    metric_transforms: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = {}
    """Function applied to a metric's mean before it is logged, by log key, e.g. ``{"perplexity": torch.exp}``."""

    metric_differences: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Metrics that are one logged mean minus another, e.g. ``{"rewards/margin": ("rewards/chosen", ...)}``."""

    optimizer_factory: Callable[[Any], Optimizer] | None = None
    lr_scheduler_factory: Callable[[Optimizer], Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._dims: dict[str, int] = {}  # of parameters, before FSDPStrategy flattens them
        self._trainable_rows: TrainableRows | None = None
        self.gradients = StepGradients()  # a callback may put its own here while the module trains
        self._step = StepMetrics()
        self._balance: ExpertBalance | None = None
        self._endless: list[WarmupSchedule] = []
        self._rates = RateWatch()

    def normalizer(self, num_items: Tensor) -> Tensor:
        """Divisor of the global step's total loss: its items. Override it for another reduction.

        Args:
            num_items: Items of the global step, over all micro-batches and ranks.
        """
        return num_items

    @override
    def configure_optimizers(self) -> Any:
        """Optimizer and schedule; norms, biases, row-masked embeddings take no weight decay."""
        if self._trainer is not None:
            require_sharded(self.trainer.strategy, self)
            require_rows_of(self._trainable_rows, self.trainer.strategy)
        optimizer = made("model.optimizer", self.optimizer_factory or self._default_optimizer, self.parameter_groups())
        require_optimizer_numbers(optimizer)
        if self.lr_scheduler_factory is None:
            return optimizer
        schedule = made("model.lr_scheduler", self.lr_scheduler_factory, optimizer)
        if isinstance(schedule, ReduceLROnPlateau):  # Lightning's knows its metric, which is there after an epoch
            found = {"scheduler": schedule, "interval": "epoch", "monitor": getattr(schedule, "monitor", None)}
            return {"optimizer": optimizer, "lr_scheduler": found}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def on_train_start(self) -> None:
        """Tell the schedule how long the run is, and do what a resumed batch or epoch left.

        The length not in ``configure_optimizers``: asking the trainer there makes it set up the loader before it has
        read the checkpoint's loader state, which it then never hands over. Others may ask, so that is fixed here too.
        """
        super().on_train_start()
        self._step = StepMetrics()  # of a run in this process that was stopped within a step
        if self._balance is not None:
            self._balance = ExpertBalance(self._balance.coefficient)
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.begin(self.trainer)
        # A run that is resumed within an epoch does not start it, which is where Lightning's callback would set this.
        self.trainer.accumulate_grad_batches = accumulation(self.trainer, self.current_epoch)
        configs = self.trainer.lr_scheduler_configs
        own = [config.scheduler for config in configs if isinstance(config.scheduler, WarmupSchedule)]
        self._endless = [schedule for schedule in own if schedule.total_steps is None]
        self.begin_schedules()
        for schedule in own:
            schedule.set_rates()  # of this run's settings, where a checkpoint brought others
        self._rates.begin(self.trainer)
        if resumed is not None:
            resumed.finish(self.trainer)

    @override
    def on_train_end(self) -> None:
        """Say so where nothing was trained."""
        super().on_train_end()
        self._rates.end()

    def begin_schedules(self) -> None:
        """Tell the schedules that were given no length how long the run is, as far as that is known now."""
        for schedule in self._endless:
            steps = run_length(self.trainer)
            if math.isinf(steps):
                raise MisconfigurationException(
                    "lr_scheduler: the run has no known end; set trainer.max_steps or lr_scheduler.total_steps, or "
                    "trainer.max_epochs where the data does not stream."
                )
            schedule.begin(int(steps))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters in two groups, the second free of weight decay."""
        masked = token_embeddings(self.policy_model.causal_lm) if self._trainable_rows else []
        row_masked = set(map(id, masked))  # decay would move rows that have no gradient
        decayed: list[Any] = []
        others: list[Any] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                matrix = self._dims.get(unwrapped(name), parameter.dim()) > 1
                (decayed if matrix and id(parameter) not in row_masked else others).append(parameter)
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def step_scale(self) -> float:
        """Factor from the gradients that Lightning and the strategy average to those of the mean over the step's items.

        It ends the step's sums, on all ranks together, so it is asked for after the step's last forward pass.
        """
        self._step.reduce(self.trainer.strategy)
        divisor, loss = self._step.as_floats(self.normalizer(self._step.num_items))
        require_finite_loss(loss, self.trainer)
        # The strategy has averaged over replicas and Lightning over the window: both are undone here.
        batches = self.trainer.accumulate_grad_batches * Replica.of(self.trainer.strategy).size
        return batches / divisor if divisor else 0.0

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, by way of the step's gradients."""
        self.gradients.backward(loss, self.step_scale, *args, **kwargs)

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Normalize and mask the gradients between the last backward and the step.

        After the step they are freed: Lightning would keep them until the next backward pass, next to the activations
        of the next forward. To look at them, use ``on_before_optimizer_step``.
        """

        def closure() -> Any:
            result = optimizer_closure() if optimizer_closure is not None else None
            self.gradients.finish(self, self.step_scale)
            if self._trainable_rows is not None:
                self._trainable_rows.mask_gradients()
            return result

        self._rates.step(optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        optimizer.zero_grad()

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the global step's loss, metrics, rate, and gradient norm before clipping."""
        for name, mean in self._step.means(self.metric_transforms, self.metric_differences).items():
            self.log(f"train/{name}", mean, prog_bar=name == "loss", batch_size=1)
        if self._balance is not None:
            self.log("train/expert_load_max", self._balance.end_step(), batch_size=1)
        self.log("train/grad_norm", self.gradients.norm(self, self.trainer.strategy), batch_size=1)
        self.log("train/lr", float(optimizer.param_groups[0]["lr"]), batch_size=1)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of the full gradient under every strategy."""
        flat = isinstance(self.trainer.strategy, FSDPStrategy)
        if gradient_clip_val and flat and gradient_clip_algorithm in (None, "norm"):
            root: Any = self.trainer.strategy.model
            root.clip_grad_norm_(gradient_clip_val)  # only FSDP itself knows the norm over all flat shards
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _default_optimizer(self, parameters: Any) -> Optimizer:
        return AdamW(parameters, lr=self.default_learning_rate, weight_decay=0.0)
