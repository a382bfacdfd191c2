"""Situations that conversations come in, and what becomes of each under a chat template.

    python -m tests.unit.data.encoding.template_table    # the table of all public templates

An outcome is ``exact``; ``cannot render``, where the template fails or leaves something out and the error says so;
``refused``, another error with its cause; or what is wrong with the mask.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.rendering import AnswerText, ChatRenderer, _marked_spans
from lion_lightning.data.formats.sft import Conversation, recognize
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.models.chat_template import shared_length

try:
    import trl

    FOLDER = Path(trl.__file__).parent / "chat_templates"
except ImportError:
    FOLDER = Path("no trl")
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
TWINS = sorted(path.stem for path in FOLDER.glob("*_training.jinja"))

# --- rows


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(value: str, number: int = 1) -> dict[str, Any]:
    function = {"name": "addtool", "arguments": {"alpha": value}}
    return {"id": f"abc12345{number}", "type": "function", "function": function}


def result(text: str, number: int = 1) -> dict[str, Any]:
    return {"role": "tool", "content": text, "name": "addtool", "tool_call_id": f"abc12345{number}"}


PARAMETERS = {"type": "object", "properties": {"alpha": {"type": "string", "description": "x"}}, "required": ["alpha"]}
TOOLS = [{"type": "function", "function": {"name": "addtool", "description": "adds", "parameters": PARAMETERS}}]
SYSTEM = {"role": "system", "content": "Bebrief."}
ASK, MORE, LAST = user("Hithere"), user("Andyou"), user("Thirdask")
ONE, TWO, THREE = answer("Answerone."), answer("Answertwo."), answer("Answerthree.")
CALLING = answer(None, tool_calls=[call("onevalue")])

FIVE: dict[str, dict[str, Any]] = {
    "single": {"messages": [ASK, ONE]},
    "several turns": {"messages": [ASK, ONE, MORE, TWO]},
    "system": {"messages": [SYSTEM, ASK, ONE, MORE, TWO]},
    "tools": {"messages": [ASK, CALLING, result("Resultone"), ONE], "tools": TOOLS},
    "reasoning": {"messages": [ASK, ONE, MORE, answer("Answertwo.", reasoning_content="Thinktwo")]},
}
"""The five kinds of conversation."""

NINETEEN: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [ASK, ONE]},
    "three turns": {"messages": [ASK, ONE, MORE, TWO, LAST, THREE]},
    "system, one turn": {"messages": [SYSTEM, ASK, ONE]},
    "system, two turns": {"messages": [SYSTEM, ASK, ONE, MORE, TWO]},
    "developer role": {"messages": [{**SYSTEM, "role": "developer"}, ASK, ONE]},
    "first answer is context": {"messages": [ASK, {**ONE, "weight": 0}, MORE, TWO]},
    "answer opens": {"messages": [ONE, MORE, TWO]},
    "ends with a question": {"messages": [ASK, ONE, MORE]},
    "white space, unicode": {"messages": [user(" Hithere\n"), answer("\n Änswer  öne 🦁.\n"), MORE, answer("Zwei. ")]},
    "answer repeats question": {"messages": [user("Samewords"), answer("Samewords"), MORE, answer("Andyou")]},
    "question fakes an answer": {"messages": [user("{header}Answerone.{end}"), ONE, MORE, TWO]},
    "call is the last turn": {"messages": [ASK, CALLING], "tools": TOOLS},
    "call, result, answer": {"messages": [ASK, CALLING, result("Resultone"), ONE], "tools": TOOLS},
    "text beside a call": {
        "messages": [ASK, {**CALLING, "content": "Letmesee."}, result("Resultone"), ONE],
        "tools": TOOLS,
    },
    "two calls, two results": {
        "messages": [
            ASK,
            answer(None, tool_calls=[call("onevalue"), call("twovalue", 2)]),
            result("Resultone"),
            result("Resulttwo", 2),
            ONE,
        ],
        "tools": TOOLS,
    },
    "calls in two turns": {
        "messages": [
            ASK,
            CALLING,
            result("Resultone"),
            ONE,
            MORE,
            answer(None, tool_calls=[call("twovalue", 2)]),
            result("Resulttwo", 2),
            TWO,
        ],
        "tools": TOOLS,
    },
    "reasoning in both turns": {
        "messages": [
            ASK,
            answer("Answerone.", reasoning_content="Thinkone"),
            MORE,
            answer("Answertwo.", reasoning_content="Thinktwo"),
        ]
    },
    "reasoning in the text": {"messages": [ASK, answer("<think>\nThinkone\n</think>\n\nAnswerone.")]},
    "reasoning before a call": {
        "messages": [
            ASK,
            answer(None, reasoning_content="Thinkone", tool_calls=[call("onevalue")]),
            result("Resultone"),
            answer("Answerone.", reasoning_content="Thinktwo"),
        ],
        "tools": TOOLS,
    },
}
"""Nineteen situations."""

# --- a tokenizer for each template


@cache
def tokenizer(name: str, text: str | None = None) -> PreTrainedTokenizerFast:
    """A token a byte, one for two line breaks, as usual, and one for each marker of the template."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "\u010a\u010a"]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocabulary, [("\u010a", "\u010a")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")  # type: ignore[no-untyped-call]
    made.chat_template = text or (FOLDER / f"{name}.jinja").read_text("utf-8")
    markers = re.findall(
        "<[|\uff5c][^<>\\s'\"{}]+>|<\\w+\\|>|<(?:start|end)_of_\\w+>|</?think>|</?tool_call>", made.chat_template
    )
    made.add_tokens(sorted(set(markers)), special_tokens=True)
    return made


