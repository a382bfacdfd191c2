"""An HTTP request without redirects, with limited time and size."""

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

MAX_BYTES = 64 * 2**20
"""Maximum size of a response, about a hundred times that of the largest batch of answers."""

_BLOCK = 2**20


def request(url: str, data: bytes | None, headers: dict[str, str], timeout: float) -> bytes:
    """Send a request and return the body of the response.

    Args:
        url: Address and route.
        data: Body of a POST request; None for GET.
        headers: Headers of the request.
        timeout: Seconds until the connection is made, and again until the response is complete.

    Raises:
        HTTPError: A status of failure, or a redirect, which is never followed.
        URLError: The connection failed.
        OSError: The response took too long.
        HTTPException: The response is not HTTP, is truncated, or is larger than ``MAX_BYTES``.
    """
    # Python's default opener without redirects, and without proxies for this machine.
    host = str(urlsplit(url).hostname)
    proxies = ProxyHandler({}) if host in ("localhost", "::1") or host.startswith("127.") else ProxyHandler()
    opener = OpenerDirector()
    for handler in (proxies, _HTTP(), _HTTPS(), HTTPErrorProcessor(), HTTPDefaultErrorHandler()):
        opener.add_handler(handler)

    parts: list[bytes] = []
    with opener.open(Request(url, data, headers), timeout=timeout) as response:
        while part := response.read(_BLOCK):
            parts.append(part)
            if len(parts) * _BLOCK > MAX_BYTES and sum(map(len, parts)) > MAX_BYTES:
                raise HTTPException(f"the response has more than {MAX_BYTES >> 20} MiB")
        if response.length:  # bytes of Content-Length that are missing
            raise IncompleteRead(b"", response.length)
    return b"".join(parts)


class _Deadline(RawIOBase):
    """Reads a socket with a deadline for the full response, not a timeout per read."""

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
            raise TimeoutError(f"the response was not complete after {self._seconds:g} s")
        self._connection.settimeout(left)
        try:
            return self._raw.readinto(buffer)
        except TimeoutError as error:
            raise TimeoutError(f"the response was not complete after {self._seconds:g} s") from error

    @override
    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = BufferedReader(_Deadline(self.fp.detach(), sock))


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
