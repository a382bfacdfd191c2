"""How a reward model is built: from a causal LM with a new head, or from a reward model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from typing_extensions import override

from lion_lightning.models.model_configs import is_classifier
from lion_lightning.models.rewards.model import RewardModel, score_head
from lion_lightning.models.rewards.padding import padding_token
from lion_lightning.models.settings import asked_spec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.checks import SAME_HEAD, HeadChange
from lion_lightning.models.weights.fsdp import Sharding

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass
class RewardModelSpec(PolicySpec):
    """How to build a reward model; attributes as of :class:`PolicySpec`.

    ``path`` may hold a causal LM, whose head is left out and replaced by a new one (random, as transformers
    initializes it), or a reward model, which is trained further. With ``lora``, the head is trained in full.
    """

    auto_class = AutoModelForSequenceClassification
    known = ("sequence classifier", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)

    @classmethod
    @override
    def of(cls, model: PolicySpec | str | dict[str, Any]) -> Self:
        if isinstance(model, PolicySpec) and not isinstance(model, cls):
            # The spec of a causal LM: the same settings, for a classifier.
            return cls(**{field.name: getattr(model, field.name) for field in fields(PolicySpec)})
        return asked_spec(cls, {"path": model} if isinstance(model, str) else model, "policy")

    @override
    def build(  # type: ignore[override]
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        new_ids: list[int] | None = None,
        sharding: Sharding | None = None,
    ) -> RewardModel:
        """As :meth:`PolicySpec.build`; the model's padding token becomes one that ends no text."""
        padding = None if tokenizer is None else tokenizer.convert_tokens_to_ids(padding_token(tokenizer))
        model: Any = super().build(tokenizer, new_ids, sharding)
        config = model.causal_lm.config
        config.architectures = [type(model.causal_lm).__name__]  # says in checkpoints what was trained
        if padding is not None:
            config.get_text_config().pad_token_id = padding
        return model  # type: ignore[no-any-return]

    @override
    def load_config(self) -> PretrainedConfig:
        config = self.read_config()
        if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not self.trust_remote_code:
            raise ValueError(
                f"policy: transformers has no sequence classifier of type {config.model_type}, which a reward model "
                "is; choose a model of another family"
            )
        if is_classifier(config.architectures) and config.num_labels != 1:
            raise ValueError(
                f"policy: {self.path or self.config} is a classifier with {config.num_labels} outputs, and a reward "
                "model has one; start from a causal LM or from a reward model"
            )
        config.num_labels = 1
        return config

    @override
    def wrap(self, model: nn.Module, packed: bool | None = None, probe: bool = True) -> RewardModel:  # type: ignore[override]
        return RewardModel(model, packed, probe)

    @override
    def with_adapters(self, model: PreTrainedModel, new_ids: list[int]) -> nn.Module:
        return self.lora.apply(model, new_ids, head=score_head(model)[0]) if self.lora else model

    @override
    def head_change(self, config: PretrainedConfig) -> HeadChange:
        """The new head, and the causal LM's, which files hold in vain; none for the files of a reward model."""
        if is_classifier(config.architectures):
            return SAME_HEAD
        classes: tuple[Any, Any] = (self.auto_class, AutoModelForCausalLM)
        with torch.device("meta"):
            own, theirs = (kind.from_config(config, trust_remote_code=self.trust_remote_code) for kind in classes)
        return HeadChange(_outside_backbone(own), _outside_backbone(theirs))


def _outside_backbone(model: PreTrainedModel) -> frozenset[str]:
    """Names of a model's weights outside of its backbone, tied ones too."""
    inside = f"{model.base_model_prefix}."
    return frozenset(name for name, _ in model.named_parameters(remove_duplicate=False) if not name.startswith(inside))
