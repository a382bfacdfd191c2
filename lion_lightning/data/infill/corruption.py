"""Base of the corruptions: the tokens of a document become a context with holes, and the answer that fills them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from lion_lightning.types import SampleSegment

Ids = npt.NDArray[np.int32]


class File(NamedTuple):
    """The tokens of a document.

    Attributes:
        bos: BOS; empty where it has none.
        body: The tokens that may move.
        eos: EOS; empty where it has none, as that of a truncated document.
    """

    bos: Ids
    body: Ids
    eos: Ids


class Corrupted(NamedTuple):
    """A document with holes, and what fills them; both with the corruption's special tokens."""

    context: Ids
    answer: Ids


class SpecialTokens(NamedTuple):
    """Ids of special tokens.

    Attributes:
        own: Those that the corruption writes, in the order of its ``tokens``.
        bos: BOS, if the tokenizer has one.
        eos: EOS.
    """

    own: Ids
    bos: int | None
    eos: int

    @classmethod
    def of(cls, tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        """Look them up.

        Raises:
            ValueError: One is not a token of the tokenizer, or stands for something else, too; or it has no EOS.
        """
        known = tokenizer.get_vocab()
        if not all(tokens):
            raise ValueError("data.corruption: one of its tokens is empty; name a token of the tokenizer")
        if missing := [token for token in tokens if token not in known]:
            parts = len(tokenizer.encode(missing[0], add_special_tokens=False))
            named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ValueError(
                f"data.corruption needs {named}, and {missing[0]} is {parts or 'none'} of the tokenizer's tokens; add "
                "them to tokenizer.special_tokens, or name tokens that it has"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "data.corruption ends a file with EOS, and the tokenizer has none; set tokenizer.eos_token"
            )
        ends = {tokenizer.bos_token, tokenizer.eos_token}
        if len({*tokens, *ends}) < len(tokens) + len(ends):
            raise ValueError(
                f"data.corruption writes {', '.join(tokens)}; give it tokens that differ from each other, EOS and BOS"
            )
        own = np.array([known[token] for token in tokens], np.int32)
        return cls(own, tokenizer.bos_token_id, tokenizer.eos_token_id)

    def file(self, ids: Ids) -> File:
        """The tokens of a document, apart from BOS at its start and EOS at its end."""
        start = int(len(ids) > 0 and ids[0] == self.bos)
        stop = len(ids) - int(len(ids) > start and ids[-1] == self.eos)
        return File(ids[:start], ids[start:stop], ids[stop:])

    def eos_ids(self) -> Ids:
        """EOS as an array of one."""
        return np.array([self.eos], np.int32)


class Corruption(ABC):
    """A way to make an infill of a document. Subclass it and name the subclass in a config by ``class_path``."""

    @property
    @abstractmethod
    def tokens(self) -> tuple[str, ...]:
        """Special tokens that it writes. No document may hold one."""

    @property
    @abstractmethod
    def extra(self) -> int:
        """Most tokens by which a document becomes longer."""

    @abstractmethod
    def apply(self, file: File, special: SpecialTokens, rng: np.random.Generator) -> Corrupted:
        """Make holes.

        Args:
            file: A document with at least 2 tokens in its body.
            special: Ids of :attr:`tokens` and EOS.
            rng: Decides all that is left to chance.
        """

    def segments(self, made: Corrupted) -> tuple[SampleSegment, ...]:
        """Segments to train on: one causal segment, all of it trained."""
        ids = np.concatenate(made)
        return (SampleSegment(ids, np.ones(len(ids), np.bool_)),)

    def settings(self) -> dict[str, Any]:
        """Its class and public attributes, as plain data: a model card shows them, and resumed runs compare them."""
        found: dict[str, Any] = {"class_path": type(self).__name__}
        for name, value in vars(self).items():
            if not name.startswith("_"):
                found[name] = value.settings() if isinstance(value, Corruption) else value
        return found
