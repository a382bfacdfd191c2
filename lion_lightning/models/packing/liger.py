"""Liger's fused GPU kernels in a model's layers."""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def apply_liger(model: PreTrainedModel) -> None:
    """Liger's kernels for norms, rotary embeddings and MLPs; not its fused loss, which the head here replaces."""
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ModuleNotFoundError:
        log.warning("policy.liger: liger-kernel is not installed, so the model's own kernels run.")
        return
    if not torch.cuda.is_available():
        log.warning("policy.liger: Liger's kernels need a GPU, so the model's own kernels run.")
        return
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