# --- outcomes


def outcome(name: str, row: dict[str, Any]) -> str:
    """What becomes of a row under a template: see the module."""
    made = tokenizer(name)
    talk = recognize(filled(made, row))
    assert isinstance(talk, Conversation)
    with collect_messages():
        try:
            ChatEncoder(made).encode([talk], ["x:1"])
            text, answers, _ = ChatRenderer(made).answers(talk)
        except ValueError as error:
            cause = str(error).removeprefix("x:1: ")
            shown = re.match("the chat template (cannot render|leaves out)", cause)
            return f"{'cannot render' if shown else 'refused'}: {cause}"
        wrong = [f"answer {found.message}: {fault}" for found in answers for fault in faults(made, talk, text, found)]
    expected = [turn for turn, message in enumerate(talk.messages) if message.role == "assistant" and message.weight]
    if [found.message for found in answers] != expected:
        wrong.append("answers are missing")
    return "; ".join(wrong) or "exact"


def filled(made: PreTrainedTokenizerFast, row: dict[str, Any]) -> dict[str, Any]:
    """The row with the template's own header and end of an answer where it asks for them."""
    if not any("{header}" in str(turn["content"]) for turn in row["messages"]):
        return row
    text, (found,), _ = ChatRenderer(made).answers(Conversation((Message("user", "Q"), Message("assistant", "A"))))
    words = {
        "header": text[: found.spans[0][0]].rpartition("Q")[2],
        "end": text[slice(*found.spans[-1])].rpartition("A")[2],
    }
    turns = [{**turn, "content": turn["content"] and turn["content"].format(**words)} for turn in row["messages"]]
    return {**row, "messages": turns}


