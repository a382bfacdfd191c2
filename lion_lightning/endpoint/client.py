"""Client of an OpenAI-compatible server: parallel requests with retries."""

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

from lion_lightning.endpoint.http import request
from lion_lightning.endpoint.replies import Reply
from lion_lightning.printing import holds_secret, printable
from lion_lightning.processes.threads import map_in_threads

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes of temporary errors."""

LONGEST_WAIT = 60.0
"""Maximum seconds before a retry."""


@dataclass(frozen=True)
class Endpoint:
    """A server and how to send requests to it.

    Keys and prompts are sent to this address only: redirects are errors. Requests use the proxies of the environment
    (``HTTPS_PROXY``), except to this machine.

    Attributes:
        url: Address without a route, e.g. ``http://127.0.0.1:8000``; without user name, password or key.
        api_key_env: Name of the environment variable that holds the API key; None for no key. The key is never written
            to files, and masked in responses.
        timeout: Seconds per request, until the last byte of the response.
        retries: Number of retries of a failed request.
        backoff: Seconds before the first retry; doubled for each further one, up to a minute.
        concurrency: Number of parallel requests.

    Raises:
        ValueError: An argument is out of range or of another type.
    """

    url: str
    api_key_env: str | None = None
    timeout: float = 600.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 32

    def __post_init__(self) -> None:
        """Check the arguments."""
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
                what = "an integer" if kind is int else "a number"
                raise ValueError(f"{name} is {value!r}; give {what} from {least:g} to {most:g}")

    @classmethod
    def of(cls, url: str, settings: Mapping[str, Any]) -> Endpoint:
        """Make an endpoint from its address and a mapping of all other arguments.

        Raises:
            ValueError: An argument is unknown or out of range.
        """
        known = [field.name for field in fields(cls)][1:]  # without the address
        for name in settings:
            if name not in known:
                raise ValueError(
                    f"endpoint: unknown argument {name!r}; known are {', '.join(known)} (`api_key_env` is the name of "
                    "an environment variable)"
                )
        return cls(url, **settings)

    def get(self, route: str) -> Any:
        """Send a GET request; see :meth:`post`."""
        return self._retried(route, None, _json)

    def post(self, route: str, body: Any = None) -> Any:
        """Send a POST request.

        Args:
            route: Path with a leading slash, e.g. ``/v1/completions``.
            body: Request body, sent as JSON.

        Returns:
            The response, parsed from JSON; None if it is empty. Read it through :meth:`reply`.

        Raises:
            ConnectionError: The server does not respond after all retries.
            ValueError: The server refuses the request.
        """
        return self._retried(route, {} if body is None else body, _json)

    def post_only(self, route: str, body: Any) -> None:
        """Send a POST request and ignore the response, which may not be JSON; see :meth:`post`."""
        self._retried(route, body, bytes)

    def post_all(self, route: str, bodies: Sequence[Any], title: str) -> list[Any]:
        """Send many POST requests, ``concurrency`` at once, and return the responses in order; see :meth:`post`."""
        stop = threading.Event()  # after the first failure no thread sends another request
        try:
            found = map_in_threads(lambda body: self._retried(route, body, _json, stop), bodies, self.concurrency)
            responses = dict(tqdm(found, title, total=len(bodies), delay=2))
        except BaseException:
            stop.set()
            raise
        return [responses[index] for index in range(len(bodies))]

    def reply(self, route: str, answer: Any) -> Reply:
        """Wrap the response to a request, so that reading a missing value is an error with server and route."""
        return Reply(answer, self.url + route)

    def models(self) -> list[str]:
        """Names of the models that the server serves, at least one."""
        listed = self.reply("/v1/models", self.get("/v1/models"))["data"]
        return [model["id"].text() for model in listed.items()]

    def _retried(self, route: str, body: Any, read: Callable[[bytes], Any], stop: threading.Event | None = None) -> Any:
        started = time.monotonic()
        stop = stop or threading.Event()
        reason = "another request failed"
        for attempt in range(self.retries + 1):
            pause = min(self.backoff * 2.0 ** min(attempt - 1, 30), LONGEST_WAIT) if attempt else 0.0
            if stop.wait(pause) or stop.is_set():
                break
            try:
                return read(self._once(route, body))
            except HTTPError as error:
                reason = self._reason(error)
                if error.code not in RETRIED:
                    raise ValueError(f"{self.url} refuses the request ({error.code}): {reason}") from error
                reason = f"{error.code} {reason}"
            except (URLError, HTTPException, OSError) as error:
                reason = self._clean(str(getattr(error, "reason", error)) or type(error).__name__)
        attempts = f"{self.retries + 1} {'attempts' if self.retries else 'attempt'}"
        raise ConnectionError(
            f"{self.url}: no response after {attempts} in {time.monotonic() - started:.0f} s ({reason}); "
            "start the server or correct `url`"
        )

    def _once(self, route: str, body: Any) -> bytes:
        key = self.require_key()
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        said = request(self.url + route, data, headers, self.timeout)
        # A short key is a placeholder such as "EMPTY", which may be a word of an answer.
        return self._without_key(said) if len(key) >= 8 else said

    def require_key(self) -> str:
        """Read the API key from its environment variable; empty without one.

        Raises:
            ValueError: The variable is not set, or holds something that cannot be a key.
        """
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()  # a mounted secret ends in a newline
        if not key:
            raise ValueError(f"api_key_env: the environment variable {self.api_key_env} is not set, or is empty")
        if not re.fullmatch(r"[!-~]+", key):
            raise ValueError(
                f"api_key_env: the environment variable {self.api_key_env} does not hold a key (it has white space or "
                "characters outside of ASCII); set it to the key only"
            )
        return key

    def _reason(self, error: HTTPError) -> str:
        """The server's explanation of an error, or the address that it redirects to."""
        if 300 <= error.code < 400:
            where = self._clean(str(error.headers.get("Location", "another address")))
            return f"the server redirects to {where}, which is not followed; if that is right, use it as `url`"
        try:
            text = self._without_key(error.read(2**16)).decode(errors="replace").strip()
        except (OSError, HTTPException):  # the body is incomplete or too slow
            text = ""
        return self._clean(_message(text) or str(error.reason))

    def _clean(self, text: str) -> str:
        return " ".join(printable(self._without_key(text.encode(errors="replace")).decode()).split())[:300]

    def _without_key(self, said: bytes) -> bytes:
        """Mask the API key in a response, in upper and lower case and in all escapes."""
        key = os.environ.get(self.api_key_env or "", "").strip()  # not checked again: an error is being reported
        return re.sub("".join(map(_spelled, key)).encode(), b"***", said) if key else said


