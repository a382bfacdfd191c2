"""Align language models in the LIONs way (SFT, DPO, online DPO) with PyTorch Lightning.

The names below load on first use, so that ``import lion_lightning`` stays cheap: torch, Lightning and transformers are
imported only when something that needs them is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lion_lightning.data.groups import GroupDataModule
    from lion_lightning.data.infill.data_module import InfillDataModule
    from lion_lightning.data.on_policy import OnPolicyDataModule, OnPolicyGroupDataModule
    from lion_lightning.data.packing.best_fit import BestFit
    from lion_lightning.data.preference import PreferenceDataModule
    from lion_lightning.data.sft import SFTDataModule
    from lion_lightning.data.sources.source import Source
    from lion_lightning.data.unpaired import UnpairedDataModule
    from lion_lightning.losses.answers.answer import AnswerLoss
    from lion_lightning.losses.groups.group import GroupLoss
    from lion_lightning.losses.pairs.preference import PreferenceLoss
    from lion_lightning.models.lora import LoRASpec
    from lion_lightning.models.policy import PolicyModel
    from lion_lightning.models.spec import PolicySpec
    from lion_lightning.models.tokenizer import TokenizerSpec
    from lion_lightning.modules.base import AlignmentModule
    from lion_lightning.modules.dpo import DPOModule
    from lion_lightning.modules.group import GroupModule
    from lion_lightning.modules.kto import KTOModule
    from lion_lightning.modules.online import OnlineDPOModule, OnlineGroupModule
    from lion_lightning.modules.policy_gradient import PolicyGradientModule
    from lion_lightning.modules.reward import RewardModule
    from lion_lightning.modules.sft import SFTModule
    from lion_lightning.references.base import (
        AdapterOffReference,
        FrozenReference,
        MixedReference,
        NoReference,
        Reference,
    )
    from lion_lightning.references.cached import CachedReference, RefreshedReference

__version__ = "0.1.0"

__all__ = [
    "AdapterOffReference",
    "AlignmentModule",
    "AnswerLoss",
    "BestFit",
    "CachedReference",
    "DPOModule",
    "FrozenReference",
    "GroupDataModule",
    "GroupLoss",
    "GroupModule",
    "InfillDataModule",
    "KTOModule",
    "LoRASpec",
    "MixedReference",
    "NoReference",
    "OnPolicyDataModule",
    "OnPolicyGroupDataModule",
    "OnlineDPOModule",
    "OnlineGroupModule",
    "PolicyGradientModule",
    "PolicyModel",
    "PolicySpec",
    "PreferenceDataModule",
    "PreferenceLoss",
    "Reference",
    "RefreshedReference",
    "RewardModule",
    "SFTDataModule",
    "SFTModule",
    "Source",
    "TokenizerSpec",
    "UnpairedDataModule",
    "__version__",
]

# Where each public name lives. The imports above tell type checkers the same; tests/unit/test_imports.py compares them.
_HOMES = {
    "AdapterOffReference": "references.base",
    "AlignmentModule": "modules.base",
    "AnswerLoss": "losses.answers.answer",
    "BestFit": "data.packing.best_fit",
    "CachedReference": "references.cached",
    "DPOModule": "modules.dpo",
    "FrozenReference": "references.base",
    "GroupDataModule": "data.groups",
    "GroupLoss": "losses.groups.group",
    "GroupModule": "modules.group",
    "InfillDataModule": "data.infill.data_module",
    "KTOModule": "modules.kto",
    "LoRASpec": "models.lora",
    "MixedReference": "references.base",
    "NoReference": "references.base",
    "OnPolicyDataModule": "data.on_policy",
    "OnPolicyGroupDataModule": "data.on_policy",
    "OnlineDPOModule": "modules.online",
    "OnlineGroupModule": "modules.online",
    "PolicyGradientModule": "modules.policy_gradient",
    "PolicyModel": "models.policy",
    "PolicySpec": "models.spec",
    "PreferenceDataModule": "data.preference",
    "PreferenceLoss": "losses.pairs.preference",
    "Reference": "references.base",
    "RefreshedReference": "references.cached",
    "RewardModule": "modules.reward",
    "SFTDataModule": "data.sft",
    "SFTModule": "modules.sft",
    "Source": "data.sources.source",
    "TokenizerSpec": "models.tokenizer",
    "UnpairedDataModule": "data.unpaired",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562) and keep it for the next."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
