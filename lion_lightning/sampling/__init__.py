"""What generates answers. The engines' libraries are imported when one starts."""

from lion_lightning.sampling.base import EngineError, Following, Sampler, SamplingSettings
from lion_lightning.sampling.server import ServerSampler
from lion_lightning.sampling.server_weight_sync import AdapterRoutes, FolderRoute, SGLangRoutes, VLLMRoutes, WeightRoute
from lion_lightning.sampling.sync_check import Probe
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.sampling.vllm import VLLMSampler
from lion_lightning.sampling.weight_sync import AdapterWeights, EngineWeights, MergedWeights

__all__ = [
    "AdapterRoutes",
    "AdapterWeights",
    "EngineError",
    "EngineWeights",
    "FolderRoute",
    "Following",
    "MergedWeights",
    "Probe",
    "SGLangRoutes",
    "Sampler",
    "SamplingSettings",
    "ServerSampler",
    "TransformersSampler",
    "VLLMRoutes",
    "VLLMSampler",
    "WeightRoute",
]
