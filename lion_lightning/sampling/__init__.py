"""What generates answers. The engines' libraries are imported when one starts."""

from lion_lightning.sampling.base import EngineError, Following, Sampler, SamplingSettings, ServedPolicy
from lion_lightning.sampling.engine_weights import AdapterWeights, EngineWeights, MergedWeights
from lion_lightning.sampling.probe import Probe
from lion_lightning.sampling.routes import AdapterRoutes, FolderRoute, SGLangRoutes, VLLMRoutes, WeightRoute
from lion_lightning.sampling.server import ServerSampler
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.sampling.vllm import VLLMSampler

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
    "ServedPolicy",
    "ServerSampler",
    "TransformersSampler",
    "VLLMRoutes",
    "VLLMSampler",
    "WeightRoute",
]
