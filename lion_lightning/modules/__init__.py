"""LightningModules: one for each stage, over one base."""

from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.modules.group import GroupModule
from lion_lightning.modules.kto import KTOModule
from lion_lightning.modules.online import OnlineDPOModule, OnlineGroupModule, OnlineModule
from lion_lightning.modules.optimization.schedules import (
    ConstantWithWarmup,
    CosineWithWarmup,
    LinearWithWarmup,
    WarmupSchedule,
)
from lion_lightning.modules.policy_gradient import PolicyGradientModule
from lion_lightning.modules.reward import RewardModule
from lion_lightning.modules.sft import SFTModule

__all__ = [
    "AlignmentModule",
    "ConstantWithWarmup",
    "CosineWithWarmup",
    "DPOModule",
    "GroupModule",
    "KTOModule",
    "LinearWithWarmup",
    "OnlineDPOModule",
    "OnlineGroupModule",
    "OnlineModule",
    "PolicyGradientModule",
    "RewardModule",
    "SFTModule",
    "WarmupSchedule",
]
