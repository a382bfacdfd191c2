"""The ``lion`` entry of a checkpoint: what its policy is. It comes from a file, so each part of it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from lion_lightning.models.checkpoints.folders import PREFIX
from lion_lightning.models.settings import check_types, spec_from
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import unwrapped


@dataclass
class LionEntry:
    """What an export needs to know, as plain data in a checkpoint and as specs here.

    Attributes:
        policy: How the policy was built.
        tokenizer: Its tokenizer.
        config: The transformers config, with its ``model_type``.
        new_ids: Tokens that the base model has not seen.
        generation: Generation settings of the base model.
        base: Digest of the base model's weights, where the checkpoint leaves them out.
        module: Class that trained it.
        steps: Optimizer steps done.
        data: What the data module says of itself.
        asked_for_code: Whether the entry says that code which comes with the model may run. It is not believed.
    """

    policy: PolicySpec
    tokenizer: TokenizerSpec
    config: dict[str, Any]
    new_ids: list[int] = field(default_factory=list)
    generation: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    module: str = "a module"
    steps: int = 0
    data: Any = None
    asked_for_code: bool = False


def read_entry(checkpoint: object, trust_remote_code: bool) -> LionEntry:
    """The entry of a checkpoint.

    Args:
        checkpoint: As it was loaded.
        trust_remote_code: Whether code that comes with model and tokenizer may run, whatever the entry says.

    Raises:
        ValueError: There is none, or a part of it is not what was once written there.
    """
    given = checkpoint.get("lion") if isinstance(checkpoint, Mapping) else None
    if given is None:
        raise ValueError("this checkpoint was not written by lion_lightning: it has no `lion` entry.")
    if not isinstance(given, Mapping):
        raise ValueError(f"its `lion` entry is a {type(given).__name__}, not a mapping; this is no checkpoint of ours")
    names = [one.name for one in fields(LionEntry) if one.name != "asked_for_code"]
    entry = spec_from(LionEntry, {name: given[name] for name in names if name in given}, "its `lion` entry")
    policy = spec_from(PolicySpec, entry.policy, "its `lion` entry: policy")
    tokenizer = spec_from(TokenizerSpec, entry.tokenizer, "its `lion` entry: tokenizer")
    return replace(
        entry,
        policy=replace(policy, trust_remote_code=trust_remote_code),
        tokenizer=replace(tokenizer, trust_remote_code=trust_remote_code),
        asked_for_code=policy.trust_remote_code or tokenizer.trust_remote_code,
    )


def require_plain_entry(checkpoint: Mapping[str, Any], where: object) -> None:
    """Refuse to go on from a checkpoint whose entry is none, or whose parts are of other types than they were.

    Args:
        checkpoint: As it was loaded; one of another make may have no entry.
        where: The file, for the message.

    Raises:
        ValueError: It is odd; the message names the part.
    """
    given = checkpoint.get("lion", {})
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{where}: its `lion` entry is a {type(given).__name__}, not a mapping; take another checkpoint"
        )
    known = {one.name for one in fields(_Parts)}
    check_types(_Parts, {name: given[name] for name in known & given.keys()}, f"{where}: `lion`")


@dataclass
class _Parts:
    """What a resume reads of an entry."""

    module: str
    settings: dict[str, Any]
    config: dict[str, Any]
    reference: dict[str, Any]
    start: dict[str, Any]
    base: str | None
    rewound: bool
    epoch_kl: float | None


def policy_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The policy's weights in a checkpoint, by the names that they have in the policy.

    Args:
        checkpoint: As it was loaded.

    Raises:
        ValueError: There are none, or they are no tensors.
    """
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError("it holds no weights: its `state_dict` is missing, or no mapping")
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in _named(state) if name.startswith(PREFIX)}
    if not weights:
        raise ValueError(f"it holds no weights of a policy: no name in its `state_dict` begins with {PREFIX}")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"its weight {name} is a {type(tensor).__name__}, not a tensor")
    return weights


def other_weights(state: Mapping[str, Any]) -> list[str]:
    """Names of weights beside the policy's, which no export holds: a value head, say. A reference is none.

    Args:
        state: A module's ``state_dict``.
    """
    known = (PREFIX, "reference.", "start.", "loss.", "_meters.")
    return [name for name, value in _named(state) if isinstance(value, Tensor) and not name.startswith(known)]


def _named(state: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(unwrapped(str(name)), value) for name, value in state.items()]
