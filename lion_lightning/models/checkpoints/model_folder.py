"""A Hugging Face folder of a model that no config of this package has built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lion_lightning.models.checkpoints.export import model_card, refuse_own_base
from lion_lightning.models.checkpoints.export_files import new_export
from lion_lightning.models.checkpoints.lion_entry import LionEntry
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.checks import require_finite
from lion_lightning.models.weights.safetensors_writer import save_weights


def describe_model(policy: RolloutPolicy, folder: Path, **about: Any) -> LionEntry:
    """Facts on a model for its card, from its config; its own folder is refused as a place to write to.

    Args:
        policy: The policy and its tokenizer.
        folder: Where it will be written.
        about: Further fields of the entry: ``module``, ``steps``, ``data``.

    Raises:
        ValueError: The folder is the one that the model was loaded from.
    """
    config = policy.model.config
    dtype = str(policy.model.dtype).removeprefix("torch.")
    spec = PolicySpec.of({"path": config._name_or_path or None, "dtype": dtype})
    tokenizer = TokenizerSpec(policy.tokenizer.name_or_path)
    entry = LionEntry(policy=spec, tokenizer=tokenizer, config=config.to_dict(), **about)
    refuse_own_base(entry, folder)
    return entry


def write_model(policy: RolloutPolicy, weights: Mapping[str, Tensor], entry: LionEntry, folder: Path) -> Path:
    """Write weights, config, tokenizer, generation config and a card, in place of an earlier export.

    Args:
        policy: The policy and its tokenizer.
        weights: Full weights, as :meth:`RolloutPolicy.weights` gives them: adapters merged.
        entry: What the card says.
        folder: Where to; it must exist.

    Returns:
        The folder.

    Raises:
        ValueError: A weight is not finite, or the folder cannot be written.
    """
    require_finite("the policy", weights)
    with new_export(folder) as temporary:
        policy.write_settings(temporary)
        save_weights(iter(weights.items()), temporary)
        (temporary / "README.md").write_text(model_card(entry), encoding="utf-8")
    return folder
