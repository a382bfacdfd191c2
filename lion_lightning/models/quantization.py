"""4-bit base models under LoRA (QLoRA, arXiv 2305.14314), through bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


@dataclass
class NF4Spec:
    """Linear layers in NF4: 4 bits per weight, a scale per block of 64; embedding, head and norms are not quantized.

    Attributes:
        double_quant: Hold the scales in 8 bits too: 4.13 bits per weight instead of 4.5.
        compute_dtype: Dtype of the matrix products; None for ``policy.dtype``. On a GPU: ``bfloat16``, with
            ``policy.dtype: float32`` and ``bf16-mixed``.
    """

    double_quant: bool = True
    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @property
    def bits(self) -> float:
        """Bits per weight: 4, and a scale per 64 weights of 32 bits, or of 8 with another of 32 per 256 scales."""
        return 4 + (8 + 32 / 256 if self.double_quant else 32) / 64

    def require(self, adapted: bool, stored: bool, split: object | None) -> None:
        """Refuse a policy that cannot be quantized.

        Args:
            adapted: It has adapters.
            stored: Its weights are loaded rather than random.
            split: How it is sharded over ranks, if it is.

        Raises:
            ValueError: It has no adapters, random weights, or is sharded.
        """
        if not adapted:
            raise ValueError("policy.quantization: weights in 4 bits cannot learn; set policy.lora, or leave it out.")
        if not stored:
            raise ValueError(
                "policy.quantization: needs policy.path; a policy from `config` has no weights to quantize."
            )
        if split is not None:
            raise ValueError(
                "policy.quantization: 4-bit weights are not sharded; use trainer.strategy: ddp, or no 4 bits."
            )

    def config(self, dtype: torch.dtype) -> BitsAndBytesConfig:
        """Transformers' config of the quantization.

        Args:
            dtype: Dtype of all that is not quantized.

        Raises:
            ModuleNotFoundError: bitsandbytes is not installed.
        """
        if find_spec("bitsandbytes") is None:
            raise ModuleNotFoundError("policy.quantization needs bitsandbytes: pip install 'lion-lightning[qlora]'")
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype) if self.compute_dtype else dtype,
        )


def keep_layout(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking weights in evaluation mode, as it does on some CPUs.

    Repacking rounds the scales to bfloat16 for good: a reference pass would change the weights in the middle of a run.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def product_dtype(config: Any) -> torch.dtype | None:
    """Dtype of a quantized model's matrix products; None if it is not quantized."""
    return getattr(getattr(config, "quantization_config", None), "bnb_4bit_compute_dtype", None)


def scales(tensor: Tensor) -> list[Tensor]:
    """Scales of a 4-bit weight; none for any other."""
    state = getattr(tensor, "quant_state", None)
    nested = getattr(state, "state2", None)
    return [part.absmax for part in (state, nested) if part is not None]


def is_quantized(layer: nn.Module) -> bool:
    """True if a layer's weight is in 4 bits."""
    return hasattr(layer._parameters.get("weight"), "quant_state")  # peft's `weight` is computed, not a parameter


@torch.no_grad()
def dequantized(layer: Any) -> nn.Module:
    """A layer with dequantized weights, in the dtype that they were quantized from.

    Args:
        layer: A linear layer; one that is not quantized is returned as it is.
    """
    if not is_quantized(layer):
        return layer  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state), requires_grad=False)
    plain.bias = layer.bias
    return plain
