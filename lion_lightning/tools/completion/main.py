"""``lion completion SHELL``: print the completion script of a shell."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from lion_lightning.processes.command_line import CommandParser
from lion_lightning.tools.train.config_file import read_mapping

SHELLS = ("bash", "zsh", "fish")


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: Command line after ``lion completion``.
    """
    parser = CommandParser(
        prog="lion completion",
        description="Print what makes the Tab key complete commands, options and files, for a shell; `keys FILE` "
        "prints the options that a config's keys are, which the scripts ask for.",
        epilog="Example: lion completion bash > ~/.local/share/bash-completion/completions/lion",
    )
    parser.add_argument("shell", choices=[*SHELLS, "keys"], help="the shell")
    parser.add_argument("file", nargs="?", type=Path, help="with `keys`: a config file")
    options = parser.parse_args(arguments)
    from lion_lightning.tools.completion.words import keys

    if options.shell != "keys":
        print(script(options.shell), end="")
    elif options.file is None:
        raise ValueError("lion completion keys: give a config file")
    else:
        print("\n".join(keys(read_mapping(options.file))))


def script(shell: str) -> str:
    """The script of a shell, with all commands and options as they are now; imports torch and Lightning."""
    from lion_lightning.cli import COMMANDS, TRAINING
    from lion_lightning.tools.completion.words import choices, options

    commands = {name: line for name, (_, line) in (TRAINING | COMMANDS).items()}
    if shell == "fish":
        return _fish(commands, options(), choices())
    text = _template("bash").replace("@commands@", " ".join(commands))
    for mark, words, pattern in (("@options@", options(), "{}:*:-*"), ("@choices@", choices(), "{}:2:*")):
        lines = [f'            {pattern.format(one)}) words="{" ".join(found)}" ;;' for one, found in words.items()]
        text = text.replace(mark, "\n".join(lines))
    return _template("zsh").replace("@bash@", text) if shell == "zsh" else text


def _template(shell: str) -> str:
    found = resources.files("lion_lightning.tools.completion").joinpath("scripts", f"{shell}.sh")
    return found.read_text(encoding="utf-8")


def _fish(commands: dict[str, str], options: dict[str, list[str]], choices: dict[str, list[str]]) -> str:
    lines = ["# Completion of `lion` for fish, written by `lion completion fish`."]
    for name, line in commands.items():
        description = line.replace("'", "\\'")
        lines.append(f"complete -c lion -n __fish_use_subcommand -f -a {name} -d '{description}'")
        within = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [f"complete -c lion {within} -l {option.removeprefix('--')}" for option in options[name]]
        if name in choices:
            lines.append(f"complete -c lion {within} -a '{' '.join(choices[name])}'")
    return "\n".join([*lines, ""])
