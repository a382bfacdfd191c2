"""A chat template: turns in, text out, each thing that turns say in the spelling that the template reads.

Templates differ in what they take: content as text or as a list of parts, the arguments of a call as a mapping or as
JSON text, null or empty text beside a call, thoughts under one of three names. Each is found out once, by rendering a
turn of made-up words and looking for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, TemplateError, nodes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, Any]

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of one thing: what an assistant thought before it answered. A template reads one of them."""

MARK = "\ufdd0"
"""Stands in marked text where ``{% generation %}`` begins or ends; Unicode guarantees that it is never a character."""


class ChatTemplate:
    """Renders turns with one chat template of a tokenizer.

    Args:
        tokenizer: Whose special tokens the template may write.
        text: The template.

    Attributes:
        tagged: Whether ``{% generation %}`` says what the assistant wrote.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self._tokenizer, self.text = tokenizer, text
        self.tagged = bool(_TAG.search(text))

    def render(
        self,
        turns: Sequence[Turn],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        prompt: bool = False,
        marked: bool = False,
    ) -> str:
        """Text of a conversation.

        Args:
            turns: ``role``, ``content`` as text, and whatever else a turn says.
            tools: Tool definitions.
            variables: More that the template may read, such as ``enable_thinking``.
            prompt: Whether the generation prompt follows.
            marked: Whether :data:`MARK` stands where ``{% generation %}`` begins and ends.

        Raises:
            ValueError: The template cannot show these turns, or a variable is not for rows to set; the message says
                why.
        """
        if taken := sorted(_TAKEN & (variables or {}).keys()):
            raise ValueError(f"chat_template_kwargs sets {taken[0]!r}, which is decided elsewhere; take it out")
        return self._rendered([self._spelled(turn) for turn in turns], tools, variables, prompt, marked)

    def reads(self, key: str) -> bool:
        """Whether the template reads a key of messages, or of something else."""
        return _reads(self.text, key)

    @cached_property
    def behind_words(self) -> str:
        """What is written behind the words of a last answer, without the spaces around it; empty if that fails."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE_WORDS[-1]}]
        return self._behind([self._parts(turn) for turn in turns])

    @cached_property
    def behind_calls(self) -> str:
        """The same of a tool call; empty for a template that shows none."""
        return self._behind(_probe(self._beside_calls)[:2], [_PROBE_TOOL]) if self.reads("tool_calls") else ""

    def _behind(self, turns: Sequence[Turn], tools: Sequence[Any] | None = None) -> str:
        _, word, behind = self._tried(turns, tools).rpartition(_PROBE_WORDS[-1])
        return behind.strip() if word else ""

    @cached_property
    def text_is_written(self) -> bool:
        """Whether text inside of ``{% generation %}`` goes to the output as it is, so that marks change nothing else.

        Not so in a macro, a filter or an assignment, which may cut or measure what they hold.
        """
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_with_marks(self.text))
        holders = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)
        return not any(MARK in _constants(holder) for kind in holders for holder in tree.find_all(kind))

    # --- how the template wants things spelled

    def _spelled(self, turn: Turn) -> dict[str, Any]:
        own = dict(turn)
        for key in REASONING:
            if key in own and not self.reads(key):
                own[next(filter(self.reads, REASONING), key)] = own.pop(key)
                break
        if calls := own.get("tool_calls"):
            own["tool_calls"] = [_with_text(call) for call in calls] if self._beside_calls.as_text else calls
            if not own.pop("content"):
                return {**own, **self._beside_calls.content}
        return self._parts({**own, "content": turn["content"]})

    def _parts(self, turn: Turn) -> dict[str, Any]:
        parts = [{"type": "text", "text": turn["content"]}]
        return {**turn, "content": parts} if turn["content"] and self._takes_parts else dict(turn)

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether content is read as a list of parts only."""
        words = ("probeuser", "probeanswer")
        turns = [{"role": role, "content": word} for role, word in zip(("user", "assistant"), words, strict=True)]
        as_text = self._tried(turns)
        as_parts = self._tried([{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns])
        listed = "{'type'" in as_parts or '{"type"' in as_parts  # the list itself is written out, not what it says
        return not (all(word in as_text for word in words) or listed) and all(word in as_parts for word in words)

    @cached_property
    def _beside_calls(self) -> _Spelling:
        """What stands for no content beside a call, and how arguments are given: the first that shows all of the call.

        Null comes first, as rows have it mostly; but some templates write it out, or take it for a text.
        """
        contents: list[dict[str, Any]] = [{"content": None}, {"content": ""}, {}]
        spellings = [_Spelling(content, as_text) for as_text in (False, True) for content in contents]
        shown = [self._tried(_probe(spelling), [_PROBE_TOOL]) for spelling in spellings]
        usual = min((text.count("None") for text in shown if text), default=0)
        for spelling, text in zip(spellings, shown, strict=True):
            if all(word in text for word in _PROBE_WORDS) and "{'probe" not in text and text.count("None") == usual:
                return spelling
        return spellings[0]

    def _tried(self, turns: Sequence[Turn], tools: Sequence[Any] | None = None) -> str:
        try:
            return self._rendered(turns, tools)
        except ValueError:
            return ""

    def _rendered(
        self,
        turns: Sequence[Turn],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        prompt: bool = False,
        marked: bool = False,
    ) -> str:
        said: list[Any] = list(turns)
        try:
            text = self._tokenizer.apply_chat_template(
                said,
                tools=list(tools) if tools else None,
                chat_template=_with_marks(self.text) if marked else self.text,
                add_generation_prompt=prompt,
                tokenize=False,
                **(variables or {}),
            )
        except Exception as error:  # a template is a program of somebody's, and may fail in any way
            raise ValueError(f"the chat template cannot render the row: {self._cause(error)}") from error
        return str(text)

    def _cause(self, error: Exception) -> str:
        reason = " ".join(str(error).split()) or type(error).__name__
        if (token := re.search(r"'(\w+_token)' is undefined", reason)) is None:
            return reason if isinstance(error, TemplateError | ValueError) else f"{type(error).__name__}: {reason}"
        fix = "set tokenizer.eos_token" if token[1] == "eos_token" else "use another tokenizer.chat_template"
        return f"it writes {token[1]}, which tokenizer {self._tokenizer.name_or_path} does not have; {fix}"


# fmt: off
_TAKEN = frozenset((
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs",
    "tools", "truncation",
))
# fmt: on
"""What ``apply_chat_template`` takes for itself."""

# --- what a template is tried with


class _Spelling(NamedTuple):
    content: dict[str, Any]
    as_text: bool


_PROBE_WORDS = ("probetool", "probekey", "probevalue")
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probetool",
        "description": "d",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


def _probe(spelling: _Spelling) -> list[Turn]:
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "probetool", "arguments": {"probekey": "probevalue"}},
    }
    calls = [_with_text(call) if spelling.as_text else call]
    return [
        {"role": "user", "content": "?"},
        {"role": "assistant", **spelling.content, "tool_calls": calls},
        {"role": "tool", "content": "!", "name": "probetool", "tool_call_id": "call00001"},
    ]


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments as JSON text."""
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


# --- the text of a template

_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")


@lru_cache(maxsize=16)
def _with_marks(template: str) -> str:
    return _TAG.sub(_mark, template)


def _mark(tag: re.Match[str]) -> str:
    # A block, like the tag that it replaces, so that jinja trims the white space around it in the same way.
    return "{%" + tag[1] + f" if true %}}{{{{ '{MARK}' }}}}{{% endif " + tag[2] + "%}"


@lru_cache(maxsize=256)
def _reads(template: str, key: str) -> bool:
    """Whether a template names a key behind a dot or in quotes: prose in it that happens to hold the word is no use."""
    return re.search(rf"(?:\.\s*|['\"]){re.escape(key)}\b", template) is not None


def _constants(node: nodes.Node) -> str:
    return "".join(str(constant.value) for constant in node.find_all(nodes.Const))
