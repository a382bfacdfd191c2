"""Calls in threads: all results, the first failure, and no waiting for who is stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import NoReturn

import pytest

from lion_lightning.processes.stopping import STOP, Stopped
from lion_lightning.processes.threads import map_in_threads


def test_every_item_has_its_result_and_no_more_calls_run_at_once_than_threads() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def call(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return item * item

    assert dict(map_in_threads(call, range(20), 3)) == {item: item * item for item in range(20)}
    assert 1 <= most <= 3
    assert list(map_in_threads(call, [], 3)) == []


def test_a_failure_is_raised() -> None:
    def call(item: int) -> NoReturn:
        raise ConnectionError(f"no answer to {item}")

    with pytest.raises(ConnectionError, match="no answer to"):
        list(map_in_threads(call, range(4), 2))


def test_who_is_stopped_does_not_wait_for_a_server_that_takes_its_time() -> None:
    over = threading.Event()
    began = time.monotonic()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        with STOP.handle_signals(), pytest.raises(Stopped):
            list(map_in_threads(lambda item: over.wait(30), range(4), 2))
    finally:
        over.set()
    assert time.monotonic() - began < 10
