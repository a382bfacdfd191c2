"""What a pass over the data needs of a Trainer: its ranks, its precision, and batches apart from its own loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lion_lightning.models.passes import Process
from lion_lightning.types import PackedBatch

Batches = Iterable[PackedBatch]


class TrainerProcess(Process):
    """A rank of a Trainer.

    Args:
        trainer: Whose rank it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer.strategy.root_device, str(trainer.precision))
        self.trainer = trainer

    @property
    def is_first(self) -> bool:
        """See the base class."""
        return bool(self.trainer.is_global_zero)

    def autocast(self) -> AbstractContextManager[Any]:
        """See the base class."""
        return self.trainer.precision_plugin.forward_context()

    def all_agree(self, flag: bool) -> bool:
        """See the base class."""
        return bool(self.trainer.strategy.reduce_boolean_decision(flag, all=True))

    def wait(self) -> None:
        """See the base class."""
        self.trainer.strategy.barrier()


def require_sharding(strategy: Strategy, policy: nn.Module) -> None:
    """Refuse to train a policy that is sharded in name only.

    Args:
        strategy: The trainer's.
        policy: As ``configure_model`` left it.

    Raises:
        MisconfigurationException: The strategy leaves sharding to ``configure_model``, and nothing did it: each rank
            would train weights of its own, without a word.
    """
    sharded = any(isinstance(module, FSDPModule) for module in policy.modules())
    if isinstance(strategy, ModelParallelStrategy) and strategy.world_size > 1 and not sharded:
        raise MisconfigurationException(
            "ModelParallelStrategy shards what configure_model() shards, and this module's shards nothing yet: "
            "override configure_model() and call fully_shard there, or use trainer.strategy: ddp"
        )


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
    return trainer.fit_loop._data_source.dataloader()


def evaluation_batches(trainer: Trainer) -> list[Batches]:
    """Batches of this rank of each set that validates (or tests, where the trainer tests).

    Args:
        trainer: About to fit, validate or test.
    """
    loops: dict[Any, Any] = {TrainerFn.VALIDATING: trainer.validate_loop, TrainerFn.TESTING: trainer.test_loop}
    source = loops.get(trainer.state.fn, trainer.fit_loop.epoch_loop.val_loop)._data_source
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
