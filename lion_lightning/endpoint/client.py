"""A client of servers that speak OpenAI's protocol: many requests at once, with retries."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from http.client import HTTPException
from numbers import Real
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from tqdm import tqdm

from lion_lightning.endpoint.http import ask
from lion_lightning.endpoint.replies import Reply
from lion_lightning.printing import holds_secret, printable
from lion_lightning.processes.threads import map_in_threads

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes that may be gone at the next try."""

LONGEST_WAIT = 60.0
"""Seconds before a further try, at most."""


@dataclass(frozen=True)
class Endpoint:
    """A server, by its address.

    It is sent no key and no prompt to anywhere else: a server that sends on to another address is an error that names
    it. Requests go through the proxies of the environment (``HTTPS_PROXY``), those to this machine never do.

    Attributes:
        url: Address without a route: ``http://127.0.0.1:8000``. No user name, password or key may be in it.
        api_key_env: Name of the environment variable that holds the key; None for no key. The key itself is never
            written anywhere, nor shown where the server says it back.
        timeout: Seconds that a request may take, to the last byte of its answer.
        retries: Further tries after a failed one.
        backoff: Seconds before the first of them; each further one waits twice as long, up to a minute.
        concurrency: Requests at once.

    Raises:
        ValueError: If a setting makes no sense.
    """

    url: str
    api_key_env: str | None = None
    timeout: float = 600.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 32

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "url", _address(self.url))
        _require_name(self.api_key_env)
        for name, least, most, kind in (
            ("timeout", 1e-3, 1e6, Real),
            ("retries", 0, 1000, int),
            ("backoff", 0, LONGEST_WAIT, Real),
            ("concurrency", 1, 1000, int),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= float(value) <= most:
                what = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name} is {value!r}; give {what} from {least:g} to {most:g}")

    @classmethod
    def of(cls, url: str, settings: Mapping[str, Any]) -> Endpoint:
        """A server, with further settings by name.

        Args:
            url: Its address.
            settings: All that it takes besides.

        Raises:
            ValueError: If a setting is unknown, or makes no sense.
        """
        known = [field.name for field in fields(cls) if field.name != "url"]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ValueError(
                f"endpoint: there is no setting {unknown[0]!r}; it takes {', '.join(known)} (a key stays in an "
                "environment variable, whose name is `api_key_env`)"
            )
        return cls(url, **settings)

    def get(self, route: str) -> Any:
        """Answer to a GET; see :meth:`post`."""
        return self._retried(route, None, _json)

    def post(self, route: str, body: Any = None) -> Any:
        """Answer to a POST, parsed from JSON; None where it is empty. See :meth:`reply` for what is to be used of it.

        Args:
            route: Path with a leading slash, e.g. ``/v1/completions``.
            body: What is sent as JSON.

        Raises:
            ConnectionError: There is no answer, after all tries.
            ValueError: The server refuses the request.
        """
        return self._retried(route, {} if body is None else body, _json)

    def tell(self, route: str, body: Any) -> None:
        """POST where the answer does not matter, whatever it is written in; see :meth:`post`.

        Args:
            route: Path with a leading slash.
            body: What is sent as JSON.
        """
        self._retried(route, body, bytes)

    def post_all(self, route: str, bodies: Sequence[Any], title: str) -> list[Any]:
        """Answers to many requests, in their order, ``concurrency`` at once; see :meth:`post`.

        Args:
            route: Path with a leading slash.
            bodies: What is sent, one a request.
            title: For the progress bar.
        """
        stop = threading.Event()  # the first failure keeps the others from going on

        def one(body: Any) -> Any:
            return self._retried(route, body, _json, stop)

        try:
            answers = map_in_threads(one, bodies, self.concurrency)
            found = dict(tqdm(answers, title, total=len(bodies), delay=2))
        except BaseException:
            stop.set()
            raise
        return [found[place] for place in range(len(bodies))]

    def reply(self, route: str, answer: Any) -> Reply:
        """An answer for reading, which names server and route where there is something else than is read.

        Args:
            route: Where it came from.
            answer: From :meth:`get`, :meth:`post` or :meth:`post_all`.
        """
        return Reply(answer, self.url + route)

    def models(self) -> list[str]:
        """Names of the models that it serves, at least one."""
        listed = self.reply("/v1/models", self.get("/v1/models"))["data"]
        return [model["id"].text() for model in listed.items()]

    def _retried(self, route: str, body: Any, read: Callable[[bytes], Any], stop: threading.Event | None = None) -> Any:
        started, stop = time.monotonic(), stop or threading.Event()
        reason = "given up"
        for attempt in range(self.retries + 1):
            if stop.wait(self._pause(attempt)) or stop.is_set():
                break
            try:
                return read(self._once(route, body))
            except HTTPError as error:
                reason = self._reason(error)
                if error.code not in RETRIED:
                    raise ValueError(f"{self.url} refuses the request ({error.code}): {reason}") from error
                reason = f"{error.code} {reason}"
            except (URLError, HTTPException, OSError, _NoJSONError) as error:
                reason = self._clean(str(getattr(error, "reason", error)) or type(error).__name__)
        tries = f"{self.retries + 1} {'tries' if self.retries else 'try'}"
        raise ConnectionError(
            f"{self.url}: no answer after {tries} in {time.monotonic() - started:.0f} s ({reason}); "
            "start the server or correct `url`"
        )

    def _pause(self, attempt: int) -> float:
        return min(self.backoff * 2.0 ** min(attempt - 1, 30), LONGEST_WAIT) if attempt else 0.0

    def _once(self, route: str, body: Any) -> bytes:
        key = self._key()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        return self._without_secret(ask(self.url + route, data, headers, self.timeout))

    def require_key(self) -> None:
        """Find out whether the key is there, without asking the server.

        Raises:
            ValueError: It is not, or cannot be one.
        """
        self._key()

    def _key(self) -> str:
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()  # a mounted secret ends in a newline
        if not key:
            raise ValueError(f"api_key_env: the environment variable {self.api_key_env} is not set, or is empty")
        if not re.fullmatch(r"[!-~]+", key):
            raise ValueError(
                f"api_key_env: what the environment variable {self.api_key_env} holds is no key (white space or "
                "letters with accents in it); set it to the key alone"
            )
        return key

    def _reason(self, error: HTTPError) -> str:
        """What the server says about an error, or where it sends on to."""
        if 300 <= error.code < 400:
            where = self._clean(str(error.headers.get("Location", "another address")))
            return f"it sends on to {where}, where nothing is sent to; if that is the server, put its address in `url`"
        try:
            text = self._without_key(error.read(2**16)).decode(errors="replace").strip()
        except (OSError, HTTPException):  # the explanation never ends, or is cut off
            text = ""
        return self._clean(_message(text) or str(error.reason))

    def _clean(self, text: str) -> str:
        return " ".join(printable(self._without_key(text.encode(errors="replace")).decode()).split())[:300]

    def _without_key(self, said: bytes) -> bytes:
        """What a server said, without the key that it was sent, in whichever letters and however it is escaped."""
        key = os.environ.get(self.api_key_env or "", "").strip()
        return re.sub("".join(map(_spelled, key)).encode(), b"***", said) if key else said

    def _without_secret(self, said: bytes) -> bytes:
        """The same of an answer that is used: a word that stands in for a key ("EMPTY", "none") is a word there."""
        key = os.environ.get(self.api_key_env or "", "").strip()
        return self._without_key(said) if len(key) >= _SHORTEST_SECRET else said


