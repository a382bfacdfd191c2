"""How a Trainer's strategy shards models, and which strategies are refused."""

from __future__ import annotations

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy
from torch.distributed.tensor import DTensor

from lion_lightning.models.embeddings import TrainableRows
from lion_lightning.models.weights.fsdp import Sharding

PRECISIONS = {
    "32-true": MixedPrecisionPolicy(),
    "bf16-true": MixedPrecisionPolicy(reduce_dtype=torch.float32),
    "bf16-mixed": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
}
"""FSDP2's mixed precision under each precision of the Trainer; gradients are reduced in fp32."""


def sharding_of(trainer: Trainer) -> Sharding | None:
    """Sharding of models under a trainer's strategy; None if it replicates them, or shards them itself."""
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return None
    precision = str(trainer.precision)
    if precision not in PRECISIONS:
        raise MisconfigurationException(
            f"trainer.precision: {precision} cannot be trained under {type(strategy).__name__}; "
            f"choose one of {', '.join(PRECISIONS)}"
        )
    offload = CPUOffloadPolicy() if getattr(strategy, "cpu_offload", False) else OffloadPolicy()
    device = torch.device("cpu") if isinstance(offload, CPUOffloadPolicy) else strategy.root_device
    mesh, tensor_mesh = strategy.device_mesh["data_parallel"], strategy.device_mesh["tensor_parallel"]
    return Sharding(mesh, device, PRECISIONS[precision], offload, tensor_mesh if tensor_mesh.size() > 1 else None)


def require_sharded(strategy: Strategy, module: nn.Module | None) -> None:
    """Refuse a module that FSDP2 was to shard and did not: the ranks' weights would drift apart silently."""
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
    """Refuse ``trainable_rows`` of the embeddings under a strategy that flattens weights."""
    if rows is not None and isinstance(strategy, FSDPStrategy):
        raise MisconfigurationException(
            "policy.trainable_rows: FSDPStrategy flattens weights, so that rows cannot be selected; use "
            "lion_lightning.strategies.FSDP2Strategy"
        )
