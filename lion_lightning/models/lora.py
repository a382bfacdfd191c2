"""Low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from lion_lightning.models.embeddings import embedding_names


@dataclass
class LoRASpec:
    """Low-rank adapters through peft (arXiv 2106.09685).

    Attributes:
        r: Rank.
        alpha: Scale of the update; it is multiplied by ``alpha / r``.
        dropout: Dropout on the adapter's input, in training only.
        target_modules: Names (or one regular expression) of the layers to adapt; ``all-linear`` for all but the head.
        modules_to_save: Layers that are trained whole beside the adapters.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    modules_to_save: list[str] = field(default_factory=list)

    def apply(self, model: PreTrainedModel, new_ids: list[int]) -> nn.Module:
        """Wrap a model in adapters; rows of new tokens are trained beside them.

        Args:
            model: The base model; all its weights are frozen.
            new_ids: Token ids whose embeddings must learn, since nothing has trained them.

        Raises:
            ModuleNotFoundError: If peft is not installed.
        """
        try:
            from peft import LoraConfig, get_peft_model
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("policy.lora needs peft: pip install 'lion-lightning[lora]'") from error

        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number does
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            modules_to_save=self.modules_to_save or None,
            trainable_token_indices=self._token_rows(model, new_ids),
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)

    def _token_rows(self, model: PreTrainedModel, new_ids: list[int]) -> dict[str, list[int]] | None:
        """Rows to train by layer: the embedding and an untied head, but for layers that are trained whole."""
        layers = [name.removesuffix(".weight") for name in embedding_names(model)]  # peft finds a tied head by itself
        rows = {layer: new_ids for layer in layers if layer.rpartition(".")[2] not in self.modules_to_save}
        return rows if new_ids and rows else None
