"""Keys of a message: which say whether it is trained, which change what it means, which only describe it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lion_lightning.data.formats.column_table import THOUGHTS, TOOLS
from lion_lightning.data.formats.unused_columns import name_variants, printable
from lion_lightning.data.reports.row_messages import add_warning
from lion_lightning.models.chat_template import REASONING

if TYPE_CHECKING:
    from lion_lightning.data.formats.turns import Message

HARMLESS = frozenset(
    """
    id message_id parent_id uuid index turn rank name tool_call_id type object ts time timestamp date created
    created_at create_time updated_at update_time model language lang tokens token_count num_tokens finish_reason
    stop_reason usage user_name username author status end_turn annotations metadata source
    """.split()  # noqa: SIM905
)
"""Keys of a message that only describe it: a template may leave them out."""

CHANGING = frozenset(
    """
    image images image_url audio audios video videos file files attachments refusal reasoning_details
    thinking_blocks train_detail training_detail prefix partial tool_responses documents citations
    """.split()  # noqa: SIM905
).union(TOOLS, THOUGHTS)
"""Keys that change what a message means: leaving them out is an error."""

# --- whether a message is trained, and how much it counts

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
        raise ValueError(f"{name} is {repr(value)[:60]}; a weight is a finite number of at least 0, true or false")
    return weight


def may_be_a_flag(key: str, value: Any) -> bool:
    """True if a key that is not known could say that a turn is trained, or that it is not."""
    return bool(_MAY_BE_A_FLAG.search(key.lower())) and str(value).strip().lower() in _YES_OR_NO


def _yes_or_no(value: Any, name: str) -> float:
    flag = _YES_OR_NO.get(str(value).strip().lower())
    if flag is None:
        raise ValueError(
            f"{name} is {repr(value)[:60]}; a turn is trained (1 or true) or not (0 or false); call a number between "
            "or above them `weight`"
        )
    return flag


# --- keys that the template is given


def unread_keys(messages: Sequence[Message], read: Any) -> None:
    """Warn of keys of messages that a chat template does not read; refuse those that change a message's meaning.

    Args:
        messages: The turns.
        read: Function of a key, true where the template reads it.
    """
    for number, message in enumerate(messages):
        for key, value in (message.extra or {}).items():
            if key == "tool_calls" or key in HARMLESS or any(map(read, REASONING if key in REASONING else [key])):
                continue
            if key in REASONING:  # of an answer to train it is missed by whoever looks for it in the text
                add_warning(f"not used: {key} of turns that are not trained, which the chat template does not read")
                continue
            if value and not CHANGING.isdisjoint(name_variants(key)):
                is_tools = any(variant in TOOLS for variant in name_variants(key))
                fix = "move it to the row's column `tools`" if is_tools else "take it out of the row"
                raise ValueError(
                    f"the chat template leaves out the row's {key} of message {number}, which changes what it means; "
                    f"{fix} (with a `transform`), or use a template that shows it"
                )
            add_warning(f"not used: key {key!r} of messages, which the chat template does not read")