_SHORTEST_SECRET = 8


def _spelled(char: str) -> str:
    """A pattern of the ways to write a character of a key: itself, or escaped for JSON, an address or HTML."""
    if char.isalnum():
        return f"(?i:{char})"  # nobody escapes letters
    code, named = ord(char), re.escape(escape(char))
    return rf"(?i:{named}|\\?{re.escape(char)}|\\u00{code:02x}|%(?:25)?{code:02x}|&#0*{code};|&#x0*{code:x};)"


class _NoJSONError(ValueError):
    """An answer that is no JSON."""


def _json(text: bytes) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        start = repr(text[:40].decode(errors="replace"))
        raise _NoJSONError(f"the answer is no JSON that can be read, it begins with {start}") from error


def _message(text: str) -> str:
    """The explanation in an error's body: of OpenAI's form, another one, or the text itself."""
    try:
        said = json.loads(text)
        return str(said.get("error", {}).get("message") or said.get("message") or text)
    except (AttributeError, ValueError, RecursionError):
        return text


def _address(url: str) -> str:
    """An address as it can be kept: with a host, and nothing secret in it."""
    shown = printable(re.split(r"[?#]", str(url))[0].rpartition("@")[2])[:100]
    if not isinstance(url, str) or not re.match(r"https?://", url):
        raise ValueError(f"url: {shown!r} is no address; give one such as http://127.0.0.1:8000")
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0) and re.fullmatch(r"[!-~]+", url)
    except ValueError:
        valid = False
    if "@" in url or "?" in url or "#" in url or holds_secret(url):
        raise ValueError(
            f"url: the address of {shown!r} has a user name, a password, a key or a query in it, which would be copied "
            "into the run's files; leave it out, and name the environment variable that holds the key in `api_key_env`"
        )
    if not valid:
        raise ValueError(f"url: {shown!r} is no address; give one such as http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")


def _require_name(variable: Any) -> None:
    """Refuse a key where the name of a variable belongs, without showing it."""
    if variable is None:
        return
    named = isinstance(variable, str) and re.fullmatch(r"[A-Za-z_]\w*", variable)
    if not named or (variable != variable.upper() and variable not in os.environ):
        raise ValueError(
            "api_key_env: this is no name of an environment variable (it is not shown, as it may be the key itself); "
            "put the key into a variable such as OPENAI_API_KEY, and give that name"
        )
