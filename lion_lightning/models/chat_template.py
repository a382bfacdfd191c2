"""Rendering of conversations with a chat template, in the format that the template reads.

Templates differ in what they accept: content as text or as a list of parts, the arguments of a tool call as a mapping
or as JSON text, null or empty content next to a call, reasoning under one of three keys. Each is detected once, by
rendering a conversation of made-up words and looking for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import product, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, TemplateError, nodes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, Any]

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of an assistant's reasoning; a template reads one of them."""

MARK = "\ufdd0"
"""Marks in rendered text where ``{% generation %}`` begins or ends; Unicode reserves it as a noncharacter."""


class ChatTemplate:
    """Renders conversations with one chat template of a tokenizer.

    Args:
        tokenizer: The tokenizer, whose special tokens the template may write.
        text: The template.

    Attributes:
        tagged: True if the template marks the assistant's text with ``{% generation %}``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self._tokenizer, self.text = tokenizer, text
        self._headers: dict[str, str] = {}
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
            turns: ``role``, ``content`` as text, and any further keys.
            tools: Tool definitions.
            variables: Further variables of the template, such as ``enable_thinking``.
            prompt: Add the generation prompt.
            marked: Add :data:`MARK` where ``{% generation %}`` begins and ends.

        Raises:
            ValueError: The template cannot render these turns, or rows may not set a variable.
        """
        require_free(variables or {}, "chat_template_kwargs")
        return self._rendered([self._formatted(turn) for turn in turns], tools, variables, prompt, marked)

    def reads(self, key: str) -> bool:
        """True if the template reads a key, of messages or of anything else."""
        return _reads(self.text, key)

    @cached_property
    def answer_suffix(self) -> str:
        """Text that follows a last answer, stripped; empty if that cannot be rendered."""
        return self._suffix(_CHAT[:2])

    @cached_property
    def inner_answer_suffix(self) -> str:
        """Text between an answer and the words of the next turn, stripped."""
        return self._suffix(_CHAT[:3])

    @cached_property
    def call_suffix(self) -> str:
        """Text that follows a last tool call; empty for a template without tool calls."""
        return self._suffix(_probe(self._call_format)[:2], [_PROBE_TOOL]) if self.reads("tool_calls") else ""

    @cached_property
    def inner_call_suffix(self) -> str:
        """Text between a tool call and its result."""
        return self._suffix(_probe(self._call_format), [_PROBE_TOOL]) if self.reads("tool_calls") else ""

    def header(self, variables: Mapping[str, Any] | None = None) -> str:
        """Text with which an answer to a user turn is asked for; empty for a template without a generation prompt."""
        key = json.dumps(variables, sort_keys=True, default=str)
        if key not in self._headers:
            turns = [self._content_as_parts(turn) for turn in _CHAT[:1]]
            try:
                asked, alone = (self._rendered(turns, None, variables, prompt) for prompt in (True, False))
            except ValueError:
                asked = alone = ""
            self._headers[key] = asked[shared_length(asked, alone) :]
        return self._headers[key]

    def _suffix(self, turns: Sequence[Turn], tools: Sequence[Any] | None = None) -> str:
        """Text behind the word of an answer, up to the word of the turn behind it, if there is one."""
        text = self._rendered_or_empty([self._content_as_parts(turn) for turn in turns], tools)
        _, word, suffix = text.rpartition(_PROBE_WORDS[-1])
        return suffix.partition(_NEXT_WORD)[0].strip() if word else ""

    @cached_property
    def sought(self) -> list[str]:
        """Texts that the template looks for in others, as ``</think>``: what it writes may depend on them."""
        return list(_sought(self.text))

    # --- the format that the template reads

    def _formatted(self, turn: Turn) -> dict[str, Any]:
        own = dict(turn)
        for key in REASONING:
            if key in own and not self.reads(key):
                own[next(filter(self.reads, REASONING), key)] = own.pop(key)
                break
        if calls := own.get("tool_calls"):
            own["tool_calls"] = [_arguments_as_text(call) for call in calls] if self._call_format.as_text else calls
            if not own.pop("content"):
                return {**own, **self._call_format.content}
        return self._content_as_parts({**own, "content": turn["content"]})

    def _content_as_parts(self, turn: Turn) -> dict[str, Any]:
        parts = [{"type": "text", "text": turn["content"]}]
        return {**turn, "content": parts} if turn["content"] and self._takes_parts else dict(turn)

    @cached_property
    def _takes_parts(self) -> bool:
        """True if content is read only as a list of parts."""
        words = ("probeuser", "probeanswer")
        turns = [{"role": role, "content": word} for role, word in zip(("user", "assistant"), words, strict=True)]
        in_parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        as_text, as_parts = self._rendered_or_empty(turns), self._rendered_or_empty(in_parts)
        listed = "{'type'" in as_parts or '{"type"' in as_parts  # the list itself was printed
        return not (all(word in as_text for word in words) or listed) and all(word in as_parts for word in words)

    @cached_property
    def _call_format(self) -> _CallFormat:
        """Format of a call's arguments, and of no content next to it: the first that renders all of the call.

        Null content is tried first, as most rows have it; but some templates print it, or treat it as text.
        """
        contents: list[dict[str, Any]] = [{"content": None}, {"content": ""}, {}]
        formats = [_CallFormat(content, as_text) for as_text, content in product((False, True), contents)]
        shown = [self._rendered_or_empty(_probe(form), [_PROBE_TOOL]) for form in formats]
        usual = min((text.count("None") for text in shown if text), default=0)
        for form, text in zip(formats, shown, strict=True):
            if all(word in text for word in _PROBE_WORDS) and "{'probe" not in text and text.count("None") == usual:
                return form
        return formats[0]

    def _rendered_or_empty(self, turns: Sequence[Turn], tools: Sequence[Any] | None = None) -> str:
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
        except Exception as error:  # a template is a program, and may fail in any way
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
"""Arguments of ``apply_chat_template``."""


