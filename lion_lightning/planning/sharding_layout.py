"""Placement of a model under a trainer's strategy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)

from lion_lightning.planning.job import Job
from lion_lightning.planning.memory import Offloaded, Placement, Replicated, Sharded


def placements(strategy: Any, gpus: int, packed: bool = False) -> list[Placement]:
    """The placement of a strategy, followed by the others for comparison.

    Args:
        strategy: A trainer's ``strategy``: an object, or a name that Lightning knows.
        gpus: Number of GPUs.
        packed: True for 4-bit weights, which are not sharded.

    Raises:
        ValueError: The strategy is not one whose memory is known here, or not one for such weights.
    """
    own = _placement(_made(strategy), gpus)
    if packed:
        if isinstance(own, Sharded):
            raise ValueError("policy.quantization: 4-bit weights are not sharded; plan with --trainer.strategy ddp")
        return [own]
    others = [Replicated(gpus, bucket_views=True), Sharded(gpus), Offloaded(gpus)] if gpus > 1 else [Replicated(1)]
    return [own, *(other for other in others if type(other) is not type(own))]


def with_recompute_of(strategy: Any, job: Job) -> Job:
    """The job, with gradient checkpointing if ``FSDPStrategy(activation_checkpointing_policy=...)`` does it."""
    made = _made(strategy)
    if not (isinstance(made, FSDPStrategy) and made._activation_checkpointing_kwargs):
        return job
    return replace(job, spec=replace(job.spec, recompute="full"))


def _made(strategy: Any) -> Any:
    if not isinstance(strategy, str) or strategy == "auto":
        return strategy
    if strategy not in StrategyRegistry.available_strategies():
        raise ValueError(f"trainer.strategy: Lightning knows no {strategy!r}")
    return StrategyRegistry.get(strategy)


def _placement(strategy: Any, gpus: int) -> Placement:
    if getattr(strategy, "tensor_parallel_size", 1) > 1:
        raise ValueError("trainer.strategy: memory under tensor parallelism cannot be estimated; plan without it")
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        # FSDP2 is told by a bool, FSDP1 by torch's CPUOffload.
        offload = getattr(strategy, "cpu_offload", False)
        return Offloaded(gpus) if getattr(offload, "offload_params", offload) else Sharded(gpus)
    if isinstance(strategy, DDPStrategy):
        return Replicated(gpus, bucket_views=bool(strategy._ddp_kwargs.get("gradient_as_bucket_view")))
    if strategy in (None, "auto") or isinstance(strategy, SingleDeviceStrategy):
        return Replicated(gpus)
    raise ValueError(
        f"trainer.strategy: the memory of {type(strategy).__name__} cannot be estimated; plan with "
        "--trainer.strategy ddp, or -c configs/strategy/fsdp2.yaml"
    )
