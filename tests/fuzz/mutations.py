"""Small wrong turns of plain data and of bytes, as people and broken disks make them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        10**12,
        -(10**12),
        2**63,
        0.5,
        -0.5,
        1e-300,
        1e300,
        math.inf,
        -math.inf,
        math.nan,
    ),
    *(
        "",
        " ",
        "x",
        "auto",
        "none",
        "../../x",
        "/nope",
        "~",
        "é\u202e\x07",
        "\ud800",
        "{{ 7 }}",
        "<|im_end|>",
        "a" * 5000,
    ),
    *([], [None], ["x"], [[]], {}, {"x": 1}, {"": None}, {"class_path": "os.getcwd"}, {"class_path": "nope.Nope"}),
)
"""Values to put in the place of others."""

COUNTS = {"num_workers", "devices", "num_nodes", "concurrency", "num_samples"}
"""Keys of what a machine is asked to start so many of: never replaced by a number, which it would have to obey."""

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Mutation:
    """A changed value, and the words of which an error is to name at least one."""

    value: Any
    names: tuple[str, ...]


def mutated(value: Any, random: Random) -> Mutation:
    """A copy of plain data with one thing changed: a value replaced, a key renamed, dropped, doubled or added."""
    changed = copy.deepcopy(value)
    paths = list(_paths(changed))
    path = random.choice(paths) if paths else ()
    if not path:
        return Mutation(random.choice(ODD), ())
    holder = changed
    for step in path[:-1]:
        holder = holder[step]
    last = path[-1]
    names = [str(step) for step in path if isinstance(step, str)]
    kind = random.choice(("replace", "replace", "replace", "drop", "rename", "add"))
    if kind == "replace":
        options = [odd for odd in ODD if last not in COUNTS or not isinstance(odd, int | float)]
        holder[last] = copy.deepcopy(random.choice(options))
    elif kind == "drop":
        del holder[last]
    elif isinstance(holder, dict):
        new = f"{last}x" if kind == "rename" else random.choice(("extra", "weight", "label", "name", "seed"))
        names.append(new)
        holder[new] = holder.pop(last) if kind == "rename" else copy.deepcopy(random.choice(ODD))
    else:
        holder.insert(last, copy.deepcopy(random.choice(ODD)))
    return Mutation(changed, tuple(names))


def _paths(value: Any, prefix: Path = ()) -> Iterator[Path]:
    """Where something stands in nested lists and mappings."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield (*prefix, key)
        yield from _paths(inner, (*prefix, key))


def damaged(data: bytes, random: Random) -> bytes:
    """The bytes cut off, with some flipped, a block of zeros, or a part that stands twice."""
    if not data:
        return b"\x00"
    place = random.randrange(len(data))
    kind = random.choice(("cut", "flip", "flip", "zeros", "double", "empty", "foreign"))
    if kind == "cut":
        return data[:place]
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]
    if kind == "zeros":
        return data[:place] + bytes(min(512, len(data) - place)) + data[place + 512 :]
    if kind == "double":
        return data[:place] + data[max(0, place - 64) :]
    return b"" if kind == "empty" else b"PK\x03\x04 not what was here"