def faults(made: PreTrainedTokenizerFast, talk: Conversation, text: str, found: AnswerText) -> Iterator[str]:
    """What is wrong with the span of an answer, found out without the way in which it was found."""
    shown = "".join(text[slice(*span)] for span in found.spans)
    own = words_of(talk.messages[found.message])
    yield from (f"lost {word!r}" for word in own if word not in shown)
    rest = [message for turn, message in enumerate(talk.messages) if turn != found.message]
    others = [word for message in rest for word in words_of(message)]
    yield from (f"foreign {word!r}" for word in others if word not in own and "<" not in word and word in shown)
    renderer, start, header = ChatRenderer(made), found.spans[0][0], ""
    if found.message:
        before = talk._replace(messages=talk.messages[: found.message])
        asked, without = (renderer._render(before, before.messages, prompt=prompt) for prompt in (True, False))
        shared = next((i for i, (a, b) in enumerate(zip(asked, without, strict=False)) if a != b), len(without))
        header = asked[shared:].lstrip()
        if text.startswith(asked) and start != len(asked) and header:
            yield f"does not begin behind the generation prompt but at {text[start : start + 20]!r}"
        if header and not any(text[:start].endswith(header[:n]) for n in range(1, len(header) + 1)):
            yield f"stands behind {text[:start][-20:]!r}, and not behind {header!r}"
        if header and shown.startswith(header[: max(3, len(header) // 2)]):
            yield f"begins with the generation prompt: {shown[:20]!r}"
    last = found.spans[-1][1]
    behind = made.encode(text[last:].strip(), add_special_tokens=False)[:1]
    is_closed = made.encode(text[:last], add_special_tokens=False)[-1] in made.added_tokens_decoder
    is_marker = bool(behind) and behind[0] in made.added_tokens_decoder
    if is_marker and not is_closed and not header.startswith(str(made.decode(behind))):
        yield f"ends in {shown[-20:]!r}, before {text[last : last + 20]!r}"


def words_of(message: Message) -> list[str]:
    extra = message.extra or {}
    words = [part for part in re.split(r"</?think>|\s+", message.content) if part]
    words += [extra["reasoning_content"]] if "reasoning_content" in extra else []
    for made in extra.get("tool_calls", ()):
        words += ["addtool", *made["function"]["arguments"].values()]
    return words


# --- what the tags of a twin say


def agreement(twin: str, row: dict[str, Any]) -> tuple[int, list[str]]:
    """Tokens of a row under a twin without its tags, and those on which its tags and the spans do not agree.

    Tags may take in the generation prompt, and white space behind the token that ends the turn; neither is a target.
    """
    tagged = tokenizer(twin)
    plain = tokenizer(
        f"{twin} without tags", re.sub(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}", _no_tag, template_text(twin))
    )
    talk = recognize(row)
    assert isinstance(talk, Conversation)
    renderer = ChatRenderer(plain)
    with collect_messages():
        try:
            text, answers, _ = renderer.answers(talk)
        except ValueError:
            return 0, []
        marked = ChatRenderer(tagged)._render(talk, talk.messages, marked=True)
    found = {place for answer in answers for start, end in answer.spans for place in range(start, end)}
    inside = set[int]()
    for start, end in _marked_spans(marked):
        inside.update(range(start, end))
    for turn, message in enumerate(talk.messages):
        if message.role == "assistant":
            inside -= asked_before(renderer, talk, turn, text)
    encoded = plain(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    differ = [(start, end) for start, end in encoded if (start in inside) != (start in found)]
    return len(encoded), [text[a:b] for a, b in _joined(differ) if (a in found) or text[a:b].strip()]


def asked_before(renderer: ChatRenderer, talk: Conversation, turn: int, text: str) -> set[int]:
    """Characters of the generation prompt before an answer, as far as the text has them."""
    before = talk._replace(messages=talk.messages[:turn] if turn else (Message("user", "?"),))
    asked, without = (renderer._render(before, before.messages, prompt=prompt) for prompt in (True, False))
    if turn and text.startswith(asked):
        return set(range(len(without.rstrip()), len(asked)))
    header = asked[shared_length(asked, without) :]
    markers = re.findall(r"<[^<>\s]+>|\s+|[^\s<]+", header)
    behind = 0  # the words of the turns before, one after the other
    for word in (word for message in talk.messages[:turn] for word in words_of(message)):
        behind = max(behind, text.find(word, behind) + len(word))
    opening = text.rfind(markers[0], 0, text.find(words_of(talk.messages[0])[0])) if markers else 0
    at = end = text.find(markers[0], behind) if markers and turn else opening
    for marker in markers:
        more = text[end + len(marker) : end + len(marker) + 1]
        if not text.startswith(marker, end) or (marker.isspace() and more.isspace()):
            break
        end += len(marker)
    return set(range(at, end))


def _joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in parts:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def template_text(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text("utf-8")


def _no_tag(tag: re.Match[str]) -> str:
    return "{%" + tag[1] + (" endif " if tag[2] else " if true ") + tag[3] + "%}"


def main() -> None:
    """Print the tables, and each outcome that is not exact with its cause."""
    for situations in (FIVE, NINETEEN):
        causes: Counter[str] = Counter()
        for situation, row in situations.items():
            kinds: Counter[str] = Counter()
            for name in TEMPLATES:
                found = outcome(name, row)
                kind = found.partition(":")[0] if found.startswith(("exact", "cannot", "refused")) else "WRONG"
                kinds[kind] += 1
                if kind != "exact" and "-v" in sys.argv:
                    print(f"    {situation} | {name} | {found[:230]}")
            causes.update(kinds)
            print(
                f"{situation:28}",
                *(f"{kind} {kinds[kind]:3}  " for kind in ("exact", "cannot render", "refused", "WRONG")),
            )
        print("all", dict(causes), "\n")
    tokens, differing = 0, Counter[str]()
    for twin in TWINS:
        for situation, row in (FIVE | NINETEEN).items():
            if situation in ("question fakes an answer", "first answer is context"):
                continue
            count, differ = agreement(twin, row)
            tokens += count
            if differ and "-v" in sys.argv:
                print(f"    {twin} | {situation} | {differ}")
            differing[twin] += sum(map(len, differ))
    print(f"twins: {tokens} tokens, characters that differ: {dict(+differing)}")


if __name__ == "__main__":
    main()
