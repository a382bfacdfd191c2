"""The ``lion`` entry of a checkpoint, which describes its policy; each part is checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from lion_lightning.models.checkpoints.folders import PREFIX
from lion_lightning.models.model_configs import is_classifier
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.models.settings import check_types, spec_from
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import unwrapped


@dataclass
class LionEntry:
    """Settings that an export is made by: plain data in the checkpoint, specs here.

    Attributes:
        policy: The policy's spec; of a reward model, a :class:`RewardModelSpec`.
        tokenizer: The tokenizer's spec.
        config: The transformers config, with its ``model_type``.
        new_ids: Tokens that the base model was not trained on.
        generation: Generation settings of the base model.
        base: Hash of the base model's weights, if the checkpoint leaves them out.
        module: Class of the module.
        objective: Its loss, and the items that the loss is over.
        steps: Optimizer steps.
        data: The data module's description.
        asked_for_code: The entry asks for custom code to run; it never does because of that.
    """

    policy: PolicySpec
    tokenizer: TokenizerSpec
    config: dict[str, Any]
    new_ids: list[int] = field(default_factory=list)
    generation: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    module: str = "a module"
    objective: str = ""
    steps: int = 0
    data: Any = None
    asked_for_code: bool = False


def read_entry(checkpoint: object, trust_remote_code: bool) -> LionEntry:
    """The entry of a checkpoint.

    Args:
        checkpoint: A loaded checkpoint.
        trust_remote_code: Run code that comes with model and tokenizer, whatever the entry says.

    Raises:
        ValueError: There is none, or a part of it is malformed.
    """
    given = checkpoint.get("lion") if isinstance(checkpoint, Mapping) else None
    if given is None:
        raise ValueError("this checkpoint was not written by lion_lightning: it has no `lion` entry.")
    if not isinstance(given, Mapping):
        raise ValueError(f"its `lion` entry is a {type(given).__name__}, not a mapping; take another checkpoint")
    names = [one.name for one in fields(LionEntry) if one.name != "asked_for_code"]
    entry = spec_from(LionEntry, {name: given[name] for name in names if name in given}, "its `lion` entry")
    kind = RewardModelSpec if is_classifier(entry.config.get("architectures")) else PolicySpec
    policy = spec_from(kind, entry.policy, "its `lion` entry: policy")
    tokenizer = spec_from(TokenizerSpec, entry.tokenizer, "its `lion` entry: tokenizer")
    return replace(
        entry,
        policy=replace(policy, trust_remote_code=trust_remote_code),
        tokenizer=replace(tokenizer, trust_remote_code=trust_remote_code),
        asked_for_code=policy.trust_remote_code or tokenizer.trust_remote_code,
    )


def require_plain_entry(checkpoint: Mapping[str, Any], where: object) -> None:
    """Refuse to resume from a malformed entry; a checkpoint without one passes."""
    given = checkpoint.get("lion", {})
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{where}: its `lion` entry is a {type(given).__name__}, not a mapping; take another checkpoint"
        )
    known = {one.name for one in fields(_ResumedParts)}  # older checkpoints may lack some
    check_types(_ResumedParts, {name: given[name] for name in known & given.keys()}, f"{where}: `lion`")


@dataclass
class _ResumedParts:
    """The parts of an entry that resuming reads."""

    module: str
    settings: dict[str, Any]
    config: dict[str, Any]
    reference: dict[str, Any]
    start: dict[str, Any]
    base: str | None
    rewound: bool
    epoch_kl: float | None


def policy_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The policy's weights in a checkpoint, by their names in the policy."""
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError("it holds no weights: its `state_dict` is missing, or not a mapping")
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in _named(state) if name.startswith(PREFIX)}
    if not weights:
        raise ValueError(f"it holds no weights of a policy: no name in its `state_dict` begins with {PREFIX}")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"its weight {name} is a {type(tensor).__name__}, not a tensor")
    return weights


def other_weights(state: Mapping[str, Any]) -> list[str]:
    """Names of trained weights that no export holds, e.g. of a value head."""
    known = (PREFIX, "reference.", "start.", "loss.", "_stage_metrics.")
    return [name for name, value in _named(state) if isinstance(value, Tensor) and not name.startswith(known)]


def _named(state: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(unwrapped(str(name)), value) for name, value in state.items()]
