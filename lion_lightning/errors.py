"""One-line messages of errors, the argument parser's long reports among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from traceback import walk_tb
from typing import Any

_KEY = re.compile(r'Parser key "(.+?)":')
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)':")
_CALLABLE = re.compile(r"Type .* expects a function or a callable class: ")
_MADE = re.compile(r"class_path='([\w.]+)'")
_VALUE = re.compile(r"(?:Given value|Got value): ?(.*)")
_STRUCTURE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:$|Given value type:|Subclass types expect one of:"
    r"|a class path \(str\)|a dict with(out)? |Expected a <class 'NoneType'>"
)
_ALTERNATIVE = re.compile(r"Expected a path but|Expected a dot import path|Not a valid subclass of|Expected an? ")
_EXPECTED = re.compile(r"Expected an? (?:<class '(?:[\w.]+\.)?(\w+)'>|typing\.Literal\[(.+)\]|(.+))")
_SUBCLASS = re.compile(r"Not a valid subclass of (\w+)")
_NESTED = re.compile(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)")
_OTHER_KIND = re.compile(r"Import path (?:([\w.]+) )?does not correspond to a subclass of (\w+)")
_UNKNOWN_NAME = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_FILE = re.compile(r"Unexpected import path format: (\S+\.ya?ml)\b")
_ABSENT = re.compile(r"No module named '(\w+)'")
_NOT_ACCEPTED = re.compile(r"Option '([\w.]+)' is not accepted")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (?:(--[\w.]+)|(\S+\.(?:ya?ml|json))\b)")
_PARTS = ("--model.", "--data.", "--trainer.")
_SOURCES = ("sources", "validation", "prompts", "conversations", "preferences")
"""Arguments that are lists of sources."""
_TAKEN_BY = {
    "TokenLoss": "SFTModule",
    "AnswerLoss": "KTOModule",
    "PreferenceLoss": "DPOModule",
    "PolicyGradientLoss": "PolicyGradientModule",
    "GroupLoss": "GroupModule",
}
_UNNAMED = {"Optimizer": "torch.optim.AdamW", "LRScheduler": "lion_lightning.modules.CosineWithWarmup"}
"""Base classes that settings have for a type, and a class to name."""
_EXTRAS = {"bitsandbytes": "qlora"}
"""Optional packages whose classes configs may name, and the extra that installs each."""
_LONGEST_VALUE = 80
_MOST_FILES = 3
"""Files that a list of sources is written out for."""
_LONG_WORD = re.compile(r"\S{300,}")


def explain(error: Exception) -> str:
    """One line for an error; of the parser's reports only the cause."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        path = _shortened(str(error.filename2 or error.filename))  # filename2: the target of a copy or a rename
        return f"{path}: {error.strerror.lower()}; give a path that exists and that you may use"
    text = _shortened(str(error)) or type(error).__name__
    is_report = any(mark in text for mark in ('Parser key "', "Does not validate against any", "is not accepted"))
    line = _Report.of(text).line() if is_report else " ".join(text.split())
    remedy = _remedy(line)
    checkpoint = checkpoint_being_restored(error)
    if checkpoint is not None and checkpoint not in line:
        if not isinstance(error, ValueError):  # of torch or Lightning, for entries that do not fit
            line = f"the checkpoint is damaged or has another format ({type(error).__name__}: {line})"
        line = f"{checkpoint}: {line}"
    return line + remedy


def _shortened(text: str) -> str:
    return _LONG_WORD.sub(lambda word: f"{word[0][:_LONGEST_VALUE]}...", text)


def first_line(error: BaseException, with_type: bool = False) -> str:
    """The first line of an error's message, at most 300 characters, to be quoted in another message.

    Args:
        error: Any exception; its class name stands for an empty message.
        with_type: Begin with the class name. LookupError, TypeError and AttributeError always do: their messages say
            little without it.
    """
    name, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return name
    with_type = with_type or isinstance(error, LookupError | TypeError | AttributeError)
    line = f"{name}: {lines[0]}" if with_type else lines[0]
    return line if len(line) <= 300 else f"{line[:297]}..."


