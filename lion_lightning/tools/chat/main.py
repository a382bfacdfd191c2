"""``lion chat``: talk to a model on the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from lion_lightning.printing import harmless
from lion_lightning.processes.command_line import CommandParser

if TYPE_CHECKING:
    from lion_lightning.tools.chat.conversation import Chat

HELP = "/undo removes the last turn, /reset clears the conversation, /quit or Ctrl-D ends; Ctrl-C stops an answer"


def main(arguments: list[str]) -> None:
    """Run the command."""
    options = _parser().parse_args(arguments)
    from lion_lightning.tools.chat.conversation import Chat, load_served

    policy = load_served(options.model, options.trust_remote_code, options.template_kwargs)
    chat = Chat(policy, options.system, options.temperature, options.max_new_tokens)
    if sys.stdin.isatty():
        import readline  # noqa: F401 - gives input() a history and editing keys

        note(HELP)
    talk(chat)


def talk(chat: Chat) -> None:
    """Answer the lines of standard input."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip(" \t")
            if line == "/quit":
                return
            _reply(chat, line)
        except KeyboardInterrupt:  # at the prompt: during an answer it ends only the answer
            note("\n(/quit or Ctrl-D ends)")
        except EOFError:
            print(end="\n" if prompt else "")  # the shell's prompt starts on a new line
            return


def note(text: str) -> None:
    """Print a message that is not part of the conversation."""
    print(text, file=sys.stderr, flush=True)


def _reply(chat: Chat, line: str) -> None:
    if line == "/undo":
        question = chat.undo()
        note("(nothing to undo)" if question is None else f"(removed: {question})")
    elif line == "/reset":
        chat.reset()
        note("(a new conversation)")
    elif line.startswith("/"):
        note(f"unknown command {line.split()[0]}; {HELP}")
    elif line:
        _answer(chat, line)


def _answer(chat: Chat, line: str) -> None:
    try:
        answer = chat.say(line, lambda piece: print(harmless(piece), end="", flush=True))
    except ValueError as error:  # the conversation is too long: the user decides
        note(str(error))
        return
    print(flush=True)
    if answer.finish_reason != "stop":
        note(f"({_NOTES[answer.finish_reason]})")


_NOTES = {"interrupted": "stopped", "length": "truncated: see --max-new-tokens"}


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lion chat",
        description="Talk to a model on the terminal; piped lines are answered one by one.",
        epilog=f"{HELP} Example: lion chat runs/sft/export --temperature 0",
    )
    parser.add_argument("model", help="a Hugging Face folder, e.g. runs/sft/export, or a hub id")
    parser.add_argument("--system", help="text of a system turn")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 for greedy answers (0.8)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="maximum tokens of an answer (512)")
    parser.add_argument(
        "--template-kwargs",
        type=_object,
        metavar="JSON",
        help="variables of the chat template, e.g. '{\"enable_thinking\": false}'",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
