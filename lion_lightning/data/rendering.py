"""Conversations as text, and where in that text the assistant's turns stand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lion_lightning.data.formats import Conversation, Message
from lion_lightning.models.tokenizer import CHAT_TEMPLATES, end_of_turn_ids

Span = tuple[int, int]


class ChatRenderer:
    """Renders conversations through a tokenizer's chat template and finds the answers in the text.

    Answers are spans of characters in the one text of the whole conversation. They come from the template's own
    ``{% generation %}`` tags; without tags, from rendering the turns before each answer with the generation prompt,
    which is exactly what a model is given when it is to answer. A span includes the token that ends the turn, and no
    white space after it.

    Args:
        tokenizer: A tokenizer; its chat template is needed as soon as something is rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._closers = tuple(map(str, tokenizer.convert_ids_to_tokens(list(end_of_turn_ids(tokenizer)))))

    def render(self, conversation: Conversation) -> str:
        """Text of a conversation.

        Raises:
            ValueError: There is no chat template, or it cannot show the conversation.
        """
        return self._render(conversation, conversation.messages, self._template(conversation))

    def prompt(self, conversation: Conversation) -> str:
        """Text that a model is given to answer a conversation that ends before the answer.

        Raises:
            ValueError: There is no chat template, or it cannot show the conversation.
        """
        return self._render(conversation, conversation.messages, self._template(conversation), prompt=True)

    def answers(self, conversation: Conversation, first: int = 0) -> tuple[str, list[Span]]:
        """Text of a conversation, and the spans of its assistant turns.

        Args:
            conversation: The turns.
            first: Index of the message from which on assistant turns count.

        Raises:
            ValueError: There is no chat template, it cannot show the conversation, or it leaves no exact span.
        """
        template = self._template(conversation)
        text = self._render(conversation, conversation.messages, template)
        find = self._tagged_spans if _TAG.search(template) else self._prefix_spans
        spans = [(start, self._turn_end(text, start, end)) for start, end in find(conversation, template, text, first)]
        return text, [(start, end) for start, end in spans if start < end]

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

    def _prefix_spans(self, conversation: Conversation, template: str, text: str, first: int) -> Iterator[Span]:
        """Spans under a template without tags: from the end of the generation prompt to the end of the turn."""
        for i, message in enumerate(conversation.messages):
            if message.role != "assistant" or i < first:
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
        return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*openings, strict=False)))

    def _tagged_spans(self, conversation: Conversation, template: str, text: str, first: int) -> list[Span]:
        """Spans under a template with ``{% generation %}`` tags."""
        marking = _with_marks(template)
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


# --- the marks that stand for {% generation %} and {% endgeneration %} in the rendered text

_MARK = re.compile("\ufdd0")  # Unicode guarantees that this code point is never a character
_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")


@lru_cache(maxsize=16)
def _with_marks(template: str) -> str:
    return _TAG.sub(_mark, template)


def _mark(tag: re.Match[str]) -> str:
    # A block, like the tag that it replaces, so that jinja trims the white space around it in the same way.
    return "{%" + tag[1] + " if true %}{{ '\ufdd0' }}{% endif " + tag[2] + "%}"


def _marked_spans(marked: str) -> list[Span]:
    edges = [mark.start() - number for number, mark in enumerate(_MARK.finditer(marked))]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _tools(conversation: Conversation) -> list[Any] | None:
    return list(conversation.tools) if conversation.tools else None