def checkpoint_being_restored(error: BaseException) -> str | None:
    """Return the checkpoint that Lightning (2.6) was restoring when an error was raised; None for other errors.

    torch and Lightning raise exceptions of any class for entries that do not fit, without the file's name.
    """
    for frame, _ in walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename.endswith("checkpoint_connector.py") and code.co_name.lstrip("_").startswith("restore"):
            return str(frame.f_locals["self"].trainer.ckpt_path)
    return None


def is_user_error(error: Exception) -> bool:
    """Return whether a user can fix an error, so that one line is enough, or it is a bug, which needs its traceback."""
    if isinstance(error, ExceptionGroup):
        return all(map(is_user_error, error.exceptions))
    if isinstance(error, (ValueError, ModuleNotFoundError, OSError)):
        return True
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    if isinstance(error, (MisconfigurationException, ArgumentError)):
        return True
    if checkpoint_being_restored(error) is not None:
        return True
    # EarlyStopping raises a RuntimeError for a metric that is not logged, the trainer for a callback that is there
    # twice, Adam an AssertionError for ``capturable``; running out of memory is a subclass of RuntimeError.
    explained = type(error) in (RuntimeError, AssertionError) and str(error) != ""
    callbacks = ("lightning.pytorch.callbacks.", "lightning.pytorch.trainer.connectors.callback_connector")
    return explained and raised_in(error).startswith((*callbacks, "torch.optim."))


def raised_in(error: BaseException) -> str:
    """Name of the module whose code raised an error; empty for one that was not raised."""
    module = ""
    for frame, _ in walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
    return module


