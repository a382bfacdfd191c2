"""Conversations as text, and where in that text the assistant's turns stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lion_lightning.data.encoding.answer_spans import LAST_ONLY, AnswerFinder, Span, TaggedAnswers, reasoning_span
from lion_lightning.data.encoding.layouts import Layouts
from lion_lightning.data.encoding.template_check import missing_function, missing_of_answer, missing_turn
from lion_lightning.data.formats.message_keys import unread_keys
from lion_lightning.data.formats.sft import Conversation
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import add_warning
from lion_lightning.models.chat_template import MARK, REASONING, ChatTemplate
from lion_lightning.models.tokenizer import CHAT_TEMPLATES, closing_tokens, ends_turns

NO_END = (
    "an answer ends in no token that generation stops at, so a model does not learn to stop: use a "
    "tokenizer.chat_template that ends a turn with EOS or an added token, or add its marker to tokenizer.special_tokens"
)


class AnswerText(NamedTuple):
    """One assistant turn in the text of its conversation.

    Attributes:
        message: Its index among the messages.
        spans: Its characters, with the token that ends it.
        reasoning: The part of them that is reasoning, marks included; None without reasoning.
    """

    message: int
    spans: list[Span]
    reasoning: Span | None


class Rendered(NamedTuple):
    """The text of a conversation.

    Attributes:
        text: All of it.
        answers: The answers to train, in order.
        start: Where the first answer that counts begins, trained or not.
    """

    text: str
    answers: list[AnswerText]
    start: int


class ChatRenderer:
    """Renders conversations through a tokenizer's chat template and finds the answers in the text.

    Answers are spans of characters in the text of the conversation. An answer begins where the generation
    prompt ends, which is exactly what a model is given when it is to answer. The template's own ``{% generation %}``
    tags say what else is part of it, but nothing of the generation prompt is. A span includes the token that ends the
    turn, and no white space after it.

    Args:
        tokenizer: A tokenizer; its chat template is needed as soon as something is rendered.
        needs_reasoning: Whether a template may not leave out the reasoning of an answer, as many do in earlier turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, needs_reasoning: bool = True) -> None:
        self.tokenizer, self.needs_reasoning = tokenizer, needs_reasoning
        self._closers, self._ends_turns = closing_tokens(tokenizer), ends_turns(tokenizer)
        self._closing = re.compile(rf"\s*({'|'.join(map(re.escape, self._closers))})")
        self._templates: dict[str, ChatTemplate] = {}
        self._learned: dict[str, Layouts] = {}

    def render(self, conversation: Conversation) -> str:
        """Text of a conversation.

        Raises:
            ValueError: The tokenizer has no chat template, or one that cannot show the conversation.
        """
        self._warn_of_settings(conversation)
        text = self._complete(conversation, self._render(conversation, conversation.messages))
        for turn, message in enumerate(conversation.messages):
            if message.role == "assistant" and (missing := missing_of_answer(message, text)):
                raise ValueError(_left_out(f"{missing} of message {turn}"))
        if not self._ends_turns:
            add_warning(NO_END)
        return text

    def prompt(self, conversation: Conversation) -> str:
        """Text that a model is given to answer a conversation that ends before the answer.

        Raises:
            ValueError: The tokenizer has no chat template, or one that cannot show the conversation.
        """
        self._warn_of_settings(conversation)
        text = self._complete(conversation, self._render(conversation, conversation.messages, prompt=True))
        if not self._ends_turns:
            add_warning(NO_END)
        return text

    def answers(self, conversation: Conversation, first: int = 0) -> Rendered:
        """Text of a conversation, and the spans of its assistant turns.

        Args:
            conversation: The turns.
            first: Index of the message from which on assistant turns count.

        Raises:
            ValueError: The tokenizer has no chat template, or one that cannot show the conversation or leaves no exact
                span, or no assistant turn counts.
        """
        messages = conversation.messages
        turns = [turn for turn in range(first, len(messages)) if messages[turn].role == "assistant"]
        if not turns:
            raise ValueError("no assistant turn to train; give the row an answer, or set mask: none")
        text = self._render(conversation, messages)
        self._warn_of_settings(conversation)
        template = self._template(conversation)
        layouts = self._learned.setdefault(template.text, Layouts(self._finder, template.sought))
        finder = layouts.place(conversation, text) or self._finder(conversation, text)
        found = {turn: finder.spans(turn) for turn in turns if messages[turn].weight}
        for turn, spans in found.items():
            answer = "\n".join(text[start:end] for start, end in spans)
            if missing := missing_of_answer(messages[turn], answer, self.needs_reasoning):
                is_last = turn == len(messages) - 1
                last = "" if is_last else self._render(conversation, messages[: turn + 1])
                raise ValueError(_left_out(f"{missing} of message {turn}", not missing_of_answer(messages[turn], last)))
            spans[0] = _behind_prefilled(messages[turn], finder.text, *spans[0])
            spans[-1] = self._closed(text, *spans[-1])
        answers = []
        for turn, spans in found.items():
            if kept := [span for span in spans if span[0] < span[1]]:
                answers.append(AnswerText(turn, kept, reasoning_span(messages[turn], text, kept)))
        # The prompt ends where the first turn behind it starts, trained or not.
        start = answers[0].spans[0][0] if answers else len(text)
        if conversation.prompt_turns is not None and turns[0] not in found:
            start = finder.start(turns[0])
        return Rendered(text, answers, start)

    def _finder(self, conversation: Conversation, text: str | None = None) -> AnswerFinder:
        """Finder of the answers in the text of the conversation, by default rendered here."""
        render, messages = partial(self._render, conversation), conversation.messages
        text = self._complete(conversation, text or render(messages))
        template = self._template(conversation)
        header = template.header(conversation.chat_template_kwargs)
        if not template.tagged:
            return AnswerFinder(conversation, render, text, self._closers, header)
        marked = render(messages, marked=True)
        if marked.replace(MARK, "") != text:
            raise ValueError("the chat template alters what it renders inside {% generation %}; move the tags outwards")
        return TaggedAnswers(conversation, render, text, self._closers, header, _marked_spans(marked))

    def _template(self, conversation: Conversation) -> ChatTemplate:
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"tokenizer {self.tokenizer.name_or_path} has no chat template; set tokenizer.chat_template: "
                f"{' | '.join(CHAT_TEMPLATES)} or a jinja file"
            )
        text = str(self.tokenizer.get_chat_template(tools=list(conversation.tools) if conversation.tools else None))
        if text not in self._templates:
            self._templates[text] = ChatTemplate(self.tokenizer, text)
        return self._templates[text]

    def _render(self, conversation: Conversation, messages: Sequence[Message], **how: bool) -> str:
        template, turns = self._template(conversation), [turn.to_dict() for turn in messages]
        if conversation.tools and not re.search(r"\btools\b", template.text):
            raise ValueError(_left_out("tools"))
        if not template.reads("tool_calls") and any("tool_calls" in turn for turn in turns):
            raise ValueError(_left_out("tool_calls"))
        return template.render(turns, conversation.tools, conversation.chat_template_kwargs, **how)

    def _complete(self, conversation: Conversation, text: str) -> str:
        """Refuse a text that does not show all of the conversation."""
        unread_keys(conversation.messages, self._template(conversation).reads)
        missing = missing_turn(conversation.messages, text) or (
            missing_function(conversation.messages, conversation.tools, text)
        )
        if missing:
            raise ValueError(_left_out(missing))
        return text

    def _warn_of_settings(self, conversation: Conversation) -> None:
        text = self._template(conversation).text
        for name in conversation.chat_template_kwargs or ():
            if not re.search(rf"\b{re.escape(name)}\b", text):
                add_warning(f"not used: {name!r} of chat_template_kwargs, which the chat template does not read")

    def _closed(self, text: str, start: int, end: int) -> Span:
        """An answer up to the token that closes it, or else up to its last word."""
        turn = text[start:end].rstrip()
        if not turn.endswith(self._closers):
            # Tags that leave this token out would train a model that never stops.
            if self._closers and (behind := self._closing.match(text, end)):
                return start, behind.end()
            add_warning(NO_END)
            return start, start + len(turn)
        closer = next(closer for closer in self._closers if turn.endswith(closer))
        before = turn.removesuffix(closer)
        if before != before.rstrip() and before.rstrip().endswith(self._closers):
            turn = before.rstrip()  # EOS behind all turns: generation stops before it
        return start, start + len(turn)


def _behind_prefilled(message: Message, text: str, start: int, end: int) -> Span:
    """An answer without its beginning that was given, which the template has to write first and as it stands."""
    given = message.content[: message.prefilled].lstrip()
    found = text.find(given, start, end)
    if found < 0 or text[start:found].strip():
        raise ValueError(
            f"the chat template does not begin the answer with its prefilled part ({given[:40]!r}), so a model that "
            "goes on from there would see another text; take it out of the row (with a `transform`)"
        )
    return (found + len(given), end) if given else (start, end)


def _marked_spans(marked: str) -> list[Span]:
    edges = [mark.start() - number for number, mark in enumerate(re.finditer(MARK, marked))]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _left_out(what: str, shown_last: bool = False) -> str:
    """Error about something that is not in the text; some templates show it in the last turn only."""
    fix = "use a tokenizer.chat_template that shows it, or take it out of the row (with a `transform`)"
    if what.startswith(REASONING):
        fix = (
            "write it into the text of the answer with `transform: lion_lightning.data.transforms.reasoning_in_text`, "
            "use a tokenizer.chat_template that shows it, or set train_reasoning: false"
        )
    return f"the chat template leaves out the row's {what}; {LAST_ONLY if shown_last else fix}"
