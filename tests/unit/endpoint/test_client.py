"""Servers that are broken, slow or hostile: each is one line that names the server, and none gets or shows a key."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lion_lightning.endpoint import http as transfer
from lion_lightning.endpoint.client import Endpoint
from lion_lightning.judges import RubricLLMJudge
from tests.unit.chat_server import serving

KEY = "k+/3y-of-ann"


@contextmanager
def speaking(speak: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request and then says whatever bytes it likes; yields its address and the requests."""
    seen: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            seen.append(request)
            with suppress(OSError):  # the client may have gone
                speak(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
        listener.shutdown(socket.SHUT_RDWR)


def saying(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


def whole(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of an endpoint whose key ends in a newline, as a mounted secret does."""
    monkeypatch.setenv("ANN_KEY", f"{KEY}\n")
    return {"api_key_env": "ANN_KEY", "retries": 0}


# --- the key


def test_a_key_that_ends_in_a_newline_is_sent_without_it(keyed: dict[str, Any]) -> None:
    with speaking(saying(whole(b"{}"))) as (url, seen):
        assert Endpoint(url, **keyed).get("/v1/models") == {}
    assert f"Authorization: Bearer {KEY}\r\n".encode() in seen[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "empty"),
        ("\n", "empty"),
        ("a b", "does not hold a key"),
        ("k\x00", "does not hold a key"),
        ("schlüssel", "does not hold a key"),
    ],
)
def test_what_can_be_no_key_is_refused_without_showing_it(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"ANN_KEY": value})  # the real one takes no null byte
    with pytest.raises(ValueError, match=rf"^api_key_env: .*ANN_KEY.*{said}") as error:
        Endpoint("http://127.0.0.1:9", api_key_env="ANN_KEY").get("/x")
    assert not value.strip() or value not in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        f"you sent Authorization: Bearer {KEY}".encode(),
        json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(),
        json.dumps({"error": {"message": f"bad key {KEY}"}}).replace("/", r"\/").replace("+", r"\u002B").encode(),
        f"no access: /login?key={quote(KEY, safe='')}&again={quote(quote(KEY, safe=''))}".encode(),
        f"<p>BAD KEY {KEY.upper()}</p>".encode(),
        f"<p>bad key {KEY.replace('+', '&#43;').replace('/', '&#x2F;')}</p>".encode(),
    ],
)
@pytest.mark.parametrize("status", ["401 Unauthorized", f"403 no {KEY}", "503 busy"])
def test_a_server_that_says_the_key_back_gets_it_into_no_error(status: str, body: bytes, keyed: dict[str, Any]) -> None:
    with speaking(saying(whole(body, status))) as (url, _), pytest.raises((ValueError, ConnectionError)) as error:
        Endpoint(url, **keyed).post("/x")
    assert url in str(error.value)
    assert "***" in str(error.value)
    assert not re.search("3y-of-ann", str(error.value), re.IGNORECASE)
    assert "\n" not in str(error.value)


def test_a_word_that_stands_in_for_a_key_stays_in_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANN_KEY", "EMPTY")  # what servers without keys are given
    with speaking(saying(whole(b'{"text": "an EMPTY, empty box"}'))) as (url, _):
        assert Endpoint(url, "ANN_KEY").get("/x") == {"text": "an EMPTY, empty box"}


def test_a_key_in_an_answer_is_hidden_from_what_is_made_of_it(keyed: dict[str, Any], tmp_path: Path) -> None:
    reply = {"choices": [{"message": {"content": f"you sent {KEY}"}}]}
    with serving(lambda *_: (200, reply)) as url:
        judge = RubricLLMJudge(url, "m", attempts=1, cache_dir=tmp_path, endpoint=keyed)
        with pytest.raises(ValueError, match=r"ends in 'you sent \*\*\*'"):
            judge.ask(["?"], ["f:1"], lambda _: None)
    assert not any(KEY in file.read_text("utf-8") for file in tmp_path.rglob("*.txt"))


@pytest.mark.parametrize("name", ["", "sk-abc def", "hf_abcDEF123", "Bearer x", 3])
def test_a_key_in_place_of_a_variable_s_name_is_not_shown(name: Any) -> None:
    with pytest.raises(ValueError, match="is not the name of an environment variable") as error:
        Endpoint("http://127.0.0.1:9", api_key_env=name)
    assert not name or str(name) not in str(error.value)


# --- the address


@pytest.mark.parametrize(
    "url",
    [
        "http://ann:hunter2@127.0.0.1:8000",
        "https://hunter2@host/v1",
        "http://host/v1?key=hunter2",
        "http://host/v1#hunter2",
        "http://host/v1/sk-hunter2/chat",
        "https://host/key-hunter2",
        "ann:hunter2@host",
        "http://ann:hunter2@host:99999999",
    ],
)
def test_an_address_with_a_secret_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url: ") as error:
        Endpoint(url)
    assert "hunter2" not in str(error.value)
    assert "ann" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["http://", "http://host:port", "http://host:0", "http://h\nX: y", "http://hö.st", "http://a b", "file:///x", 3],
)
def test_what_is_no_address_is_refused_at_once(url: Any) -> None:
    with pytest.raises(ValueError, match="is not an address; give one such as http"):
        Endpoint(url)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_not_followed_but_named(status: str, keyed: dict[str, Any]) -> None:
    with speaking(saying(whole(b"{}"))) as (elsewhere, asked):
        there = f"Location: {elsewhere}/v1?token=hunter2\r\n"
        with (
            speaking(saying(whole(b"", status, there))) as (url, _),
            pytest.raises(ValueError, match=f"{url} refuses .*redirects to {elsewhere}/v1.*use it as `url`") as error,
        ):
            Endpoint(url, **keyed).get("/v1/models")
    assert asked == []
    assert "hunter2" not in str(error.value)


def test_a_proxy_of_the_environment_sees_nothing_for_this_machine(
    keyed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaking(saying(whole(b"[]"))) as (proxy, asked), serving(lambda *_: (200, {"own": 1})) as url:
        monkeypatch.setenv("http_proxy", proxy)
        assert Endpoint(url, **keyed).get("/x") == {"own": 1}
        assert asked == []
        assert Endpoint("http://server.invalid", retries=0).get("/x") == []
    assert asked[0].startswith(b"GET http://server.invalid/x")


# --- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"retries": -1},
        {"retries": 1.5},
        {"retries": "3"},
        {"timeout": 0},
        {"timeout": -5},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": None},
        {"backoff": -1},
        {"concurrency": 0},
        {"concurrency": True},
    ],
    ids=str,
)
def test_settings_out_of_their_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is "):
        Endpoint("http://127.0.0.1:9", **wrong)


def test_an_unknown_setting_is_named_without_its_value() -> None:
    with pytest.raises(ValueError, match=r"unknown argument 'api_key'; known are api_key_env") as error:
        RubricLLMJudge("http://127.0.0.1:9", "m", endpoint={"api_key": "hunter2"})
    assert "hunter2" not in str(error.value)
    with pytest.raises(ValueError, match=r"^retries is -1"):
        RubricLLMJudge("http://127.0.0.1:9", "m", endpoint={"retries": -1})


def test_a_further_try_never_waits_for_more_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []

    class Recorded(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    def refuse(*_: object) -> bytes:
        raise ConnectionRefusedError

    monkeypatch.setattr("lion_lightning.endpoint.client.request", refuse)
    monkeypatch.setattr(threading, "Event", Recorded)
    with pytest.raises(ConnectionError, match="1000 attempts"):
        Endpoint("http://h", backoff=1.0, retries=999).get("/")
    assert [waits[attempt] for attempt in (0, 1, 2, 3, 7, 900)] == [0.0, 1.0, 2.0, 4.0, 60.0, 60.0]


# --- the answer


def drip(connection: socket.socket, start: bytes) -> None:
    """Bytes that never end, each well within the timeout of a read."""
    connection.sendall(start)
    while True:
        time.sleep(0.05)
        connection.sendall(b"1")


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 400 no\r\nContent-Length: 9999\r\n\r\n"],
    ids=["status", "headers", "body", "error"],
)
def test_an_answer_that_drips_for_ever_ends_with_the_timeout(start: bytes) -> None:
    started = time.monotonic()
    with (
        speaking(lambda connection: drip(connection, start)) as (url, _),
        pytest.raises((ConnectionError, ValueError), match=url) as error,
    ):
        Endpoint(url, retries=0, timeout=0.4).get("/x")
    assert time.monotonic() - started < 5
    assert b"400" in start or "the response was not complete after 0.4 s" in str(error.value)


def test_a_huge_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_BYTES", 2**20)
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 2**23
    with speaking(saying(endless)) as (url, _), pytest.raises(ConnectionError, match=f"{url}: .*more than 1 MiB"):
        Endpoint(url, retries=0).get("/x")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (whole(b"<html>hello</html>"), "the response is not JSON; it starts with '<html>hello"),
        (whole(b"[" * 100_000), "the response is not JSON; it starts with"),
        (whole(b"9" * 10_000), "the response is not JSON; it starts with"),
        (whole(b"\xff\xfe\x00"), "the response is not JSON"),
        (whole(b"\x1b]0;owned\x07"), r"starts with '\\x1b\]0;owned"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0-OpenSSH_9.6"),
        (b"", "closed connection"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "got more than 100 headers"),
    ],
    ids=["html", "deep", "digits", "bytes", "escape", "cut", "cut chunk", "no chunk", "ssh", "nothing", "headers"],
)
def test_an_answer_that_is_none_is_one_line(said: bytes, why: str) -> None:
    with speaking(saying(said)) as (url, _), pytest.raises(ConnectionError, match=f"^{url}: .*{why}") as error:
        Endpoint(url, retries=0).get("/x")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_the_first_refusal_keeps_the_others_from_trying_again() -> None:
    calls: list[int] = []

    def reply(route: str, body: Any) -> tuple[int, Any]:
        calls.append(body)
        return (400, {"message": "no"}) if body == 0 else (503, None)

    started = time.monotonic()
    with serving(reply) as url, pytest.raises(ValueError, match="refuses"):
        Endpoint(url, backoff=30, concurrency=4).post_all("/x", list(range(8)), "x")
    assert time.monotonic() - started < 10


def test_nothing_of_a_request_is_logged(keyed: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving(lambda *_: (200, {})) as url:
        Endpoint(url, **keyed).post("/x")
    assert KEY not in caplog.text
