"""Callbacks for Lightning's Trainer, imported as ``lion_lightning.callbacks`` (a link to this folder)."""

# `import callbacks` from the repository's root would make a second copy of every class, and isinstance would then fail.
if __name__ != "lion_lightning.callbacks":
    raise ImportError(f"import this package as lion_lightning.callbacks, not as {__name__}")

from lion_lightning.callbacks.before_after import BeforeAfter
from lion_lightning.callbacks.export import HuggingFaceExport
from lion_lightning.callbacks.monitors.health import HealthMonitor
from lion_lightning.callbacks.monitors.learning_record import LearningRecord
from lion_lightning.callbacks.monitors.peak_memory import PeakMemory
from lion_lightning.callbacks.monitors.throughput import TokenThroughput
from lion_lightning.callbacks.on_policy import OnPolicySampling
from lion_lightning.callbacks.optimization.fused_backward import FusedBackward
from lion_lightning.callbacks.optimization.step_mean import StepMean
from lion_lightning.callbacks.progress import LionProgressBar
from lion_lightning.callbacks.provenance import Provenance
from lion_lightning.callbacks.references import PrecomputeReference
from lion_lightning.callbacks.samples import SampleTable
from lion_lightning.callbacks.startup import StartupSummary

__all__ = [
    "BeforeAfter",
    "FusedBackward",
    "HealthMonitor",
    "HuggingFaceExport",
    "LearningRecord",
    "LionProgressBar",
    "OnPolicySampling",
    "PeakMemory",
    "PrecomputeReference",
    "Provenance",
    "SampleTable",
    "StartupSummary",
    "StepMean",
    "TokenThroughput",
]
