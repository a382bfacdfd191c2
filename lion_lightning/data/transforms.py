"""Transforms of raw rows that come with the package, for a source's ``transform``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lion_lightning.data.formats.turns import context, is_answer
from lion_lightning.data.sources.json_text import parse_messages
from lion_lightning.models.chat_template import REASONING

_TURNS = ("messages", "conversations", "prompt", "completion", "response", "chosen", "rejected")


def each_answer(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each answer of a conversation, which ends with it; the answers before it are context.

    For templates that show all of an answer only in the last turn, as those that drop earlier reasoning. Each
    answer is then trained behind exactly what a model is given when it writes it, at the price of more tokens.

    Args:
        row: With ``messages``, or ShareGPT's ``conversations``; any other row stays as it is.
    """
    column, turns = next(((name, turns) for name in _TURNS[:2] if (turns := _turns(row, name))), ("", []))
    if not column:
        yield row
    for number, turn in enumerate(turns):
        if is_answer(turn):
            before = [context(other) if is_answer(other) else other for other in turns[:number]]
            yield {**row, column: [*before, turn]}


def reasoning_in_text(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose answers have their reasoning in their text, between ``<think>`` and ``</think>``.

    For templates that read no separate reasoning (``reasoning_content``, ``reasoning`` or ``thinking``), and so
    leave it out.

    Args:
        row: With lists of messages in any of its columns, or ``answers`` that are messages or lists of them.
    """
    made = {**row, **{name: list(map(_with_reasoning, turns)) for name in _TURNS if (turns := _turns(row, name))}}
    if isinstance(answers := row.get("answers"), list):
        made["answers"] = list(map(_answer_with_reasoning, answers))
    return made


def without_language_instructions(row: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
    """A row of IFEval or of TÜLU 3's RLVR data, or none where it names the instruction on the answer's language.

    That one takes a model to check, so :class:`~lion_lightning.judges.verifiers.Instructions` refuses it.

    Args:
        row: With ``instruction_id_list`` or ``ground_truth``; any other row stays as it is.
    """
    named = f"{row.get('instruction_id_list')} {row.get('ground_truth')}"
    return [] if "language:response_language" in named or "validate_response_language" in named else row


def _answer_with_reasoning(answer: Any) -> Any:
    if isinstance(answer, Mapping):
        return _with_reasoning(answer)
    return list(map(_with_reasoning, turns)) if (turns := _turns({"answer": answer}, "answer")) else answer


def _with_reasoning(turn: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in turn.items() if key not in REASONING}
    reasoning = next((turn[key] for key in REASONING if turn.get(key)), None)
    if not (is_answer(turn) and isinstance(reasoning, str)):
        return dict(turn)
    name = "value" if rest.get("content") is None and "value" in rest else "content"
    return {**rest, name: f"<think>\n{reasoning.strip()}\n</think>\n\n{rest.get(name) or ''}"}


def _turns(row: Mapping[str, Any], column: str) -> list[Any]:
    """The messages of a column; none where it holds anything else."""
    turns = parse_messages(row.get(column), column)
    return turns if isinstance(turns, list) and all(isinstance(turn, Mapping) for turn in turns) else []
