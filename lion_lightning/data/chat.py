"""From examples to token ids with an exact mask of what is trained.

A conversation is rendered once as a whole and tokenised once; what the assistant says is found as spans of characters in
the rendered text, and a token is trained if it begins in such a span. The spans come from the template's own
``{% generation %}`` tags, or else from rendering the turns before each answer with the generation prompt, which is
exactly what a model is given when it is to answer.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import singledispatchmethod
from typing import Any, Literal, NamedTuple

import numpy as np
from jinja2 import TemplateError
from tokenizers import Encoding, Tokenizer, processors
from transformers import PreTrainedTokenizerBase

from lion_lightning.data.formats import Completion, Conversation, Example, Message, Text
from lion_lightning.models.tokenizer import CHAT_TEMPLATES, end_of_turn_ids
from lion_lightning.types import Piece

Mask = Literal["assistant", "completion", "none"]
Span = tuple[int, int]

_VERSION = 1  # part of the fingerprint; raise it whenever the same input gives other pieces


class _Draft(NamedTuple):
    """Text to tokenise, the character spans of it to train, and whether BOS and EOS are still to be added."""

    text: str
    spans: Sequence[Span]
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
        self._closers = tuple(map(str, tokenizer.convert_ids_to_tokens(list(end_of_turn_ids(tokenizer)))))

    def encode(self, examples: Sequence[Example], where: Sequence[str]) -> list[Piece]:
        """Encode a batch, one piece an example.

        Args:
            examples: Examples of any form, mixed freely.
            where: Place of each example (``path:line``), named in errors.

        Raises:
            ValueError: An example cannot be rendered or masked exactly; the message starts with its place.
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
        return _Draft(example.text, [(0, len(example.text))], bare=True)

    @_draft.register
    def _(self, example: Completion) -> _Draft:
        text = example.prompt + example.completion
        return _Draft(text, [(0 if self.mask == "none" else len(example.prompt), len(text))], bare=True)

    @_draft.register
    def _(self, example: Conversation) -> _Draft:
        template = self._template(example)
        text = self._render(example, example.messages, template)
        if self.mask == "none":
            return _Draft(text, [(0, len(text))], bare=False)
        find = self._tagged_spans if _TAG.search(template) else self._prefix_spans
        spans = [(start, self._turn_end(text, start, end)) for start, end in find(example, template, text)]
        if not any(start < end for start, end in spans):
            raise ValueError("no assistant turn to train; give the row an answer, or set mask: none")
        return _Draft(text, [(start, end) for start, end in spans if start < end], bare=False)

    def _template(self, conversation: Conversation) -> str:
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"tokenizer {self.tokenizer.name_or_path} has no chat template; set tokenizer.chat_template: "
                f"{' | '.join(CHAT_TEMPLATES)} or a jinja file"
            )
        template = str(self.tokenizer.get_chat_template(tools=_tools(conversation)))
        called = any("tool_calls" in (message.extra or {}) for message in conversation.messages)
        for name, given in (("tools", conversation.tools), ("tool_calls", called)):
            if given and name not in template:
                raise ValueError(f"the chat template leaves out the row's {name}; set one that shows them")
        return template

    def _render(
        self, conversation: Conversation, messages: Sequence[Message], template: str, prompt: bool = False
    ) -> str:
        turns = [{**(turn.extra or {}), "role": turn.role, "content": turn.content} for turn in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tools=_tools(conversation), chat_template=template, add_generation_prompt=prompt, tokenize=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"the chat template cannot render the row: {reason}") from error
        return str(text)

    # --- spans of the assistant's turns

    def _first_trained(self, conversation: Conversation) -> int:
        if self.mask == "assistant":
            return 0
        if conversation.prompt_turns is not None:
            return conversation.prompt_turns
        return max((i for i, turn in enumerate(conversation.messages) if turn.role == "assistant"), default=0)

    def _prefix_spans(self, conversation: Conversation, template: str, text: str) -> Iterator[Span]:
        """Spans under a template without tags: from the end of the generation prompt to the end of the turn."""
        for i, message in enumerate(conversation.messages):
            if message.role != "assistant" or i < self._first_trained(conversation):
                continue
            prompt = self._prompt(conversation, template, i)
            turn = self._render(conversation, conversation.messages[: i + 1], template)
            if not (text.startswith(prompt) and text.startswith(turn)):
                raise ValueError(
                    f"the chat template renders the turns up to message {i} differently when more turns follow, so its "
                    "answer cannot be told apart; use a template with {% generation %} tags, e.g. "
                    "tokenizer.chat_template: chatml"
                )
            yield len(prompt), len(turn)

    def _prompt(self, conversation: Conversation, template: str, turn: int) -> str:
        if turn:
            return self._render(conversation, conversation.messages[:turn], template, prompt=True)
        # Templates rarely render an empty list as they render a prompt. The header of an answer that opens the
        # conversation is what two such answers share.
        openings = [self._render(conversation, [Message("assistant", word)], template) for word in ("a", "b")]
        return os.path.commonprefix(openings)

    def _tagged_spans(self, conversation: Conversation, template: str, text: str) -> list[Span]:
        """Spans under a template with ``{% generation %}`` tags."""
        marking = _TAG.sub(_mark, template)
        first = self._first_trained(conversation)
        before = self._render(conversation, conversation.messages[:first], marking) if first else ""
        marked = self._render(conversation, conversation.messages, marking)
        if _MARK.sub("", marked) != text:
            raise ValueError("the chat template alters what it renders inside {% generation %}; move the tags outwards")
        return _marked_spans(marked)[len(_marked_spans(before)) :]

    def _turn_end(self, text: str, start: int, end: int) -> int:
        """Put the end of a turn right behind the token that closes it."""
        turn = text[start:end].rstrip()
        if turn.endswith(self._closers):
            return start + len(turn)
        # Tags that leave this token out would train a model that never stops.
        return end + next((len(closer) for closer in self._closers if text.startswith(closer, end)), 0)

    # --- from characters to tokens

    def _encodable(self, draft: _Draft) -> _Draft:
        try:
            draft.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode ({error.reason}); mend the row's escapes") from None
        return draft

    def _piece(self, draft: _Draft, encoding: Encoding, where: str, boundaries: list[_Boundary]) -> Piece:
        ids, starts = encoding.ids, np.array([start for start, _ in encoding.offsets], dtype=np.int64)
        supervised = np.zeros(len(ids), dtype=np.bool_)
        for start, end in draft.spans:
            inside = (starts >= start) & (starts < end)
            first = int(inside.argmax()) if inside.any() else len(ids)
            boundaries.append(self._boundary(draft.text, ids, starts, first, start, where))
            supervised |= inside
        if draft.bare:
            ids, supervised = self._closed(ids, supervised)
        return Piece(np.array(ids, dtype=np.int32), supervised)

    def _boundary(
        self, text: str, ids: list[int], starts: np.ndarray[Any, Any], first: int, start: int, where: str
    ) -> _Boundary:
        # An added token cuts the text in two before it is tokenised, so nothing before the last one matters.
        anchor = next((i for i in range(first - 1, 0, -1) if ids[i] in self._added), 0)
        return _Boundary(text[int(starts[anchor]) if anchor else 0 : start], ids[anchor:first], where)

    def _check(self, boundaries: Sequence[_Boundary]) -> None:
        """Make sure that a model that is given the prompt alone sees the tokens that it was trained on."""
        texts = list({boundary.text for boundary in boundaries})
        alone = dict(zip(texts, self._backend.encode_batch(texts, add_special_tokens=False), strict=True))
        for boundary in boundaries:
            if alone[boundary.text].ids != boundary.ids:
                raise ValueError(
                    f"{boundary.where}: the answer's first characters merge into one token with the end of its prompt "
                    f"({boundary.text[-20:]!r}), so the prompt's tokens are no prefix of the row's; strip the white "
                    "space around the prompt's end and the answer's start (with a `transform`), or set mask: none"
                )

    def _closed(self, ids: list[int], supervised: np.ndarray[Any, Any]) -> tuple[list[int], np.ndarray[Any, Any]]:
        """Add BOS and EOS where the text does not hold them yet."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ValueError(
                f"tokenizer {self.tokenizer.name_or_path} has no EOS token to end the text with; set tokenizer.eos_token"
            )
        before = [] if ids[: len(self._bos)] == self._bos else self._bos
        after = [] if ids[-1:] == [eos] else [eos]
        whole = bool(supervised.all())
        return [*before, *ids, *after], np.concatenate([[whole] * len(before), supervised, [True] * len(after)]).astype(bool)


# --- the marks that stand for {% generation %} and {% endgeneration %} in the rendered text

_MARK = re.compile("\ufdd0")  # Unicode guarantees that this code point is never a character
_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")


def _mark(tag: re.Match[str]) -> str:
    # A block, like the tag that it replaces, so that jinja trims the white space around it in the same way.
    return "{%" + tag[1] + " if true %}{{ '\ufdd0' }}{% endif " + tag[2] + "%}"


def _marked_spans(marked: str) -> list[Span]:
    edges = [mark.start() - number for number, mark in enumerate(_MARK.finditer(marked))]
    return list(zip(edges[::2], edges[1::2], strict=True))


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


def _tools(conversation: Conversation) -> list[Any] | None:
    return list(conversation.tools) if conversation.tools else None


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put the row's place before a complaint about it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
