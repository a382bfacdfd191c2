"""A callback that says when a run goes wrong, and its detectors, a class for each symptom."""

from lion_lightning.callbacks.monitors.health.detector import Detector, Step
from lion_lightning.callbacks.monitors.health.findings import Finding, read_findings
from lion_lightning.callbacks.monitors.health.monitor import HealthMonitor
from lion_lightning.callbacks.monitors.health.steps import LikelihoodDisplacement, NonFinite

__all__ = [
    "Detector",
    "Finding",
    "HealthMonitor",
    "LikelihoodDisplacement",
    "NonFinite",
    "Step",
    "read_findings",
]
