"""Start and end of each answer in the text of a conversation, under any chat template.

An answer begins where the generation prompt ends: there, and only there, a model starts to write. Mostly the turns
before an answer, rendered with the generation prompt, are what all of the text begins with; and so are the turns up to
the answer. But some templates render earlier turns differently when more turns follow: tools before the last user
turn, EOS behind the last turn, reasoning in the last turn only. Then a turn is found by what becomes of the text when
its words are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from typing_extensions import override

from lion_lightning.data.formats.sft import Conversation
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import add_warning
from lion_lightning.models.chat_template import REASONING, shared_length

Span = tuple[int, int]
Render = Callable[..., str]
"""From messages, and ``prompt=True`` for the generation prompt behind them, to text."""


LAST_ONLY = (
    "in the last turn of a conversation it is otherwise: set mask: last_turn, or make a row of each answer "
    "with `transform: lion_lightning.data.transforms.each_answer`"
)
"""Fix for a template that renders the last answer correctly, but not earlier ones."""

OTHER_HEADER = (
    "the model would be asked with what it was not trained on; set tokenizer.template_kwargs (as enable_thinking: "
    "false), or give the answers what it goes on with"
)
"""Fix for a template that asks for an answer otherwise than it renders it."""


class AnswerFinder:
    """Finds the answers in the text of one conversation.

    Args:
        conversation: The turns.
        render: Renders messages as the text was rendered.
        text: The text of all turns.
        closers: Tokens that end an answer.
        header: What the template writes before an answer that it asks for behind a user turn.
    """

    def __init__(
        self, conversation: Conversation, render: Render, text: str, closers: Sequence[str], header: str
    ) -> None:
        self.messages, self.render, self.text = conversation.messages, render, text
        self.closers, self.header = closers, header

    def spans(self, turn: int) -> list[Span]:
        """The answer of a turn, with what the template writes behind it.

        Raises:
            ValueError: It does not stand behind the generation prompt, or its end is not clear.
        """
        start = self.start(turn)
        if turn == len(self.messages) - 1:
            return [(start, len(self.text))]
        until = self.render(self.messages[: turn + 1])
        if self.text.startswith(until):
            return [(start, len(until))]
        return self._ended_by_words(turn, start, until)

    def start(self, turn: int) -> int:
        """Where the answer of a turn begins: behind the generation prompt.

        Raises:
            ValueError: It does not stand there.
        """
        if turn == 0:  # templates rarely render a prompt of no turns
            word = self._first_word(0)
            at = self._header_between(0, word)
            return word if at < 0 else at + _shared_pieces(self.header, self.text[at:])
        prompt = self.render(self.messages[:turn], prompt=True)
        start = len(prompt) if self.text.startswith(prompt) else self._start_behind_words(turn, prompt)
        if not self.header or prompt.endswith(self.header) or not self.text.startswith(self.header, start):
            return start
        add_warning(
            f"the chat template writes {self.header!r} before an answer to a tool's result, and does not ask with it "
            "there, so that a model that is asked has to write what it was not trained on; set a "
            "tokenizer.chat_template that asks with it"
        )
        return start + len(self.header)

    def _header_between(self, start: int, word: int) -> int:
        """Where the template's header begins before the first word of an answer; -1 if it does not."""
        return self.text.rfind(pieces(self.header)[0], start, word) if self.header else -1

    def _start_behind_words(self, turn: int, prompt: str) -> int:
        """The start, found by the words before it: behind as much of the generation prompt as stands behind them."""
        others = self._without_words(turn - 1)
        asked, other_text = self.render(others[:turn], prompt=True), self.render(others)
        if prompt == asked or self.text == other_text:
            raise ValueError(f"the chat template leaves out message {turn - 1}, so that the answer to it is not found")
        header, word = prompt[len(prompt) - _shared_end(prompt, asked) :], self._first_word(turn)
        position = len(self.text) - _shared_end(self.text, other_text)
        shared = shared_length(header, self.text[position:])
        if (at := self._header_between(position + shared, word)) >= 0:
            # The turn before is closed by something else than where it is the last.
            header, position, shared = self.header, at, shared_length(self.header, self.text[at:])
        if shared < len(header):
            if position + shared != word:  # else the shared characters end where a marker does
                shared = _shared_pieces(header, self.text[position:])
            last_agrees = turn < len(self.messages) - 1 and self.render(self.messages[: turn + 1]).startswith(prompt)
            add_warning(
                f"the generation prompt of the chat template goes on with {header[shared:]!r}, which the chat template "
                f"does not write before the answer: {LAST_ONLY if last_agrees else OTHER_HEADER}"
            )
        return position + shared

    def _first_word(self, turn: int) -> int:
        """Where the words of a turn begin."""
        return shared_length(self.text, self.render(self._without_words(turn)))

    def _ended_by_words(self, turn: int, start: int, until: str) -> list[Span]:
        """An answer whose end is found by its words: what follows them in the last turn, as far as it does here."""
        others = self._without_words(turn)
        short, other_text = self.render(others[: turn + 1]), self.render(others)
        if until == short or self.text == other_text:
            raise ValueError(f"the chat template leaves out the words of message {turn}")
        closing = until[len(until) - _shared_end(until, short) :]
        position = len(self.text) - _shared_end(self.text, other_text)
        shared = closing[: shared_length(closing, self.text[position : position + len(closing)])]
        end = position + len(shared)
        if shared != closing:
            # Two markers may begin alike, as <|end|> and <|user|> do: the answer ends before one that was cut in two.
            borders = [border.end() for border in re.finditer(r"[\s>\])}]", shared)]
            borders += [shared.rfind(closer) + len(closer) for closer in self.closers if closer in shared]
            end = position + max(borders, default=0)
        if end == position:  # it ends in another token than the last turn does, as with <|end|> and <|return|>
            end += next((len(closer) for closer in self.closers if self.text.startswith(closer, end)), 0)
        if self._first_word(turn + 1) >= end:
            return [(start, end)]
        return self._around_results(turn, start, until, (position, end))

    def _around_results(self, turn: int, start: int, until: str, last: Span) -> list[Span]:
        """An answer in two parts, the call and its text, with what the tools gave between them.

        Args:
            turn: Index of the answer.
            start: Its first character.
            until: The text up to the answer, without results.
            last: Where its text ends, without and with what closes it.
        """
        call = start + _shared_pieces(until[start:], self.text[start:])
        words = self.messages[turn].content.strip()
        text = last[0] - len(words)
        if words and self.text[:start] == until[:start] and self.text.startswith(words, text) and call < text:
            return [(start, call), (text, last[1])]
        raise ValueError(
            f"the chat template writes words of message {turn + 1} into the answer (message {turn}), so it cannot "
            "be told apart; use another tokenizer.chat_template"
        )

    def _without_words(self, turn: int) -> list[Message]:
        """The conversation with other words in one turn of the same structure."""
        message = self.messages[turn]
        extra: dict[str, Any] = dict(message.extra or {})
        for key in REASONING:
            if key in extra:
                extra[key] = _STAND_IN
        calls = extra.get("tool_calls")
        if calls:
            # The name stays: some templates write it once more, before the result.
            other = {"arguments": {_STAND_IN: _STAND_IN}}
            extra["tool_calls"] = [{**call, "function": {**call["function"], **other}} for call in calls]
        content = _STAND_IN if message.content or not calls else ""
        messages = list(self.messages)
        messages[turn] = message._replace(content=content, extra=extra or None)
        return messages


