"""Lightning's FSDPStrategy on CPU processes, which Lightning has for GPUs only."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lion_lightning.strategies import WrapLayers


class FSDPOnCPU(FSDPStrategy):
    """A subclass passes Lightning's check of the accelerator; torch then wants to be told the device."""

    def __init__(self, **options: Any) -> None:
        super().__init__(auto_wrap_policy=WrapLayers(), **options)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), sharding_strategy=self.sharding_strategy, **self.kwargs
        )
