"""This process among the ranks of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run: ``Ranks()`` is a single process, :meth:`of` is a rank of a Trainer.

    With ``size`` above 1, all ranks of the default process group must call each method together.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process on its machine.
        local_size: Number of processes on this machine.
        device: Device of the model on this rank.
        precision: Precision of :attr:`autocast`, by Lightning's name; cached log-probs are stored under it.
        autocast: Makes the context that forwards run in.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device | str = "cpu"
    precision: str = "32-true"
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    @classmethod
    def of(cls, strategy: Strategy | None) -> Ranks:
        """The rank of a Trainer's strategy; a single process without one."""
        if strategy is None:
            return cls()
        if isinstance(strategy.model, FullyShardedDataParallel):
            strategy.model.check_is_root()  # otherwise the submodule that runs first takes itself for the root
        plugin = strategy.precision_plugin
        return cls(
            rank=getattr(strategy, "global_rank", 0),
            size=getattr(strategy, "world_size", 1),
            local_rank=getattr(strategy, "local_rank", 0),
            local_size=getattr(strategy, "num_processes", 1),
            device=strategy.root_device,
            precision=str(plugin.precision),
            autocast=plugin.forward_context,
        )

    @property
    def is_first(self) -> bool:
        """True on the rank that writes shared files and shows progress."""
        return self.rank == 0

    def all_agree(self, flag: bool) -> bool:
        """True if the flag is set on every rank."""
        if self.size == 1:
            return flag
        lowest = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        return bool(lowest)

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order of rank; any plain data."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of the first rank."""
        return self.all_gather(value)[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_agree(True)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all ranks at the end of a block, and fail on every rank if the block fails on one."""
        try:
            yield
        except Exception:
            self.all_agree(False)
            raise
        if not self.all_agree(True):
            raise OSError("another rank has failed; its own message says why")
