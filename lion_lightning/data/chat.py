"""From examples to token ids with an exact mask of what is trained.

The whole text of an example is tokenised once; a token is trained if it begins in a span of characters that is to be
trained. That a model which is given the prompt alone sees the same tokens is checked, not assumed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import singledispatchmethod
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer, processors
from transformers import PreTrainedTokenizerBase

from lion_lightning.data.answer_spans import Span
from lion_lightning.data.columns import Row
from lion_lightning.data.formats import Completion, Conversation, Example, Text, recognise
from lion_lightning.data.rendering import ChatRenderer
from lion_lightning.data.row_notes import warn_of_row
from lion_lightning.types import Piece

Mask = Literal["assistant", "completion", "none"]

_VERSION = 2  # part of the fingerprint; raise it whenever the same input gives other pieces


class _Draft(NamedTuple):
    """Text to tokenise.

    Attributes:
        text: All of it.
        spans: The characters to train.
        start: Where the answer begins.
        bare: Whether BOS and EOS are still to be added: no chat template has written the text.
    """

    text: str
    spans: Sequence[Span]
    start: int
    bare: bool


class _Boundary(NamedTuple):
    """Tokens found before a trained span, and the text that must give the same tokens when it stands alone."""

    text: str
    ids: list[int]
    where: str


class ChatEncoder:
    """Tokenises examples and marks the tokens to train.

    Conversations go through the chat template, which alone decides about BOS and end-of-turn tokens. A completion or a
    text has no template: it gets BOS if the tokenizer puts one, and EOS. The token that ends an assistant turn is
    trained, white space that the template puts after it is not. A text is trained whole under every mask.

    Args:
        tokenizer: A fast tokenizer, with a chat template where conversations are to be encoded.
        mask: ``assistant`` trains every assistant turn, ``completion`` the assistant turns after the prompt,
            ``none`` masks nothing: every token is trained.

    Raises:
        ValueError: The tokenizer is not a fast one, or the mask is unknown.

    The encoder can be pickled and used by several threads at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask: Mask = "assistant") -> None:
        if mask not in ("assistant", "completion", "none"):
            raise ValueError(f"mask: {mask!r} is unknown; choose assistant, completion or none")
        self.tokenizer = tokenizer
        self.mask = mask
        self._backend = _backend(tokenizer)
        self._added = frozenset(self._backend.get_added_tokens_decoder())
        self._bos = _leading_ids(tokenizer)
        self._renderer = ChatRenderer(tokenizer)

    def encode(self, examples: Sequence[Example], where: Sequence[str]) -> list[Piece]:
        """Encode a batch, one piece an example.

        Args:
            examples: Examples of any form, mixed freely.
            where: Place of each example (``path:line``), named in errors.

        Raises:
            ValueError: An example cannot be rendered or masked exactly; the message starts with its place.
        """
        return [piece for piece, _ in self.encode_answers(examples, where)]

    def encode_answers(self, examples: Sequence[Example], where: Sequence[str]) -> list[tuple[Piece, int]]:
        """Encode a batch, and count the tokens that stand before each example's answer.

        Args:
            examples: See :meth:`encode`.
            where: See :meth:`encode`.

        Raises:
            ValueError: See :meth:`encode`.
        """
        drafts = []
        for example, place in zip(examples, where, strict=True):
            with _naming(place):
                drafts.append(self._encodable(self._draft(example)))
        encodings = self._backend.encode_batch([draft.text for draft in drafts], add_special_tokens=False)
        boundaries: list[_Boundary] = []
        pieces = []
        for draft, encoding, place in zip(drafts, encodings, where, strict=True):
            with _naming(place):
                pieces.append(self._piece(draft, encoding, place, boundaries))
        self._check(boundaries)
        return pieces

    def prompt(self, prompt: Conversation | Completion) -> tuple[str, list[int]]:
        """Text and tokens that a model is given to answer a prompt: the tokens that stand before a trained answer.

        Args:
            prompt: A conversation that ends before the answer, or an empty completion.

        Raises:
            ValueError: The prompt cannot be rendered.
        """
        bare = isinstance(prompt, Completion)
        text = prompt.prompt if isinstance(prompt, Completion) else self._renderer.prompt(prompt)
        ids = self._backend.encode(self._encodable(_Draft(text, (), 0, bare)).text, add_special_tokens=False).ids
        self._warn_of_bos(bare, ids)
        return text, [*self._bos, *ids] if bare and ids[: len(self._bos)] != self._bos else ids

    def read(self, row: Row, columns: Mapping[str, str]) -> list[Example]:
        """The example that a raw row holds; see :func:`~lion_lightning.data.formats.recognise`."""
        return [recognise(row, columns)]

    def pieces(self, examples: Sequence[Example], where: Sequence[str]) -> list[tuple[Piece]]:
        """What :meth:`encode` gives, as the pieces of a sample each: one."""
        return [(piece,) for piece in self.encode(examples, where)]

    def fingerprint(self) -> str:
        """Hash of everything that decides what :meth:`encode` returns; a key for caches."""
        parts = {
            "version": _VERSION,
            "mask": self.mask,
            "backend": self._backend.to_str(),
            "bos": self._bos,
            "chat_template": self.tokenizer.chat_template,
            "special_tokens": {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    # --- what to tokenise, and which characters to train

    @singledispatchmethod
    def _draft(self, example: Any) -> _Draft:
        raise TypeError(f"{type(example).__name__} is no known form")

    @_draft.register
    def _(self, example: Text) -> _Draft:
        return _Draft(example.text, [(0, len(example.text))], 0, bare=True)

    @_draft.register
    def _(self, example: Completion) -> _Draft:
        text = example.prompt + example.completion
        start = 0 if self.mask == "none" else len(example.prompt)
        return _Draft(text, [(start, len(text))], start, bare=True)

    @_draft.register
    def _(self, example: Conversation) -> _Draft:
        if self.mask == "none":
            if not all(turn.trained for turn in example.messages):
                raise ValueError("the row says that a turn is not trained, and mask: none trains all of it")
            text = self._renderer.render(example)
            return _Draft(text, [(0, len(text))], 0, bare=False)
        rendered = self._renderer.answers(example, self._first_trained(example))
        return _Draft(*rendered, bare=False)

    def _first_trained(self, conversation: Conversation) -> int:
        if self.mask == "assistant":
            return 0
        if conversation.prompt_turns is not None:
            return conversation.prompt_turns
        return max((i for i, turn in enumerate(conversation.messages) if turn.role == "assistant"), default=0)

    # --- from characters to tokens

    def _encodable(self, draft: _Draft) -> _Draft:
        """Catch half characters here: the tokenizer refuses the batch without naming the row."""
        try:
            draft.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode ({error.reason}); mend the row's escapes") from None
        return draft

    def _piece(self, draft: _Draft, encoding: Encoding, where: str, boundaries: list[_Boundary]) -> tuple[Piece, int]:
        ids = encoding.ids
        supervised = np.zeros(len(ids), dtype=np.bool_)
        firsts = {start: _first_token(encoding, start, len(draft.text)) for start in (draft.start, *_starts(draft))}
        for start, end in draft.spans:
            supervised[firsts[start] : _first_token(encoding, end, len(draft.text))] = True
        for start, first in firsts.items():
            boundaries.append(self._boundary(draft.text, encoding, ids[:first], start, where))
        before = firsts[draft.start]
        if draft.bare:
            ids, supervised, added = self._closed(ids, supervised)
            before += added
        self._warn_of_bos(draft.bare, ids)
        return Piece(np.array(ids, dtype=np.int32), supervised), before

    def _boundary(self, text: str, encoding: Encoding, before: list[int], start: int, where: str) -> _Boundary:
        # An added token cuts the text in two before it is tokenised, so nothing before the last one matters.
        anchor = next((i for i in range(len(before) - 1, 0, -1) if before[i] in self._added), 0)
        return _Boundary(text[_begin(encoding, anchor) if anchor else 0 : start], before[anchor:], where)

    def _check(self, boundaries: Sequence[_Boundary]) -> None:
        """Make sure that a model that is given the prompt alone sees the tokens that it was trained on."""
        texts = list({boundary.text for boundary in boundaries})
        alone = dict(zip(texts, self._backend.encode_batch(texts, add_special_tokens=False), strict=True))
        for boundary in boundaries:
            if alone[boundary.text].ids != boundary.ids:
                raise ValueError(
                    f"{boundary.where}: the end of the prompt ({boundary.text[-20:]!r}) gives other tokens before the "
                    "answer than alone, so a model would be asked with tokens it was not trained on; strip the white "
                    "space where they meet (with a `transform`), choose another chat template, or set mask: none"
                )

    def _warn_of_bos(self, bare: bool, ids: Sequence[int]) -> None:
        if not bare and ids[: len(self._bos)] != self._bos:
            warn_of_row(
                f"the tokenizer starts texts with {self.tokenizer.bos_token} and the chat template does not write it: "
                "use a tokenizer.chat_template that begins with bos_token, as configs/recipes/chatml_with_bos.jinja"
            )

    def _closed(self, ids: list[int], supervised: npt.NDArray[Any]) -> tuple[list[int], npt.NDArray[Any], int]:
        """Add BOS and EOS where the text does not hold them yet, and count what comes before it."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ValueError(
                f"tokenizer {self.tokenizer.name_or_path} has no EOS token to end a text with; set tokenizer.eos_token"
            )
        before = [] if ids[: len(self._bos)] == self._bos else self._bos
        after = [] if ids[-1:] == [eos] else [eos]
        whole = np.full(len(before), supervised.all())
        return [*before, *ids, *after], np.concatenate([whole, supervised, np.full(len(after), True)]), len(before)


# --- which tokens lie where. Offsets are asked for one by one: as a list they cost more than rendering does.


def _starts(draft: _Draft) -> list[int]:
    return [start for start, _ in draft.spans]


def _begin(encoding: Encoding, token: int) -> int:
    place = encoding.token_to_chars(token)
    return int(place[0]) if place is not None else 0  # a token that the tokenizer adds by itself has none


def _first_token(encoding: Encoding, start: int, end: int) -> int:
    """Number of the first token that begins at a character or after it; characters may have no token, or several."""
    token = next((at for place in range(start, end) if (at := encoding.char_to_token(place)) is not None), None)
    if token is None:
        return len(encoding.ids)
    return next((at for at in range(token, len(encoding.ids)) if _begin(encoding, at) >= start), len(encoding.ids))


# --- the tokenizer


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy with whole offsets: the post-processor adds special tokens and cuts white space off the offsets."""
    if not isinstance(backend := getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise ValueError(f"tokenizer {tokenizer.name_or_path} is not a fast tokenizer; masks need one with offsets")
    own = copy.deepcopy(backend)
    own.post_processor = processors.Sequence([])
    own.no_truncation()
    own.no_padding()
    return own


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """``[bos]`` if the tokenizer puts BOS before a text, else nothing."""
    return [token for token in tokenizer.encode("")[:1] if token == tokenizer.bos_token_id]


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put the row's place before a complaint about it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
