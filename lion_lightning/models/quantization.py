"""The frozen weights of a LoRA run in four bits (QLoRA, arXiv 2305.14314), through bitsandbytes."""

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
    """Linear layers in NF4, four bits a weight in blocks of 64 with a scale each; embedding, head and norms stay whole.

    Attributes:
        double_quant: Hold the scales in 8 bits too: 4.13 bits a weight instead of 4.5.
        compute_dtype: Dtype that the weights are brought to for each product; None for ``policy.dtype``. On a GPU:
            ``bfloat16``, beside ``policy.dtype: float32`` and ``bf16-mixed``.
    """

    double_quant: bool = True
    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @property
    def bits(self) -> float:
        """Bits that a weight takes: four, and of each 64 weights a scale in 32 bits, or in 8 with one of 32 for 256."""
        return 4 + (8 + 32 / 256 if self.double_quant else 32) / 64

    def require(self, adapted: bool, stored: bool, split: object | None) -> None:
        """Refuse a policy that cannot be held in four bits.

        Args:
            adapted: Whether it has adapters.
            stored: Whether its weights are loaded rather than random.
            split: How it is split over ranks, None if it is not.

        Raises:
            ValueError: It cannot.
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
        """What transformers loads such a model by.

        Args:
            dtype: Of what is not quantized.

        Raises:
            ModuleNotFoundError: If bitsandbytes is not installed.
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

    That rounds the scales to bfloat16 for good: a reference pass would change the weights in the middle of a run.

    Args:
        model: A model that was loaded in four bits.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def product_dtype(config: Any) -> torch.dtype | None:
    """Dtype that a quantized model's weights are brought to for each product; None for a model that is not quantized.

    Args:
        config: A transformers config.
    """
    return getattr(getattr(config, "quantization_config", None), "bnb_4bit_compute_dtype", None)


def scales(tensor: Tensor) -> list[Tensor]:
    """What a weight in four bits means beside its bits; nothing for any other weight.

    Args:
        tensor: A parameter.
    """
    state = getattr(tensor, "quant_state", None)
    nested = getattr(state, "state2", None)
    return [part.absmax for part in (state, nested) if part is not None]


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer's weight is in four bits.

    Args:
        layer: Any module.
    """
    return hasattr(layer._parameters.get("weight"), "quant_state")  # peft computes a `weight` that is no parameter


@torch.no_grad()
def dequantized(layer: Any) -> nn.Module:
    """A layer with the values that its four bits stand for, in the dtype that they were rounded from.

    Args:
        layer: A linear layer. One that is not quantized is given back as it is.
    """
    if not is_quantized(layer):
        return layer  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state), requires_grad=False)
    plain.bias = layer.bias
    return plain
