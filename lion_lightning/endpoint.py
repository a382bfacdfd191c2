"""A client of servers that speak OpenAI's protocol: many requests at once, with retries."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes that may be gone at the next try."""


class Endpoint:
    """A server, by its address.

    Args:
        url: Address without a route: ``http://127.0.0.1:8000``.
        api_key_env: Name of the environment variable that holds the key; None for no key. The key itself is never
            written anywhere.
        timeout: Seconds that a request may take.
        retries: Further tries after a failed one.
        backoff: Seconds before the first of them; each further one waits twice as long.
        concurrency: Requests at once.
    """

    def __init__(
        self,
        url: str,
        api_key_env: str | None = None,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 1.0,
        concurrency: int = 32,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url: {url!r} is no address; give one such as http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.api_key_env, self.timeout = api_key_env, timeout
        self.retries, self.backoff, self.concurrency = retries, backoff, concurrency

    def get(self, route: str) -> Any:
        """Answer to a GET; see :meth:`post`."""
        return self._retried(lambda: self._once(route, None))

    def post(self, route: str, body: Any = None) -> Any:
        """Answer to a POST, parsed from JSON; None where it is empty.

        Args:
            route: Path with a leading slash, e.g. ``/v1/completions``.
            body: What is sent as JSON.

        Raises:
            ConnectionError: There is no answer, after all tries.
            ValueError: The server refuses the request.
        """
        return self._retried(lambda: self._once(route, {} if body is None else body))

    def tell(self, route: str, body: Any) -> None:
        """POST where the answer does not matter, whatever it is written in; see :meth:`post`.

        Args:
            route: Path with a leading slash.
            body: What is sent as JSON.
        """
        self._retried(lambda: self._read(route, body))

    def post_all(self, route: str, bodies: Sequence[Any], title: str) -> list[Any]:
        """Answers to many requests, in their order, ``concurrency`` at once; see :meth:`post`.

        Args:
            route: Path with a leading slash.
            bodies: What is sent, one a request.
            title: For the progress bar.
        """
        stop = threading.Event()  # the first failure keeps the others from starting

        def one(body: Any) -> Any:
            return None if stop.is_set() else self.post(route, body)

        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                return list(tqdm(pool.map(one, bodies), title, total=len(bodies), delay=2))
            except BaseException:
                stop.set()
                raise

    def _retried(self, request: Callable[[], Any]) -> Any:
        started = time.monotonic()
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                return request()
            except HTTPError as error:
                if error.code not in RETRIED:
                    raise ValueError(f"{self.url} refuses the request ({error.code}): {_reason(error)}") from error
                reason = f"{error.code} {error.reason}"
            except (URLError, HTTPException, OSError, json.JSONDecodeError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise ConnectionError(
            f"{self.url}: no answer after {self.retries + 1} tries in {time.monotonic() - started:.0f} s ({reason}); "
            "start the server or correct `url`"
        )

    def _once(self, route: str, body: Any) -> Any:
        text = self._read(route, body)
        return json.loads(text) if text else None

    def _read(self, route: str, body: Any) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + route, data, {"Content-Type": "application/json", **self._authorization()})
        with urlopen(request, timeout=self.timeout) as response:
            text: bytes = response.read()
        return text

    def _authorization(self) -> dict[str, str]:
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ValueError(f"api_key_env: the environment variable {self.api_key_env} is not set")
        return {"Authorization": f"Bearer {key}"}


def _reason(error: HTTPError) -> str:
    text = error.read().decode(errors="replace").strip()
    try:
        said = json.loads(text)
        return str(said.get("error", {}).get("message") or said.get("message") or text)[:300]
    except (AttributeError, ValueError):
        return text[:300] or str(error.reason)
