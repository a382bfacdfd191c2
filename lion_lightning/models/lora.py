"""Low-rank adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lion_lightning.models.embeddings import embedding_names

if TYPE_CHECKING:
    from peft import PeftModel


_EMBEDDINGS = {"embed_tokens", "lm_head"}
"""Names of embedding and head in peft."""


@dataclass
class LoRASpec:
    """Low-rank adapters through peft (arXiv 2106.09685).

    Attributes:
        r: Rank.
        alpha: Scale of the update; it is multiplied by ``alpha / r``.
        dropout: Dropout on the adapter's input, in training only.
        target_modules: Names (or one regular expression) of the layers to adapt; ``all-linear`` for all but the head
            (and but the output projections of state-space mixers, which fused kernels read past any adapter).
        modules_to_save: Layers that are trained in full next to the adapters. ``embed_tokens`` or ``lm_head`` of a
            model that ties them means both, and they stay tied.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    modules_to_save: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse adapters that could not learn."""
        for name, good, range_ in (
            ("r", self.r >= 1, "of at least 1"),
            ("alpha", 0 < self.alpha < math.inf, "above 0"),
            ("dropout", 0 <= self.dropout < 1, "of at least 0 and below 1"),
        ):
            if not good:
                raise ValueError(f"policy.lora.{name} is {getattr(self, name)}; give a number {range_}")
        if not self.target_modules:
            raise ValueError("policy.lora.target_modules is empty; name layers, or `all-linear`")

    def apply(self, model: PreTrainedModel, new_ids: list[int], head: str | None = None) -> nn.Module:
        """Wrap a model in adapters; rows of new tokens are trained next to them.

        Args:
            model: The base model; all its weights are frozen.
            new_ids: Tokens that the base model was not trained on; their embeddings are trained.
            head: Name of a classifier's head, which is trained in full; None for a causal LM.

        Raises:
            ModuleNotFoundError: peft is not installed.
            ValueError: The model has no layer of a name.
        """
        self._require_layers(model)
        try:
            from peft import LoraConfig, get_peft_model
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("policy.lora needs peft: pip install 'lion-lightning[lora]'") from error

        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft's annotation is too narrow
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            exclude_modules=self._excluded(model) or None,
            modules_to_save=[*self.modules_to_save, *([head] if head else [])] or None,  # a copy: peft appends to it
            trainable_token_indices=self._token_rows(model, new_ids),
            ensure_weight_tying=self._trains_tied(model),  # copies of embedding and head stay one weight
            task_type="SEQ_CLS" if head else "CAUSAL_LM",
        )
        return get_peft_model(model, config)

    def _require_layers(self, model: PreTrainedModel) -> None:
        """Match names as peft does, which silently skips those that match no layer."""
        layers = [name for name, _ in model.named_modules()]
        wanted = {"modules_to_save": self.modules_to_save}
        if isinstance(self.target_modules, list):
            wanted["target_modules"] = self.target_modules
        elif (pattern := self.target_modules).lower() != "all-linear":
            where = "policy.lora.target_modules:"
            try:
                found = any(re.fullmatch(pattern, layer) for layer in layers)
            except re.error as error:
                raise ValueError(f"{where} {pattern!r} is not a regular expression: {error}") from error
            if not found:
                raise ValueError(f"{where} the model has no layer {pattern!r}; name some, or `all-linear`")
        for setting, names in wanted.items():
            for name in names:
                if not any(layer == name or layer.endswith(name) for layer in layers):
                    raise ValueError(f"policy.lora.{setting}: the model has no layer {name!r}")

    def _excluded(self, model: PreTrainedModel) -> list[str]:
        """Linear layers that ``all-linear`` leaves out, since no adapter would be right on them."""
        if isinstance(self.target_modules, list) or self.target_modules.lower() != "all-linear":
            return []
        excluded = []
        for name, module in model.named_modules():
            if hasattr(module, "ssm_state_size"):  # fused kernels read this weight past any adapter; peft refuses it
                excluded.append(f"{name}.out_proj")
            # A router that gives a tuple, or a product of groups: a subclass of a linear layer in name only.
            if isinstance(module, nn.Linear) and type(module) is not nn.Linear and not _is_linear(module):
                excluded.append(name)
        return excluded

    def _trains_tied(self, model: PreTrainedModel) -> bool:
        """True if a layer that is trained in full is tied to another; trained alone it would be lost in a merge."""
        tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
        return tied and bool(_EMBEDDINGS & set(self.modules_to_save))

    def _token_rows(self, model: PreTrainedModel, new_ids: list[int]) -> dict[str, list[int]] | None:
        """Rows to train by layer: of the embedding and an untied head, unless they are trained in full."""
        if self._trains_tied(model):
            return None
        layers = [name.removesuffix(".weight") for name in embedding_names(model)]  # peft finds a tied head by itself
        rows = {layer: new_ids for layer in layers if layer.rpartition(".")[2] not in self.modules_to_save}
        return rows if new_ids and rows else None


@torch.no_grad()
def _is_linear(module: nn.Linear) -> bool:
    """True if a layer makes one tensor of its output's size, as adapters do that are added to it."""
    if not module.weight.is_floating_point():  # quantized
        return True
    try:
        output = module(module.weight.new_zeros(1, 1, module.in_features))
    except (RuntimeError, TypeError, ValueError):
        return False
    return isinstance(output, Tensor) and output.shape == (1, 1, module.out_features)


def adapter_weights(model: PeftModel) -> Mapping[str, Tensor]:
    """The trained weights by their names in PEFT's files; sharded ones stay sharded."""
    from peft import get_peft_model_state_dict

    weights: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=model.state_dict(), save_embedding_layers=False
    )
    return weights


def write_adapter(model: PeftModel, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a folder that ``PeftModel.from_pretrained(base, folder)`` loads.

    Args:
        model: A model with adapters.
        folder: Where to; made if needed.
        weights: From :func:`adapter_weights`, gathered if they are sharded; None for the model's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in (weights or adapter_weights(model)).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = deepcopy(model.peft_config["default"])
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