def _spelled(char: str) -> str:
    """A pattern for a character of a key: itself, or escaped for JSON, URLs or HTML."""
    if char.isalnum():
        return f"(?i:{char})"  # never escaped
    code, named = ord(char), re.escape(escape(char))
    return rf"(?i:{named}|\\?{re.escape(char)}|\\u00{code:02x}|%(?:25)?{code:02x}|&#0*{code};|&#x0*{code:x};)"


def _json(text: bytes) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        start = repr(text[:40].decode(errors="replace"))
        raise HTTPException(f"the response is not JSON; it starts with {start}") from error


def _message(text: str) -> str:
    """The explanation in an error's body, in OpenAI's or a similar format, or the body itself."""
    try:
        body = json.loads(text)
        return str(body.get("error", {}).get("message") or body.get("message") or text)
    except (AttributeError, ValueError, RecursionError):
        return text


def _address(url: str) -> str:
    """Check an address and remove its route: it must have a host and no secrets."""
    shown = printable(re.split(r"[?#]", str(url))[0].rpartition("@")[2])[:100]
    text = url if isinstance(url, str) else ""
    try:
        parts = urlsplit(text)
        valid = re.fullmatch(r"https?://[!-~]+", text) and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # of the port
        valid = False
    if text.startswith(("http://", "https://")) and (re.search(r"[@?#]", text) or holds_secret(text)):
        raise ValueError(
            f"url: the address of {shown!r} has a user name, a password, a key or a query, which would be written to "
            "the run's files; remove it, and set `api_key_env` to an environment variable that holds the key"
        )
    if not valid:
        raise ValueError(f"url: {shown!r} is not an address; give one such as http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")


def _require_name(variable: Any) -> None:
    """Refuse a key in place of a variable's name, without showing it."""
    if variable is None:
        return
    named = isinstance(variable, str) and re.fullmatch(r"[A-Za-z_]\w*", variable)
    # A key such as "sk_abc" is a valid name too, but unlike most names of variables it is not in upper case.
    if not named or (variable != variable.upper() and variable not in os.environ):
        raise ValueError(
            "api_key_env: the value (hidden, as it may be the key itself) is not the name of an environment variable; "
            "put the key into a variable such as OPENAI_API_KEY and give that name"
        )
