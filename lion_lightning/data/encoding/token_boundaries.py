"""First tokens of answers in a text; the tokens before an answer must be those that its prompt alone gives."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple, Protocol

from tokenizers import Encoding, Tokenizer, processors
from transformers import PreTrainedTokenizerBase


class Tokens(Protocol):
    """Tokens of a text with their offsets, as ``tokenizers.Encoding`` has them."""

    @property
    def ids(self) -> list[int]:
        """The tokens."""

    def __len__(self) -> int:
        """How many there are; less work than to list them."""

    def char_to_token(self, char_pos: int, /) -> int | None:
        """Number of the token that a character is a part of."""

    def token_to_chars(self, token_index: int, /) -> tuple[int, int] | None:
        """The characters of a token."""


class Boundary(NamedTuple):
    """Tokens found before an answer, and the text that must give the same tokens when it stands alone.

    Attributes:
        start: Where the answer begins, in characters of the text.
        text: The end of what stands before it.
        ids: The tokens of that.
    """

    start: int
    text: str
    ids: list[int]


class TokenBoundaries:
    """Tokenizes texts as they are, and looks at the tokens before answers.

    Args:
        tokenizer: A fast tokenizer.

    Raises:
        ValueError: It is not a fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(backend := getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
            raise ValueError(f"tokenizer {tokenizer.name_or_path} is not a fast tokenizer; masks need one with offsets")
        self.backend = copy.deepcopy(backend)
        # The post-processor adds special tokens and cuts white space off the offsets.
        self.backend.post_processor = processors.Sequence([])
        self.backend.no_truncation()
        self.backend.no_padding()
        self._added = frozenset(self.backend.get_added_tokens_decoder())

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenize each text, without special tokens around it."""
        return list(self.backend.encode_batch(list(texts), add_special_tokens=False))

    def encode_parts(self, text: str, starts: Sequence[int]) -> Tokens | None:
        """Tokenize the parts of a text one by one, as a model sees them that is given a prompt and writes an answer.

        Returns:
            Its tokens; None if they stand for another text, as with tokenizers that put a space before each part.
        """
        edges = [0, *starts, len(text)]
        parts = _TextParts(self.encode([text[start:stop] for start, stop in pairwise(edges)]), edges)
        joined = self.encode([text])[0]
        same = self.backend.decode(parts.ids, False) == self.backend.decode(joined.ids, False)
        return parts if same else None

    def differing(
        self, texts: Sequence[str], encodings: Sequence[Tokens], starts: Sequence[Sequence[int]]
    ) -> list[tuple[int, Boundary]]:
        """Boundaries before which a model that is given the prompt alone would see other tokens.

        Returns:
            Each with the number of its text.
        """
        boundaries: list[tuple[int, Boundary]] = []
        for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            ids = encoding.ids
            for start in starts[number]:
                first = first_token(encoding, start, len(text))
                # An added token cuts the text in two before it is tokenized, so nothing before the last one matters.
                anchor = next((i for i in range(first - 1, 0, -1) if ids[i] in self._added), 0)
                before = text[_begin(encoding, anchor) if anchor else 0 : start]
                boundaries.append((number, Boundary(start, before, ids[anchor:first])))
        prompts = list({boundary.text for _, boundary in boundaries})
        alone = dict(zip(prompts, self.encode(prompts), strict=True))
        return [(number, boundary) for number, boundary in boundaries if alone[boundary.text].ids != boundary.ids]


class _TextParts:
    """Tokens of a text that was tokenized in parts; ``Encoding.merge`` would lose their offsets."""

    def __init__(self, parts: Sequence[Encoding], edges: Sequence[int]) -> None:
        self._parts, self._edges = parts, edges
        self._firsts = [0, *accumulate(len(part.ids) for part in parts)]
        self.ids = list(chain.from_iterable(part.ids for part in parts))

    def __len__(self) -> int:
        return len(self.ids)

    def char_to_token(self, char_pos: int) -> int | None:
        part = bisect_right(self._edges, char_pos) - 1
        token = self._parts[part].char_to_token(char_pos - self._edges[part])
        return None if token is None else token + self._firsts[part]

    def token_to_chars(self, token_index: int) -> tuple[int, int] | None:
        part = bisect_right(self._firsts, token_index) - 1
        chars = self._parts[part].token_to_chars(token_index - self._firsts[part])
        return None if chars is None else (chars[0] + self._edges[part], chars[1] + self._edges[part])


# --- offsets, read one by one: a list of them costs more than rendering does


def first_token(encoding: Tokens, start: int, end: int) -> int:
    """Number of the first token that begins at a character or after it; characters may have no token, or several.

    Args:
        encoding: Tokens of a text.
        start: The character.
        end: Length of the text.
    """
    token = next((at for place in range(start, end) if (at := encoding.char_to_token(place)) is not None), None)
    if token is None:
        return len(encoding)
    return next((at for at in range(token, len(encoding)) if _begin(encoding, at) >= start), len(encoding))


def _begin(encoding: Tokens, token: int) -> int:
    chars = encoding.token_to_chars(token)
    return int(chars[0]) if chars is not None else 0  # a token that the tokenizer adds by itself has none
