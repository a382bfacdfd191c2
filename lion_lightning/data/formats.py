"""The row formats that training data comes in, and how a raw row is recognised as one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Generic, NamedTuple, TypeVar

from lion_lightning.data.tool_calls import read_tools as read_tools
from lion_lightning.data.turns import Message as Message
from lion_lightning.data.turns import read_text as read_text
from lion_lightning.data.turns import read_turns as read_turns


class Conversation(NamedTuple):
    """Turns that a chat template renders.

    Attributes:
        messages: The turns, in order.
        prompt_turns: How many leading messages are prompt when only the completion is trained; None for all that stand
            before the last assistant message.
        tools: Tool definitions (JSON schemas) handed to the chat template, or None.
        chat_template_kwargs: More that is handed to it (``{"enable_thinking": False}``), or None.
    """

    messages: tuple[Message, ...]
    prompt_turns: int | None = None
    tools: tuple[Any, ...] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Completion(NamedTuple):
    """Plain text in two parts, without a chat template: under a mask only the completion is trained."""

    prompt: str
    completion: str


class Text(NamedTuple):
    """Plain text, all of it trained."""

    text: str


Example = Conversation | Completion | Text
Row = Mapping[str, Any]
Parse = TypeVar("Parse")


class Form(NamedTuple, Generic[Parse]):
    """A known form.

    Attributes:
        required: The columns that a row of this form has.
        optional: The columns that it may have besides; ``columns`` can name these too.
        parse: The function that reads such a row.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    parse: Parse


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
    parse, named = select(row, columns or {}, FORMS)
    return parse(named)


def select(row: Row, columns: Mapping[str, str], forms: Sequence[Form[Parse]]) -> tuple[Parse, dict[str, Any]]:
    """Find the form of a row: how to parse it, and the row under the names that the form knows, without nulls.

    Args:
        row: The raw row.
        columns: The row's own name for a known column.
        forms: Known forms; of several that fit, the one that uses most of ``columns``, then the first, is taken.

    Raises:
        ValueError: No form fits, or ``columns`` names something that does not exist.
    """
    named = _rename(row, columns, {column for form in forms for column in form.required + form.optional})
    fitting = [form for form in forms if named.keys() >= set(form.required)]
    if not fitting:
        raise ValueError(_unknown_format(row, named, forms))
    form = max(fitting, key=lambda form: len(columns.keys() & {*form.required, *form.optional}))
    return form.parse, named


def _rename(row: Row, columns: Mapping[str, str], known: Set[str]) -> dict[str, Any]:
    if unknown := sorted(columns.keys() - known):
        raise ValueError(f"columns names the unknown column {unknown[0]!r}; known are {', '.join(sorted(known))}")
    for name, own in columns.items():
        if own not in row:
            raise ValueError(f"columns maps {name} to {own!r}, but the row only has the keys {', '.join(row)}")
    renamed = {name: row[own] for name, own in columns.items()}
    rest = {key: value for key, value in row.items() if key not in columns.values()}
    return {key: value for key, value in (rest | renamed).items() if value is not None}


def _unknown_format(row: Row, named: Row, forms: Sequence[Form[Any]]) -> str:
    keys = ", ".join(f"{key} (null)" if value is None else str(key) for key, value in row.items()) or "none"
    nearest = max(forms, key=lambda form: len(named.keys() & set(form.required)))
    lacking = ", ".join(name for name in nearest.required if name not in named)
    near = f"; {' + '.join(nearest.required)} lacks {lacking}" if named.keys() & set(nearest.required) else ""
    known = "; ".join(" + ".join(form.required) for form in forms)
    fix = "rename keys with `columns` or give a `transform`"
    return f"unknown format: the row's keys are {keys}; known: {known}{near}; {fix}"


# --- one small function a form


def _messages(row: Row) -> Example:
    return conversation(read_turns(row["messages"], "messages"), tools=read_tools(row))


def _sharegpt(row: Row) -> Example:
    return conversation(read_system(row) + read_turns(row["conversations"], "conversations"), tools=read_tools(row))


def _alpaca(row: Row) -> Example:
    request = read_text(row["instruction"], "instruction")
    detail = read_text(row.get("input", ""), "input", may_be_empty=True)
    return _exchange(row, f"{request}\n\n{detail}" if detail.strip() else request, read_text(row["output"], "output"))


def _question_answer(row: Row) -> Example:
    return _exchange(row, read_text(row["question"], "question"), read_text(row["answer"], "answer"))


def _prompt_completion(row: Row) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(read_text(prompt, "prompt", may_be_empty=True), read_text(completion, "completion"))
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError("prompt and completion differ in kind; make both of them text or both lists of messages")
    turns = read_turns(prompt, "prompt")
    return conversation(turns + read_turns(completion, "completion"), prompt_turns=len(turns), tools=read_tools(row))


def _raw_text(row: Row) -> Example:
    return Text(read_text(row["text"], "text"))


FORMS: tuple[Form[Callable[[Row], Example]], ...] = (
    Form(("messages",), ("tools",), _messages),
    Form(("conversations",), ("system", "tools"), _sharegpt),
    Form(("instruction", "output"), ("input", "system"), _alpaca),
    Form(("prompt", "completion"), ("tools",), _prompt_completion),
    Form(("question", "answer"), ("system",), _question_answer),
    Form(("text",), (), _raw_text),
)


# --- turns

_FOLLOWERS = {
    "": {"system", "user", "assistant"},
    "system": {"user", "assistant"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}


def conversation(
    messages: tuple[Message, ...], prompt_turns: int | None = None, tools: tuple[Any, ...] | None = None
) -> Conversation:
    """Make a conversation of messages whose roles come in order.

    Raises:
        ValueError: They do not, or no assistant turn stands behind the prompt.
    """
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
    return conversation((*read_system(row), Message("user", question), Message("assistant", answer)))


def read_system(row: Row) -> tuple[Message, ...]:
    """The row's ``system`` column as a turn; none where it is empty or absent."""
    content = read_text(row.get("system", ""), "system", may_be_empty=True)
    return (Message("system", content),) if content else ()
