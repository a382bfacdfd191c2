"""Files of numbered tokens, and special tokens above them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lion_lightning.data.infill import File, SpecialTokens
from lion_lightning.data.infill.corruption import Ids

BOS, EOS, SEP, EOM = 90, 91, 100, 101
MASKS = (102, 103, 104, 105)


def ids(tokens: Iterable[int]) -> Ids:
    return np.array(list(tokens), np.int32)


SPECIAL = SpecialTokens(ids([SEP, EOM, *MASKS]), BOS, EOS)


def file_of(tokens: Iterable[int]) -> File:
    return File(ids([]), ids(tokens), ids([]))
