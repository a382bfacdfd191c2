"""Answers found by the layout of their conversation, which is learned once for all conversations of the same roles.

A template writes the words of a chat's turns between its own texts. Those texts, and where the answers begin and end
in them, are learned from a conversation of stand-ins. They hold for a row if its text is, character by character, that
of the layout with the row's words in the place of the stand-ins, and if the row has no words that the template looks
for (as ``</think>``). Any other row is looked at by itself.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence

from lion_lightning.data.encoding.answer_spans import AnswerFinder, Span, pieces
from lion_lightning.data.formats.sft import Conversation
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import add_warning, collect_messages
from lion_lightning.models.chat_template import REASONING

_MAX_LAYOUTS = 1000
_STAND_IN = re.compile("\ufdd2([0-9]+)\ufdd3")  # never in a text, as Unicode guarantees


class Layout:
    """Where the words and the answers of conversations stand that have the same roles.

    Args:
        conversation: One of them.
        find: Finds the answers of a conversation.

    Attributes:
        markers: Parts of the generation prompt. It may be a row that brings them, where the template does not.

    Raises:
        ValueError: The template cannot render it, or does not write each of its words once.
    """

    def __init__(self, conversation: Conversation, find: Callable[[Conversation], AnswerFinder]) -> None:
        count, turns = 0, []
        for message in conversation.messages:
            stand_ins = [f"\ufdd2{count + number}\ufdd3" for number in range(len(_words(message)))]
            extra = dict(zip(message.extra or (), stand_ins[1:], strict=True))
            turns.append(message._replace(content=stand_ins[0], extra=extra or None))
            count += len(stand_ins)
        with collect_messages():
            self._finder = find(conversation._replace(messages=tuple(turns)))
        found = list(_STAND_IN.finditer(self._finder.text))
        self._order, self._ends = [int(match[1]) for match in found], [match.end() for match in found]
        if sorted(self._order) != list(range(count)):
            raise ValueError("the chat template does not write each turn once")
        self._between = _STAND_IN.split(self._finder.text)[::2]
        self.markers = [piece for piece in pieces(self._finder.header) if not (piece.isspace() or piece.isalpha())]
        self._spans: dict[int, tuple[list[Span], Counter[str]]] = {}

    def place(self, words: Sequence[str], text: str) -> list[int] | None:
        """Where the words of a conversation of these roles end in its text, in the text's order.

        Args:
            words: Its contents and reasoning.
            text: Its text.

        Returns:
            None if the text is another one than that of the layout with these words.
        """
        position, ends = 0, []
        for number, between in zip(self._order, self._between, strict=False):
            if not text.startswith(between, position):
                return None
            position += len(between)
            word = words[number] if text.startswith(words[number], position) else words[number].strip()
            if not text.startswith(word, position):
                return None
            position += len(word)
            ends.append(position)
        return ends if text[position:] == self._between[-1] else None

    def spans(self, turn: int, ends: Sequence[int]) -> list[Span]:
        """The answer of a turn in a text; see :meth:`AnswerFinder.spans`.

        Args:
            turn: Its index.
            ends: Where the words end in the text, see :meth:`place`.
        """
        if turn not in self._spans:
            with collect_messages() as messages:
                spans = self._finder.spans(turn)
            self._spans[turn] = spans, messages["warning"]
        spans, warnings = self._spans[turn]
        for warning in warnings.elements():
            add_warning(warning)
        return [(self._position(start, ends), self._position(end, ends)) for start, end in spans]

    def start(self, turn: int, ends: Sequence[int]) -> int:
        """Where the answer of a turn begins in a text; see :meth:`spans`."""
        with collect_messages():
            return self._position(self._finder.start(turn), ends)

    def _position(self, position: int, ends: Sequence[int]) -> int:
        """A position among the stand-ins as one among the words that end there."""
        words = bisect_right(self._ends, position)
        return position + (ends[words - 1] - self._ends[words - 1] if words else 0)


class PlacedAnswers:
    """The answers of one conversation, by its layout.

    Args:
        layout: The layout.
        text: The text of the conversation.
        ends: Where its words end in the text.
    """

    def __init__(self, layout: Layout, text: str, ends: Sequence[int]) -> None:
        self.layout, self.text, self.ends = layout, text, ends

    def spans(self, turn: int) -> list[Span]:
        """See :meth:`Layout.spans`."""
        return self.layout.spans(turn, self.ends)

    def start(self, turn: int) -> int:
        """See :meth:`Layout.start`."""
        return self.layout.start(turn, self.ends)


class Layouts:
    """Layouts that were learned under one template, by the roles of conversations.

    Args:
        find: Finds the answers of a conversation.
        sought: Words that the template looks for in a turn.
    """

    def __init__(self, find: Callable[[Conversation], AnswerFinder], sought: Sequence[str]) -> None:
        self._find, self._sought = find, sought
        self._known: dict[str, Layout | None] = {}

    def place(self, conversation: Conversation, text: str) -> PlacedAnswers | None:
        """The answers of a conversation of words and reasoning alone; None if they are not known by its layout."""
        if conversation.tools:
            return None
        words: list[str] = []
        for message in conversation.messages:
            if not all(key in REASONING and isinstance(value, str) for key, value in (message.extra or {}).items()):
                return None
            words += _words(message)
        layout = self._layout(conversation)
        if layout is None:
            return None
        for sought in (*self._sought, *layout.markers):
            if any(sought in word for word in words):  # what the template writes may depend on it
                return None
        ends = layout.place(words, text)
        return None if ends is None else PlacedAnswers(layout, text, ends)

    def _layout(self, conversation: Conversation) -> Layout | None:
        roles = [[message.role, *(message.extra or ())] for message in conversation.messages]
        key = json.dumps([roles, conversation.chat_template_kwargs], default=str)
        if key not in self._known:
            if len(self._known) == _MAX_LAYOUTS:
                self._known = {}
            try:
                self._known[key] = Layout(conversation, self._find)
            except ValueError:  # of the stand-ins; a row of these roles says by itself what is wrong with it
                self._known[key] = None
        return self._known[key]


def _words(message: Message) -> list[str]:
    """Content and reasoning of a turn."""
    return [message.content, *(message.extra or {}).values()]
