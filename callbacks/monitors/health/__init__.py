"""A callback that says when a run goes wrong, and its detectors, a class for each symptom."""

from lion_lightning.callbacks.monitors.health.detector import Detector, MeanChange, Pairs, Sampled, Step
from lion_lightning.callbacks.monitors.health.findings import Finding, read_findings
from lion_lightning.callbacks.monitors.health.hacking import RewardHacking
from lion_lightning.callbacks.monitors.health.monitor import HealthMonitor
from lion_lightning.callbacks.monitors.health.pairs import DegeneratePairs
from lion_lightning.callbacks.monitors.health.rounds import EntropyCollapse, LengthDrift, Repetition, Ties
from lion_lightning.callbacks.monitors.health.steps import LengthBias, LikelihoodDisplacement, LossSpike, NonFinite

__all__ = [
    "DegeneratePairs",
    "Detector",
    "EntropyCollapse",
    "Finding",
    "HealthMonitor",
    "LengthBias",
    "LengthDrift",
    "LikelihoodDisplacement",
    "LossSpike",
    "MeanChange",
    "NonFinite",
    "Pairs",
    "Repetition",
    "RewardHacking",
    "Sampled",
    "Step",
    "Ties",
    "read_findings",
]
