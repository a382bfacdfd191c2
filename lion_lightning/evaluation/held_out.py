"""Loss on held-out conversations, and rewards on held-out preference pairs, as the training modules reckon them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources import Source
from lion_lightning.losses.dpo import SigmoidLoss
from lion_lightning.models.cached import CachedReference
from lion_lightning.models.references import FrozenReference, Reference
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.modules.sft import SFTModule


def conversation_loss(
    model: str, sources: Sequence[Source], max_length: int = 2048, batch_size: int = 1
) -> dict[str, float]:
    """Negative log-likelihood a supervised token, perplexity and token accuracy.

    Args:
        model: A Hugging Face folder or hub id.
        sources: Conversations.
        max_length: Tokens of a row; longer conversations lose their end, and that is reported.
        batch_size: Rows of a micro-batch.
    """
    data = SFTDataModule(list(sources), TokenizerSpec(model), max_length=max_length, batch_size=batch_size)
    return _validated(SFTModule(_policy(model)), data)


def preference_rewards(
    model: str,
    sources: Sequence[Source],
    reference: str | None = None,
    beta: float = 0.1,
    max_length: int = 2048,
    batch_size: int = 1,
) -> dict[str, float]:
    """Share of pairs whose chosen answer has the higher reward, the mean margin, and the DPO loss.

    Args:
        model: A Hugging Face folder or hub id.
        sources: Preference pairs.
        reference: The model that rewards are measured against; without one, all margins are those of the model with
            itself, so the evaluation asks for it.
        beta: Scale of the rewards.
        max_length: Tokens of a prompt and one answer.
        batch_size: Rows of a micro-batch.
    """
    data = PreferenceDataModule(list(sources), TokenizerSpec(model), max_length=max_length, batch_size=batch_size)
    measured: Reference = FrozenReference(_policy(reference)) if reference else CachedReference()
    return _validated(DPOModule(_policy(model), loss=SigmoidLoss(beta), reference=measured), data)


def _policy(path: str) -> PolicySpec:
    return PolicySpec(path=path)


def _validated(module: AlignmentModule, data: PackedDataModule) -> dict[str, float]:
    """Validate on all that the sources hold, quietly; nothing is written but caches."""
    data.prepare_data()
    data.setup()
    assert data.train is not None
    hushed = logging.getLogger("lightning.pytorch")
    level = hushed.level
    hushed.setLevel(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(logger=False, enable_checkpointing=False, default_root_dir=Path(folder), devices=1)
            found: list[Any] = trainer.validate(module, data.loader(data.train, shuffle=False), verbose=False)
    finally:
        hushed.setLevel(level)
    return {name.removeprefix("val/"): float(value) for name, value in found[0].items()}
