"""Keys of a message that say whether it is trained, and how much it counts."""

from __future__ import annotations

import math
import re
from typing import Any

from lion_lightning.data.formats.unused_columns import printable

_WEIGHTS = frozenset(["weight", "loss_weight", "loss_scale"])
FLAGS = _WEIGHTS.union(
    ["loss", "loss_mask", "train", "training", "trainable", "is_trainable", "train_on_turn", "supervised"]
)
"""Keys of a message that say whether it is trained, or how much it counts."""

_LARGEST_WEIGHT = 3.4e38  # a finite number in fp32, as losses are
_MAY_BE_A_FLAG = re.compile("loss|train|mask|weight|supervis|learn|target")
_YES_OR_NO = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


def read_weight(own: dict[str, Any], role: str, name: str) -> float:
    """Take the keys that say whether a turn is trained, and how much it counts, out of a message.

    Args:
        own: The message's keys; these are taken out.
        role: Its role.
        name: Its path in the row, for errors.

    Returns:
        What each of its tokens counts in the loss, 1 where the message does not say.

    Raises:
        ValueError: A key cannot be followed, or two contradict each other.
    """
    given = {key: _number(own.pop(key), f"{name}.{key}") for key in sorted(_WEIGHTS & own.keys())}
    weights = set(given.values())
    for key in sorted(FLAGS & own.keys()):
        given[key] = _yes_or_no(own.pop(key), f"{name}.{key}")
    if "masked" in own:
        given["masked"] = 1.0 - _yes_or_no(own.pop("masked"), f"{name}.masked")
    for key in own:
        if may_be_a_flag(key, own[key]):
            raise ValueError(
                f"{name}.{printable(key)} could mean that the turn is trained or that it is not; call it `train`"
            )
    if len({value > 0 for value in given.values()}) > 1:
        raise ValueError(f"{name} says both that it is trained and that it is not ({', '.join(given)}); keep one")
    if len(weights) > 1:
        raise ValueError(f"{name} has more than one weight ({', '.join(given)}); keep one")
    if role != "assistant" and any(given.values()):
        raise ValueError(
            f"{name}.{next(iter(given))} asks to train a {role} turn, and only assistant turns can be trained; set it "
            "to false, or remove it (with a `transform`)"
        )
    return next(iter(weights), min(given.values(), default=1.0))


def _number(value: Any, name: str) -> float:
    text = str(value).strip().lower()
    try:
        weight = _YES_OR_NO[text] if text in _YES_OR_NO else float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= _LARGEST_WEIGHT:
        raise ValueError(f"{name} is {repr(value)[:60]}; a weight is a number of at least 0, true or false")
    return weight


def may_be_a_flag(key: str, value: Any) -> bool:
    """Whether a key that is not known could say that a turn is trained, or that it is not."""
    return bool(_MAY_BE_A_FLAG.search(key.lower())) and str(value).strip().lower() in _YES_OR_NO


def _yes_or_no(value: Any, name: str) -> float:
    flag = _YES_OR_NO.get(str(value).strip().lower())
    if flag is None:
        raise ValueError(
            f"{name} is {repr(value)[:60]}; a turn is trained (1 or true) or not (0 or false); call a number between "
            "or above them `weight`"
        )
    return flag
