"""Training rows that repeat benchmark items, found by n-grams of words (TÜLU 3, arXiv 2411.15124, section 3.2)."""

from lion_lightning.data.decontamination.decontamination import Decontamination

__all__ = ["Decontamination"]
