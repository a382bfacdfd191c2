"""The ``lion`` command: its table of subcommands.

Nothing here imports torch or Lightning before a subcommand needs them, so that ``lion --help`` starts fast.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module

from lion_lightning import __version__
from lion_lightning.processes.entry_point import format_own_warnings, run_guarded
from lion_lightning.processes.stopping import default_interrupts

TRAINING: dict[str, tuple[str, str]] = {
    "fit": ("train", "train a model, with validation"),
    "validate": ("train", "compute losses and metrics on the validation rows"),
    "test": ("train", "compute losses and metrics on the test rows"),
}
"""Subcommands of LightningCLI, configured by a YAML file: for each the folder in :mod:`lion_lightning.tools` whose
module ``main`` runs it, and its line in ``lion --help``.
"""

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "write a config to edit, from a model, data and what to train"),
    "run": ("pipeline", "run the stages of a pipeline file, each starting from the previous one's export"),
    "report": ("report", "plot a run's metrics from its logs"),
    "evaluate": ("evaluate", "losses, accuracies and win rates of a trained model"),
    "chat": ("chat", "talk to a trained model"),
    "plan": ("plan", "estimate memory per GPU and time per step of a config, without any GPU"),
    "inspect": ("inspect", "show what a config's filters, loss mask and packing do to its data"),
    "export": ("export", "write a checkpoint as a Hugging Face folder"),
    "rounds": ("rounds", "print and plot statistics of on-policy rounds"),
    "answers": ("answers", "answer the questions of AlpacaEval, Arena-Hard or MT-Bench, in their formats"),
    "models": ("models", "check which types of causal LM run packed, with shared prompts, LoRA and export"),
    "import": ("importing", "turn a config of axolotl, LLaMA-Factory, TRL or alignment-handbook into one of lion fit"),
    "demo": ("demo", "write data, tokenizer and model config of a small synthetic task"),
    "completion": ("completion", "print what makes the Tab key complete commands and options, for bash, zsh or fish"),
}
"""All other subcommands, in the same form."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Arguments without the program's name; None for ``sys.argv``.

    Returns:
        Exit code: 0, 2 after an error that the user can fix, or 128 plus the signal's number after a signal (130 for
        Ctrl-C, 143 for SIGTERM).
    """
    if argv is None:  # the process is ours, not a caller's
        default_interrupts()
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_guarded(lambda: _run(arguments))


def help_text() -> str:
    """The output of ``lion --help``."""
    sections = []
    for commands in (TRAINING, COMMANDS):
        sections.append("\n".join(f"    {name:<10}  {summary}" for name, (_, summary) in commands.items()))
    training, others = sections
    return f"""usage: lion COMMAND ...  (lion COMMAND --help for its arguments, lion --version)

Align language models with PyTorch Lightning.

configured by a YAML file, e.g. `lion fit -c configs/sft.yaml`:
{training}

other commands:
{others}"""


def _run(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(help_text())
    elif name == "--version":
        print(f"lion_lightning {__version__}")
    elif name.partition("=")[0] in ("--print_shtab", "--print_completion"):  # of programs with the same parser
        raise ValueError(f"{name}: completion is printed by `lion completion bash`, or zsh, or fish")
    elif name in COMMANDS:
        _main_of(COMMANDS[name][0])(arguments[1:])
    elif name in TRAINING or name.startswith("-"):  # LightningCLI parses the subcommand itself
        _main_of("train")(arguments)
    else:
        known = [*TRAINING, *COMMANDS]
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}" if close else ""
        raise ValueError(f"unknown command {name!r}{hint}; the commands are {', '.join(known)}")


def _main_of(folder: str) -> Callable[[list[str]], None]:
    """The function that runs a command, by its folder in :mod:`lion_lightning.tools`."""
    main: Callable[[list[str]], None] = import_module(f"lion_lightning.tools.{folder}.main").main
    format_own_warnings()
    return main