class TaggedAnswers(AnswerFinder):
    """Finds the answers under a template whose ``{% generation %}`` tags say what the assistant wrote.

    The tags are checked against the generation prompt. A part of it inside of them does not belong to the answer;
    where they begin behind it, words that a model has to write would not be trained.

    Args:
        conversation: The turns.
        render: Renders messages as the text was rendered.
        text: The text of all turns.
        closers: Tokens that end an answer.
        header: See :class:`AnswerFinder`.
        tagged: What stands between tags, in order.
    """

    def __init__(
        self,
        conversation: Conversation,
        render: Render,
        text: str,
        closers: Sequence[str],
        header: str,
        tagged: Sequence[Span],
    ) -> None:
        super().__init__(conversation, render, text, closers, header)
        self.tagged = tagged

    @override
    def spans(self, turn: int) -> list[Span]:
        """The answer of a turn: what tags hold of it, which may also be around turns of other roles, or end late."""
        parts = super().spans(turn)
        start, stop = parts[0][0], parts[-1][1]
        found: list[Span] = []
        for first, end in self.tagged:
            if found and first == found[-1][1]:
                found[-1] = (found[-1][0], min(end, stop))
            elif start < end and first < stop:
                found.append((max(first, start), min(end, stop)))
        if not found:
            raise ValueError(f"the {{% generation %}} tags of the chat template leave out the answer (message {turn})")
        if start < found[0][0]:
            untagged = self.text[start : found[0][0]]
            raise ValueError(
                f"the {{% generation %}} tag of the chat template begins behind {untagged[:40]!r}, which a model has "
                f"to write in its answer (message {turn}) and would not learn to; move the tag"
            )
        return found


def reasoning_span(message: Message, text: str, spans: Sequence[Span]) -> Span | None:
    """The reasoning of an answer, from the answer's start to the mark behind the reasoning, as ``</think>``.

    Args:
        message: The turn; its reasoning is a separate key, or stands before ``</think>`` in its text.
        text: All of the text.
        spans: The answer.

    Returns:
        None if the turn has no reasoning, or the text does not show it.
    """
    extra = message.extra or {}
    words = next((extra[key] for key in REASONING if extra.get(key)), "")
    if not words and "</think>" in message.content:
        words = message.content.partition("</think>")[0].rpartition("<think>")[2]
    start, end = spans[0][0], spans[-1][1]
    if not words.strip() or (at := text.find(words.strip(), start, end)) < 0:
        return None
    mark = _MARK_BEHIND.match(text, at + len(words.strip()), end)
    return start, mark.end() if mark else at + len(words.strip())


_MARK_BEHIND = re.compile(r"\s*(?:<[^<>]*>|\[[^\[\]]*\])\s*")

_STAND_IN = "\ufdd1"
"""Never a character, as Unicode guarantees: it differs from whatever it stands for, at both ends."""


def pieces(text: str) -> list[str]:
    """A text, cut into markers (``<...>``), words and white space."""
    return _PIECE.findall(text)


_PIECE = re.compile(r"<[^<>\s]*>|\s+|[^\s<]+|<")


def _shared_pieces(header: str, there: str) -> int:
    """Number of characters of the markers, words and spaces that two texts begin with."""
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(pieces(header), pieces(there), strict=False))
    return sum(len(piece) for piece, _ in shared)


def _shared_end(one: str, other: str) -> int:
    """Number of characters that two texts end with."""
    return shared_length(one[::-1], other[::-1])
