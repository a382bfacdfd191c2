"""Data-parallel replicas: the ranks of a tensor-parallel group are one, since they run the same batches."""

from __future__ import annotations

from typing import NamedTuple, cast

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor


class Replica(NamedTuple):
    """The data-parallel replica of this rank: one rank, or a tensor-parallel group.

    Attributes:
        rank: Number of this replica, from 0.
        size: Number of replicas, each with batches of its own.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, strategy: Strategy | None) -> Replica:
        """The replica of a rank of a Trainer; the only one without a strategy."""
        found = getattr(strategy, "distributed_sampler_kwargs", None)
        return cls(found["rank"], found["num_replicas"]) if found else cls()


def sum_over_replicas(values: Tensor, strategy: Strategy) -> Tensor:
    """Sum of a tensor over replicas; all ranks call this together. A tensor-parallel group counts once."""
    group = None
    if isinstance(strategy, ModelParallelStrategy):
        group = strategy.device_mesh["data_parallel"].get_group()
    return cast(Tensor, strategy.reduce(values, group=group, reduce_op="sum"))


def tensor_parallel_size(strategy: Strategy) -> int:
    """Ranks that share each layer's work; 1 without tensor parallelism."""
    return strategy.device_mesh["tensor_parallel"].size() if isinstance(strategy, ModelParallelStrategy) else 1
