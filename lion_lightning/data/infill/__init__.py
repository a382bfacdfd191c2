"""Training documents with holes: parts of a document move behind it, so that a model learns to fill them in."""

from lion_lightning.data.infill.corruption import Corrupted, Corruption, File, SpecialTokens
from lion_lightning.data.infill.data_module import InfillDataModule
from lion_lightning.data.infill.fill_in_middle import FillInMiddle
from lion_lightning.data.infill.prefix_lm import PrefixLM
from lion_lightning.data.infill.spans import SpanInfill

__all__ = [
    "Corrupted",
    "Corruption",
    "File",
    "FillInMiddle",
    "InfillDataModule",
    "PrefixLM",
    "SpanInfill",
    "SpecialTokens",
]
