"""FSDP2: each rank holds its part of every weight, gradient and optimizer state."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel

from lion_lightning.models.packing.mixers import named_decoder_layers
from lion_lightning.models.packing.model import PackedModel
from lion_lightning.models.weights.dtensor import broadcast_parameters
from lion_lightning.models.weights.tensor_parallel import split_layers


@dataclass(frozen=True)
class Sharding:
    """How models are sharded with ``fully_shard`` (FSDP2; the method is ZeRO-3, arXiv 1910.02054).

    Attributes:
        mesh: Ranks that share the weights and have rows of their own, one dimension.
        device: Device of this rank's shards; the CPU with ``CPUOffloadPolicy``.
        precision: Dtypes of gathered weights and of reduced gradients; the shards keep theirs.
        offload: ``CPUOffloadPolicy()`` keeps weights, gradients and optimizer state in host memory.
        tensor_mesh: Ranks that run the same rows, each with a part of every layer, before FSDP2 splits what each has;
            None for none (:mod:`lion_lightning.models.weights.tensor_parallel`).
    """

    mesh: DeviceMesh
    device: torch.device
    precision: MixedPrecisionPolicy = field(default_factory=MixedPrecisionPolicy)
    offload: OffloadPolicy = field(default_factory=OffloadPolicy)
    tensor_mesh: DeviceMesh | None = None

    def apply(self, policy: PackedModel) -> None:
        """Shard a model in place: one unit per decoder layer, one for the rest.

        Args:
            policy: The same model on every rank, random weights apart: the first rank's are used. Weights may be on the
                meta device.
        """
        broadcast_parameters(policy)
        if self.tensor_mesh is not None:
            split_layers(policy.causal_lm, self.tensor_mesh)
        for unit in (*decoder_layers(policy.causal_lm), policy):
            fully_shard(unit, mesh=self.mesh, mp_policy=self.precision, offload_policy=self.offload)
        register_fsdp_forward_method(policy, "probe")


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a causal LM, as its own code marks them."""
    layers = list(named_decoder_layers(model).values())
    if not layers:
        raise ValueError(
            f"{type(model).__name__} cannot be sharded: its code marks no decoder layers (GradientCheckpointingLayer, "
            "_no_split_modules); use trainer.strategy: ddp, or a model whose code does"
        )
    return layers
