"""The row formats that training data comes in, and how a raw row is recognised as one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Message(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: Its text; empty only for a system or tool turn, or an assistant turn that does nothing but call tools.
        extra: Every other key of the row's message (``tool_calls``, ``name``, ...), for the chat template to use.
    """

    role: str
    content: str
    extra: dict[str, Any] | None = None


class Conversation(NamedTuple):
    """Turns that a chat template renders.

    Attributes:
        messages: The turns, in order.
        prompt_turns: How many leading messages are prompt when only the completion is trained; None for all that stand
            before the last assistant message.
        tools: Tool definitions (JSON schemas) handed to the chat template, or None.
    """

    messages: tuple[Message, ...]
    prompt_turns: int | None = None
    tools: tuple[Any, ...] | None = None


class Completion(NamedTuple):
    """Plain text in two parts, without a chat template: under a mask only the completion is trained."""

    prompt: str
    completion: str


class Text(NamedTuple):
    """Plain text, all of it trained."""

    text: str


Example = Conversation | Completion | Text
Row = Mapping[str, Any]


class Form(NamedTuple):
    """A known form.

    Attributes:
        required: The columns that a row of this form has.
        optional: The columns that it may have besides; ``columns`` can name these too.
        parse: Makes an example of such a row.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    parse: Callable[[Row], Example]


def recognise(row: Row, columns: Mapping[str, str] | None = None) -> Example:
    """Turn a raw row into the form that it is written in.

    Forms are told apart by the keys of the row (a key whose value is null counts as absent): ``messages``, ShareGPT
    ``conversations``, Alpaca ``instruction``/``input``/``output``, ``prompt``/``completion`` (both text, or both lists
    of messages), ``question``/``answer``, ``text``. Of several that fit, the one that uses most of ``columns`` is
    taken, then the first in that order. Keys that the form does not know are ignored. A ``system`` column beside
    ``conversations``, ``instruction`` or ``question`` becomes the system turn.

    An assistant turn may open a conversation: conversations cut out of longer ones, as ShareGPT's are, often start so.

    Args:
        row: The raw row, keys to values.
        columns: The row's own name for a known column, e.g. ``{"prompt": "question", "completion": "answer"}``.

    Raises:
        ValueError: The row has no known form, or breaks the rules of its form. The message is one line without the
            row's place; the caller puts ``path:line`` before it.
    """
    columns = columns or {}
    named = _rename(row, columns)
    fitting = [form for form in FORMS if named.keys() >= set(form.required)]
    if not fitting:
        raise ValueError(_unknown_format(row))
    return max(fitting, key=lambda form: len(columns.keys() & {*form.required, *form.optional})).parse(named)


def _rename(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    if unknown := sorted(columns.keys() - _KNOWN_COLUMNS):
        raise ValueError(
            f"columns names the unknown column {unknown[0]!r}; known are {', '.join(sorted(_KNOWN_COLUMNS))}"
        )
    for known, own in columns.items():
        if own not in row:
            raise ValueError(f"columns maps {known} to {own!r}, but the row only has the keys {', '.join(row)}")
    renamed = {known: row[own] for known, own in columns.items()}
    rest = {key: value for key, value in row.items() if key not in columns.values()}
    return {key: value for key, value in (rest | renamed).items() if value is not None}


def _unknown_format(row: Row) -> str:
    keys = ", ".join(f"{key} (null)" if value is None else str(key) for key, value in row.items()) or "none"
    forms = "; ".join(" + ".join(form.required) for form in FORMS)
    return (
        f"unknown format: the row's keys are {keys}; known: {forms}; rename keys with `columns` or give a `transform`"
    )


# --- one small function a form


def _messages(row: Row) -> Example:
    return _conversation(_turns(row["messages"], "messages"), tools=_tools(row))


def _sharegpt(row: Row) -> Example:
    return _conversation(_system(row) + _turns(row["conversations"], "conversations"), tools=_tools(row))


def _alpaca(row: Row) -> Example:
    request = _text(row["instruction"], "instruction")
    detail = _text(row.get("input", ""), "input", may_be_empty=True)
    return _exchange(row, f"{request}\n\n{detail}" if detail.strip() else request, _text(row["output"], "output"))


def _question_answer(row: Row) -> Example:
    return _exchange(row, _text(row["question"], "question"), _text(row["answer"], "answer"))


def _prompt_completion(row: Row) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(_text(prompt, "prompt", may_be_empty=True), _text(completion, "completion"))
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError("prompt and completion differ in kind; make both of them text or both lists of messages")
    turns = _turns(prompt, "prompt")
    return _conversation(turns + _turns(completion, "completion"), prompt_turns=len(turns), tools=_tools(row))


def _raw_text(row: Row) -> Example:
    return Text(_text(row["text"], "text"))


FORMS = (
    Form(("messages",), ("tools",), _messages),
    Form(("conversations",), ("system", "tools"), _sharegpt),
    Form(("instruction", "output"), ("input", "system"), _alpaca),
    Form(("prompt", "completion"), ("tools",), _prompt_completion),
    Form(("question", "answer"), ("system",), _question_answer),
    Form(("text",), (), _raw_text),
)
_KNOWN_COLUMNS = {column for form in FORMS for column in form.required + form.optional}


# --- turns

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}

_FOLLOWERS = {
    "": {"system", "user", "assistant"},
    "system": {"user", "assistant"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}


def _conversation(
    messages: tuple[Message, ...], prompt_turns: int | None = None, tools: tuple[Any, ...] | None = None
) -> Conversation:
    """Check the order of the roles."""
    before = ""
    for number, message in enumerate(messages):
        if message.role not in _FOLLOWERS[before]:
            place = f"after {before}" if before else "and first"
            raise ValueError(
                f"roles out of order: message {number} is {message.role} {place}; a system turn may come first, then "
                "user and assistant alternate, tool turns follow assistant turns; mend the row with a `transform`"
            )
        before = message.role
    if not any(message.role == "assistant" for message in messages[prompt_turns or 0 :]):
        raise ValueError("no assistant turn to learn from; remove the row or give it an answer")
    return Conversation(messages, prompt_turns, tools)


def _exchange(row: Row, question: str, answer: str) -> Conversation:
    return _conversation((*_system(row), Message("user", question), Message("assistant", answer)))


def _system(row: Row) -> tuple[Message, ...]:
    content = _text(row.get("system", ""), "system", may_be_empty=True)
    return (Message("system", content),) if content else ()


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} is {type(value).__name__}, not a list of messages")
    if not value:
        raise ValueError(f"{name} is empty; remove the row or give it messages")
    return tuple(_message(turn, f"{name}[{number}]") for number, turn in enumerate(value))


def _message(turn: Any, name: str) -> Message:
    """Read ``{role, content}`` and ShareGPT's ``{from, value}`` alike: sets of either kind hold both."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"{name} is {type(turn).__name__}, not an object with role and content")
    own = {key: value for key, value in turn.items() if value is not None}
    spoken = own.pop("role", own.pop("from", None))
    role = _ROLES.get(spoken) if isinstance(spoken, str) else None
    if role is None:
        raise ValueError(f"{name} has the role {spoken!r}; known roles are {', '.join(_ROLES)}")
    content = own.pop("content", own.pop("value", "" if "tool_calls" in own else None))
    silent = role in ("system", "tool") or "tool_calls" in own
    return Message(role, _text(_joined(content, name), f"{name} ({role})", may_be_empty=silent), own or None)


def _joined(content: Any, name: str) -> Any:
    """Join OpenAI's list of text parts, with nothing between them; leave anything else as it is."""
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{name} has a content part of the kind {kind!r}; only text parts can be trained on")
    return "".join(part["text"] for part in content)


def _text(value: Any, name: str, may_be_empty: bool = False) -> str:
    if value is None:
        raise ValueError(f"{name} has no content; remove the row or fill it in")
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not text; convert it with a `transform`")
    if not (may_be_empty or value.strip()):
        raise ValueError(f"{name} is empty; remove the row or fill it in")
    return value


def _tools(row: Row) -> tuple[Any, ...] | None:
    """Read tool definitions, a list or (as Arrow tables need it) its JSON text."""
    tools = row.get("tools") or None
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except json.JSONDecodeError as error:
        raise ValueError(f"tools is not valid JSON ({error}); give a list of JSON schemas") from None
    if tools is not None and not isinstance(tools, Sequence):
        raise ValueError(f"tools is {type(tools).__name__}, not a list of JSON schemas")
    return tuple(tools) if tools else None
