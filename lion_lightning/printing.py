"""Text for terminals and files, without control characters and secrets."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    from rich.text import Text

HIDDEN = "***"

_SECRET = r"api[_-]?(?:key|token)|access[_-]?(?:key|token)|(?:auth|hf)[_-]?token|passw(?:or)?d|passphrase|secret"
# A URL's user, or its user and password, in which a slash may stand.
_USER = re.compile(r"(?<=://)(?:[^\s'\"<>/]*|[^\s'\"<>/@:]*:[^\s'\"<>]*)@")
# Parameters of URLs by their name, as in ?token=...; then settings (api_key: ...) and options (--api_key ...).
_QUERY = re.compile(
    r"([?&;#][\w.%-]*(?:key|token|secret|passw|pwd|sig|auth|credential|jwt|bearer)[\w.%-]*=)[^&\s'\"#,;)]+",
    re.IGNORECASE,
)
_GIVEN = re.compile(rf"((?:{_SECRET})(?:\s*=\s*|['\"]\s*[:=]\s*)['\"]?)[^\s'\",;&}}]+", re.IGNORECASE)
_OPTION = re.compile(rf"(--[\w.-]*(?:{_SECRET})[= ])\S+", re.IGNORECASE)
_BEARER = re.compile(r"(\bBearer\s+)[\w.~+/=-]{8,}")
# Keys by their form, wherever they stand: OpenAI's, Stripe's, Hugging Face's, GitHub's, ... and JSON web tokens.
_KNOWN = re.compile(
    r"\b(?:sk-[\w-]{16,}|[sr]k_(?:live|test)_\w{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|(?:gsk|xai|nvapi|pplx|r8)[-_][\w-]{16,}|xox[a-z]-[\w-]{10,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,})"
)
# A login without a scheme, user:password@host; not an e-mail address or the digest of an image.
_BARE_LOGIN = re.compile(
    r"(?<![\w/.:@-])(?!mailto:)[\w.+-]+:[^\s'\"<>/@:,]{3,}@(?!sha\d+:)(?=[\w-]+(?:\.[\w-]+)*(?::\d{2,5}\b|\.[a-z]))",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\bhttps?://[^\s'\"<>]+", re.IGNORECASE)
_IN_PATH = (  # of an address: by what a segment begins with, and by the segment before it
    re.compile(
        r"(/)(?:[spr]k[-_][\w.~-]{6,}|(?:key|token|bearer|secret)[-_:=](?=[^/?#]*\d)[\w.~-]{6,}|bot\d+:[\w-]{10,})",
        re.IGNORECASE,
    ),
    re.compile(rf"(/(?:{_SECRET})s?/)[^/?#]+", re.IGNORECASE),
)
# A segment of a URL's path with random letters and digits, as of a webhook.
_RANDOM = re.compile(r"(/)(?=[^/]*[a-z])(?=[^/]*[A-Z])(?=[^/]*\d[^/]*\d)[A-Za-z0-9]{24,}(?=[/?#]|$)")
_NAMED = re.compile(rf"(?:.*[._-])?(?:{_SECRET})", re.IGNORECASE)
_LINE_END = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_LOGIN = re.compile(r"\bhttps?://[^/\s@?#]*@|\b[a-z][a-z0-9+.-]*://[^/\s@?#:]*:[^/\s@?#]*@", re.IGNORECASE)


def harmless(text: str) -> str:
    """Replace control characters, of terminals and of text direction, by the replacement character."""
    # Joiners are control characters by category, but Persian and many emojis need them.
    return "".join(
        char if char in "\n\t\u200c\u200d" or unicodedata.category(char)[0] != "C" else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def redacted(text: str) -> str:
    """Mask user names and passwords in URLs, and strings that look like keys."""
    text = _BARE_LOGIN.sub(f"{HIDDEN}@", _USER.sub(f"{HIDDEN}@", text))
    text = _ADDRESS.sub(lambda address: _RANDOM.sub(rf"\1{HIDDEN}", _without_keys(address[0])), text)
    for pattern in (_QUERY, _GIVEN, _OPTION, _BEARER):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return _KNOWN.sub(HIDDEN, text)


def one_line(text: str) -> str:
    """:func:`printable`, with line ends replaced by spaces."""
    return printable(_LINE_END.sub(" ", text))


def holds_secret(text: str) -> bool:
    """Return whether a text has a URL with a user name, a password or a key."""
    return bool(
        _LOGIN.search(text)
        or ("://" in text and (_QUERY.search(text) or _KNOWN.search(text)))
        or any(_without_keys(address) != address for address in _ADDRESS.findall(text))
    )


def _without_keys(address: str) -> str:
    """Mask the segments of a URL's path that are keys by their name."""
    for pattern in _IN_PATH:
        address = pattern.sub(rf"\1{HIDDEN}", address)
    return address


def printable(text: str) -> str:
    """:func:`redacted` and :func:`harmless`."""
    return harmless(redacted(text))


def literal(text: str, most: int | None = None, style: str = "") -> Text:
    """Text for a rich table or console, without markup and control characters.

    Args:
        text: Text of a model, a file or a server.
        most: Maximum number of characters; the middle of longer texts is removed. None for no limit.
        style: Style of rich.
    """
    from rich.text import Text

    cut = most is not None and len(text) > most
    shown = f"{text[: (most or 0) // 2]} [...] {text[-(most or 0) // 2 :]}" if cut else text
    return Text(harmless(shown), style, overflow="fold")


def is_secret(name: Any) -> bool:
    """Return whether a setting with this name is a secret, e.g. ``api_key``, ``db_password`` or ``hf_token``."""
    return _NAMED.fullmatch(str(name)) is not None


def without_secrets(value: Any) -> Any:
    """Mask settings with names of secrets, and secrets in URLs, in plain data."""
    if isinstance(value, Mapping):
        return {name: HIDDEN if is_secret(name) else without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return redacted(value) if isinstance(value, str) and "://" in value else value


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """Mask secrets in a command line."""
    shown, after_secret = [], False
    for argument in arguments:
        shown.append(HIDDEN if after_secret else redacted(argument))
        after_secret = argument.startswith("--") and is_secret(argument)
    return shown


def require_no_secrets(config: Any, owner: str = "") -> None:
    """Refuse secrets in a config, which is written to many files of a run.

    Args:
        config: Mappings, lists and scalars; other values are ignored.
        owner: Prefix of the message, e.g. a file's name and a colon.

    Raises:
        ValueError: A URL has a user name, a password or a key, or a setting has the name of a secret. The message has
            the setting's name, not its value.
    """
    for place, what in _secrets(config, ""):
        raise ValueError(
            f"{owner}{place}: {what}, which would be written to the run's files; remove it and use an environment "
            "variable: `api_key_env` names one for servers, the hub reads HF_TOKEN, loggers have others"
        )


def _secrets(config: Any, place: str) -> Iterator[tuple[str, str]]:
    """Path and description of each secret."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            inner = f"{place}.{name}" if place else str(name)
            if isinstance(value, str) and value and is_secret(name):
                yield inner, "a key or a password"
            yield from _secrets(value, inner)
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from _secrets(value, f"{place}[{number}]")
    elif isinstance(config, str) and holds_secret(config):
        yield place, "a URL with a user name, a password or a key"


class PrintableFormatter(logging.Formatter):
    """Applies :func:`printable` to log messages."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, ``0:42``; with hours, ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
