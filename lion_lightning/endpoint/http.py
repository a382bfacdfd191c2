"""One HTTP request: no redirects, an end to waiting, and an end to what is read."""

from __future__ import annotations

import socket
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from io import BufferedReader, RawIOBase
from typing import Any
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from typing_extensions import override

MOST_BYTES = 64 * 2**20
"""Of an answer: some hundred times what the largest batch of answers takes."""

_BLOCK = 2**20


def ask(url: str, data: bytes | None, headers: dict[str, str], timeout: float) -> bytes:
    """The body of an answer with a status of success.

    Args:
        url: Address and route.
        data: What is posted; None for a GET.
        headers: Of the request.
        timeout: Seconds in which the connection must stand, and again in which the whole answer must be there.

    Raises:
        HTTPError: Any other status, redirects among them: what is sent is meant for this server alone.
        URLError: There is no connection.
        OSError: The answer did not come in time.
        HTTPException: It is not HTTP, is cut off, or is larger than ``MOST_BYTES``.
    """
    with _opener(url).open(Request(url, data, headers), timeout=timeout) as response:
        return _whole(response)


def _opener(url: str) -> OpenerDirector:
    """Python's own without what follows redirects; the proxies of the environment, but none for this machine."""
    here = urlsplit(url).hostname in ("localhost", "::1") or str(urlsplit(url).hostname).startswith("127.")
    opener = OpenerDirector()
    handlers = (_HTTP(), _HTTPS(), HTTPErrorProcessor(), HTTPDefaultErrorHandler())
    for handler in (ProxyHandler({}) if here else ProxyHandler(), *handlers):
        opener.add_handler(handler)
    return opener


def _whole(response: Any) -> bytes:
    parts: list[bytes] = []
    while part := response.read(_BLOCK):
        parts.append(part)
        if len(parts) * _BLOCK > MOST_BYTES and sum(map(len, parts)) > MOST_BYTES:
            raise HTTPException(f"the answer has more than {MOST_BYTES >> 20} MiB")
    if response.length:  # so many bytes that were announced are missing
        raise IncompleteRead(b"", response.length)
    return b"".join(parts)


class _InTime(RawIOBase):
    """Reads a socket until a moment that does not move, however often a little comes in."""

    def __init__(self, raw: Any, connection: socket.socket) -> None:
        self._raw, self._connection, self._seconds = raw, connection, connection.gettimeout()
        self._end = time.monotonic() + (self._seconds or float("inf"))

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the answer was not whole after {self._seconds:g} s")
        self._connection.settimeout(left)
        try:
            return self._raw.readinto(buffer)
        except TimeoutError as error:
            raise TimeoutError(f"the answer was not whole after {self._seconds:g} s") from error

    @override
    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = BufferedReader(_InTime(self.fp.detach(), sock))


class _Connection(HTTPConnection):
    response_class = _Response


class _SecureConnection(HTTPSConnection):
    response_class = _Response


class _HTTP(HTTPHandler):
    @override
    def http_open(self, request: Request) -> HTTPResponse:
        return self.do_open(_Connection, request)


class _HTTPS(HTTPSHandler):
    @override
    def https_open(self, request: Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, request)
