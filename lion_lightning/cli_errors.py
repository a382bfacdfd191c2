"""From the parser's long reports to the one line that a person needs."""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path

_NOISE = re.compile(
    r"^(- )?(Does not validate against any|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>)"
)
_CALLABLE = re.compile(r"^- Type .* expects a function or a callable class: ")
_GIVEN = re.compile(r"\. Got value: Namespace\(.*")
_CLASS = re.compile(r"class_path[ =]'([\w.]+)'")
_ABSENT = re.compile(r"No module named '(\w+)'")
_EXTRAS = {"bitsandbytes": "qlora"}
"""Optional packages whose classes configs name, and the extra that brings them."""
_UNKNOWN = re.compile(r"Option '(\w+)' is not accepted")


def explain(error: Exception) -> str:
    """One line for an error, without what the parser tried before it gave up.

    Args:
        error: What was raised.
    """
    if isinstance(error, IsADirectoryError) and _is_checkpoint(Path(error.filename)):
        return (
            f"{error.filename}: a checkpoint that ranks wrote in pieces; resume with the strategy that wrote it "
            "(configs/strategy/fsdp2.yaml or fsdp.yaml), or make a model of it with `lion export`"
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}; name a place that exists and can be used"
    lines = [_CALLABLE.sub("", line.strip()) for line in str(error).splitlines()]
    text = " ".join(line.removeprefix("- ") for line in lines if line and not _NOISE.match(line))
    return _GIVEN.sub("", text) + _suggestion(text) + _remedy(text)


def _is_checkpoint(folder: Path) -> bool:
    from lion_lightning.models.checkpoints import is_folder  # imports torch, which most errors need not wait for

    return is_folder(folder)


def _suggestion(text: str) -> str:
    """The nearest name that the class does take, for a mistyped one."""
    classes, keys = _CLASS.findall(text), _UNKNOWN.findall(text)
    if not classes or not keys:
        return ""
    path, key = classes[-1], keys[-1]
    module, _, name = path.rpartition(".")
    names = list(signature(getattr(import_module(module), name)).parameters)
    close = get_close_matches(key, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it takes {', '.join(names)}"


def _remedy(text: str) -> str:
    """How to install a package that a config names a class of."""
    absent = [name for name in _ABSENT.findall(text) if name in _EXTRAS]
    return f"; pip install 'lion-lightning[{_EXTRAS[absent[0]]}]'" if absent else ""