def require_free(names: Iterable[str], setting: str) -> None:
    """Refuse variables that are arguments of ``apply_chat_template``."""
    if taken := sorted(_TAKEN.intersection(names)):
        raise ValueError(f"{setting} sets {taken[0]!r}, which it may not set; take it out")


# --- the conversation that a template is probed with


class _CallFormat(NamedTuple):
    content: dict[str, Any]
    as_text: bool


_PROBE_WORDS = ("probetool", "probekey", "probevalue")
_NEXT_WORD = "probenext"
_CHAT: list[Turn] = [
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": _PROBE_WORDS[-1]},
    {"role": "user", "content": _NEXT_WORD},
]
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probetool",
        "description": "d",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


def _probe(form: _CallFormat) -> list[Turn]:
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "probetool", "arguments": {"probekey": "probevalue"}},
    }
    calls = [_arguments_as_text(call) if form.as_text else call]
    return [
        {"role": "user", "content": "?"},
        {"role": "assistant", **form.content, "tool_calls": calls},
        {"role": "tool", "content": _NEXT_WORD, "name": "probetool", "tool_call_id": "call00001"},
    ]


def _arguments_as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments as JSON text."""
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


# --- the text of a template


def shared_length(one: str, other: str) -> int:
    """Number of characters that two texts begin with."""
    if one.startswith(other):
        return len(other)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")


@lru_cache(maxsize=16)
def _with_marks(template: str) -> str:
    # A block, like the tag that it replaces, so that jinja trims the white space around it in the same way.
    return _TAG.sub(r"{%\1 if true %}{{ '" + MARK + r"' }}{% endif \2%}", template)


@lru_cache(maxsize=256)
def _reads(template: str, key: str) -> bool:
    """True if the template names a key after a dot or in quotes, not just anywhere in its prose."""
    return re.search(rf"(?:\.\s*|['\"]){re.escape(key)}\b", template) is not None


@lru_cache(maxsize=64)  # to parse a long template takes longer than to render it
def _sought(template: str) -> tuple[str, ...]:
    tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_with_marks(template))
    found: list[nodes.Node] = []
    for compare in tree.find_all(nodes.Compare):
        found += [compare.expr] if any(operand.op in ("in", "notin") for operand in compare.ops) else []
    for call in tree.find_all(nodes.Call):
        found += call.args if isinstance(call.node, nodes.Getattr) else []
    for filtered in tree.find_all(nodes.Filter):
        found += filtered.args
    texts = {node.value for node in found if isinstance(node, nodes.Const) and isinstance(node.value, str)}
    return tuple(sorted(text for text in texts if re.search(r"[^\w\s]", text)))