@dataclass
class _Report:
    """A report of the parser: the path to the key, and why each type of the value was refused.

    The report is a tree: a key, the class that its value names, a key of that class, ..., and one leaf per type that
    the value could have. There is one path to all leaves. Leaves on why a class or an argument was refused matter more
    than leaves that say that the value is not of a type.
    """

    keys: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)
    value: str = ""
    outermost: str = ""  # the value at the root
    depth: int = -1  # indentation of the last key

    @classmethod
    def of(cls, text: str) -> _Report:
        """Parse a report."""
        report = cls()
        for depth, line in _lines(text):
            if found := _VALUE.match(line):
                report.value, report.outermost = report.value or found[1], found[1]
            elif found := _KEY.fullmatch(line):
                report.keys.append(found[1])
                report.depth = depth
            elif found := _CLASS.fullmatch(line):
                report.classes.append(found[1])
            elif line not in report.leaves and depth > report.depth:  # shallower leaves belong to an enclosing value
                report.leaves.append(line)
        return report

    def line(self) -> str:
        """The report in one line."""
        causes = [leaf for leaf in self.leaves if not _ALTERNATIVE.match(leaf)]
        message = self._file_for_sources() or " ".join(causes) or self._expectation()
        where = ".".join(key for key in self.keys if key != "class_path")
        if message.endswith("does not implement protocol Judge"):  # as a verifier does not
            message += "; name a class with a method `score`, or give a verifier to lion_lightning.judges.VerifierJudge"
        if missing := _NO_FILE.search(message):
            message = f"there is no file {missing[1]}; its path is relative to the config that names it"
        if other := _OTHER_KIND.search(message):
            message = _other_kind(other[1] or self.value, other[2])
        if unknown := _UNKNOWN_NAME.search(message):
            close = get_close_matches(unknown[2], dir(import_module(unknown[1])), n=1)
            message += f"; did you mean {close[0]!r}?" if close else ""
        refused = _NOT_ACCEPTED.search(message)
        if refused and self.classes:
            module, _, name = self.classes[-1].rpartition(".")
            if name in _UNNAMED:  # the type of the setting itself, where the config gives no class
                return f"{where}: no class is given to set {refused[1]!r} of; put --{where} {_UNNAMED[name]} before it"
            names = _settings_of(getattr(import_module(module), name))
            close = get_close_matches(refused[1].partition(".")[0], names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
            message = f"{name} has no setting {refused[1]!r}; {hint}"
        return f"{where}: {message}" if where else message

    def _expectation(self) -> str:
        """The types that the value may have, if its type is all that is wrong."""
        wanted = []
        for leaf in self.leaves:
            if kind := _SUBCLASS.match(leaf):
                wanted.append(f"a class_path of {kind[1]}")
        for leaf in self.leaves:
            found = _EXPECTED.fullmatch(leaf)
            if found and not leaf.startswith(("Expected a path but", "Expected a dot import")):
                # A class such as int, the values of a Literal, or other text.
                wanted.append(found[1] or (found[2].replace(", ", " | ") if found[2] else found[3]))
        if not wanted:
            wanted = ["a class_path"] if any("dot import" in leaf for leaf in self.leaves) else self.leaves
        value = self.value
        if nested := _NESTED.match(value):
            if nested[1] != self.keys[-1]:  # an argument of a class that is not given
                return f"no class_path is given before --{'.'.join(self.keys)}.{nested[1]}; put -c FILE before it"
            value = nested[2]
        given = f", got {value[:_LONGEST_VALUE]}" if value else ""
        return f"expected {' or '.join(wanted)}{given}"

    def _file_for_sources(self) -> str:
        """The list to write in place of file names, of which the parser took one for a config file."""
        if not self.keys or self.keys[-1] not in _SOURCES:
            return ""
        given = rf"(?:.*'{self.keys[-1]}'(?:: |, val=))?"
        first = r"(?:\[?'|\{'path': ')?(?!None\b)([\w./*?-]+)(?:'|(?=\s)|$)"
        found = re.match(rf"{given}{first}((?:, '[\w./*?-]+'(?!:))*)", self.outermost)  # (?!:): no key behind
        if found is None:
            return ""
        files = [found[1], *re.findall(r"'(.+?)'", found[2])]
        sources = [f"{{path: {file[:_LONGEST_VALUE]}}}" for file in files[:_MOST_FILES]]
        sources += ["..."] * (len(files) > _MOST_FILES)
        which = "one file" if len(files) == 1 else "several files"
        return f"expected a list of sources; for {which} write [{', '.join(sources)}]"


def _other_kind(path: str, wanted: str) -> str:
    """Message of a class that is not of the kind which its key takes: of a loss also the module that takes it."""
    module, _, name = path.rpartition(".")
    found = getattr(import_module(module), name, None) if module else None
    bases = [base.__name__ for base in getattr(found, "__mro__", ())]
    if any(base.__module__.split(".")[0] == "pytorch_lightning" for base in getattr(found, "__mro__", ())):
        return f"{path} is built on pytorch_lightning, which is another package than lightning.pytorch; use that"
    kind = next((base for base in bases if base in _TAKEN_BY), None)  # the nearest one
    if kind is not None:
        return f"{path} is no {wanted}; as {kind} it is for {_TAKEN_BY[kind]}"
    return f"{path} is no {wanted}; give a subclass of it"


def _settings_of(made: Any) -> list[str]:
    """Arguments of a class or function, those that ``**kwargs`` pass on to base classes among them."""
    from jsonargparse import ArgumentParser

    if isinstance(made, type):
        return list(ArgumentParser(exit_on_error=False).add_class_arguments(made, fail_untyped=False))
    return list(signature(made).parameters)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Indentation and text of each informative line; a callable's line is split into its class and its cause."""
    for raw in text.splitlines():
        line = _CALLABLE.sub("", raw.strip().removeprefix("- "))
        depth = len(raw) - len(raw.lstrip())
        complaint, got, value = line.partition(". Got value: ")
        made = _MADE.search(value)
        if made:
            yield depth, f"Problem with given class_path '{made[1]}':"
        if complaint and not _STRUCTURE.match(complaint):
            yield depth, complaint
        if got and not made:
            yield depth, f"Got value: {value}"


def _remedy(line: str) -> str:
    """The fix for a missing package, a missing config or an option without its prefix."""
    for name in _ABSENT.findall(line):
        if name in _EXTRAS:
            return f"; pip install 'lion-lightning[{_EXTRAS[name]}]'"
    if line.startswith("the following arguments are required"):
        return "; give a config with -c FILE"
    found = _UNRECOGNIZED.search(line)
    if found and found[2]:
        return f"; name a config with -c {found[2]}"
    if found and not found[1].startswith(_PARTS):
        return f"; options of a run begin with {', '.join(_PARTS)} (such as --model.optimizer.lr, --data.max_length)"
    return ""
