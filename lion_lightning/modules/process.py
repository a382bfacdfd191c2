"""Checks of a Trainer's strategy, and batches of its data outside of its own loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy
from torch.distributed.tensor import DTensor

from lion_lightning.models.embeddings import TrainableRows
from lion_lightning.models.weights.fsdp import Sharding
from lion_lightning.types import PackedBatch

Batches = Iterable[PackedBatch]


PRECISIONS = {
    "32-true": MixedPrecisionPolicy(),
    "bf16-true": MixedPrecisionPolicy(reduce_dtype=torch.float32),
    "bf16-mixed": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
}
"""FSDP2's mixed precision under each precision of the Trainer; gradients are reduced in fp32."""


def sharding_of(trainer: Trainer) -> Sharding | None:
    """Sharding of models under a trainer's strategy; None if it replicates them, or shards them itself.

    Args:
        trainer: In ``configure_model``, or later.

    Raises:
        MisconfigurationException: The strategy or the precision is not supported.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return None
    if strategy.device_mesh["tensor_parallel"].size() > 1:
        raise MisconfigurationException(
            f"{type(strategy).__name__}: tensor parallelism is not supported, and `auto` sizes mean just that; use "
            f"lion_lightning.strategies.FSDP2Strategy, or set data_parallel_size: {strategy.world_size} and "
            "tensor_parallel_size: 1"
        )
    precision = str(trainer.precision)
    if precision not in PRECISIONS:
        raise MisconfigurationException(
            f"trainer.precision: {precision} cannot be trained under {type(strategy).__name__}; "
            f"choose one of {', '.join(PRECISIONS)}"
        )
    offload = CPUOffloadPolicy() if getattr(strategy, "cpu_offload", False) else OffloadPolicy()
    device = torch.device("cpu") if isinstance(offload, CPUOffloadPolicy) else strategy.root_device
    return Sharding(strategy.device_mesh["data_parallel"], device, PRECISIONS[precision], offload)


def require_sharded(strategy: Strategy, module: nn.Module | None) -> None:
    """Refuse a module that FSDP2 was to shard and did not: the ranks' weights would drift apart silently.

    Args:
        strategy: The trainer's.
        module: As ``configure_model`` left it.

    Raises:
        MisconfigurationException: Some trainable parameters are not sharded, though ``configure_model`` was to do it.
    """
    if not isinstance(strategy, ModelParallelStrategy) or strategy.world_size < 2 or module is None:
        return
    alone = [name for name, p in module.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
    if alone:
        raise MisconfigurationException(
            f"{type(strategy).__name__} shards what configure_model() shards, and {type(module).__name__}'s leaves "
            f"{', '.join(alone[:3])} unsharded on each rank, where they would drift apart: shard all that is trained "
            "there (AlignmentModule.build does, or torch's fully_shard), or use trainer.strategy: ddp"
        )


def require_rows_of(rows: TrainableRows | None, strategy: Strategy) -> None:
    """Refuse ``trainable_rows`` of the embeddings under a strategy that flattens weights.

    Args:
        rows: Those that learn, if they are chosen.
        strategy: The trainer's.

    Raises:
        MisconfigurationException: FSDPStrategy flattens weights and gradients.
    """
    if rows is not None and isinstance(strategy, FSDPStrategy):
        raise MisconfigurationException(
            "policy.trainable_rows: FSDPStrategy flattens weights, so that rows cannot be selected; use "
            "lion_lightning.strategies.FSDP2Strategy"
        )


def refuse_rounds(module: LightningModule, data: Any) -> None:
    """Refuse data whose pairs are sampled between epochs, for a module that does not follow them.

    Args:
        module: That is about to train.
        data: The trainer's data module, if it has one.

    Raises:
        MisconfigurationException: If its pairs are sampled.
    """
    if module.trainer.state.fn == TrainerFn.FITTING and hasattr(data, "rounds"):
        raise MisconfigurationException(
            f"{type(data).__name__} gives preference pairs that are sampled between epochs, which "
            f"{type(module).__name__} does not train on as it is; use OnlineDPOModule"
        )


def data_source(loop: Any) -> Any:
    """The source that a loop of a Trainer gets its loaders from: ``is_defined()``, and ``dataloader()`` for a new one.

    A private attribute of Lightning, seen in 2.6.6; a test pins the version. A Trainer's public properties give the
    loader that the loop itself iterates over, and set it up before a checkpoint's state has reached it.

    Args:
        loop: A fit, validation or test loop.
    """
    return loop._data_source


def train_batches(trainer: Trainer) -> Batches:
    """Batches of this rank with every pair that the run can train on: an epoch, or less where ``max_steps`` ends in it.

    Args:
        trainer: About to train.
    """
    loader: Any = epoch_batches(trainer)
    reached = trainer.max_steps * trainer.accumulate_grad_batches
    return _First(loader, reached) if 0 < reached < len(loader) else loader


def epoch_batches(trainer: Trainer) -> Any:
    """Batches of this rank with every pair of the present epoch, from a loader apart from the one that trains.

    Args:
        trainer: About to train, or training.
    """
    return data_source(trainer.fit_loop).dataloader()


def evaluation_batches(trainer: Trainer) -> list[Batches]:
    """Batches of this rank of each set that validates (or tests, where the trainer tests).

    Args:
        trainer: About to fit, validate or test.
    """
    loops: dict[Any, Any] = {TrainerFn.VALIDATING: trainer.validate_loop, TrainerFn.TESTING: trainer.test_loop}
    source = data_source(loops.get(trainer.state.fn, trainer.fit_loop.epoch_loop.val_loop))
    limit = trainer.limit_test_batches if trainer.state.fn == TrainerFn.TESTING else trainer.limit_val_batches
    loaders = source.dataloader() if source.instance is not None and source.is_defined() and limit else []
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


class _First:
    """The first batches of a loader."""

    def __init__(self, batches: Batches, count: int) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[PackedBatch]:
        return islice(iter(self.batches), self.count)

    def __len__(self) -> int:
        return self.count
