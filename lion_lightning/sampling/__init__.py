"""Samplers: transformers, vLLM in process, or a server; and how the policy's weights reach them."""

from lion_lightning.sampling.base import EngineError, Sampler, SamplingSettings, SyncedSampler
from lion_lightning.sampling.engine_weight_sync import AdapterWeightSync, EngineWeightSync, MergedWeightSync
from lion_lightning.sampling.pool import FrozenSampler, PooledSampler
from lion_lightning.sampling.server import ServerSampler
from lion_lightning.sampling.server_weight_sync import (
    FolderWeightSync,
    SGLangWeightSync,
    VLLMAdapterSync,
    VLLMWeightSync,
    WeightSync,
)
from lion_lightning.sampling.sync_check import SyncCheck
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.sampling.vllm import VLLMSampler

__all__ = [
    "AdapterWeightSync",
    "EngineError",
    "EngineWeightSync",
    "FolderWeightSync",
    "FrozenSampler",
    "MergedWeightSync",
    "PooledSampler",
    "SGLangWeightSync",
    "Sampler",
    "SamplingSettings",
    "ServerSampler",
    "SyncCheck",
    "SyncedSampler",
    "TransformersSampler",
    "VLLMAdapterSync",
    "VLLMSampler",
    "VLLMWeightSync",
    "WeightSync",
]
