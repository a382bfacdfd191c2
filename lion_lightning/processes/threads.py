"""Parallel calls in threads that an interrupt does not have to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(call: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[tuple[int, Result]]:
    """Call a function for each item in several threads.

    Unlike with a thread pool, an interrupt does not wait for running calls: a server may take minutes to respond.

    Yields:
        Index and result of each item, as they are finished.

    Raises:
        Exception: The exception of the first call that fails.
    """
    todo: SimpleQueue[tuple[int, Item]] = SimpleQueue()
    done: SimpleQueue[tuple[int, Result] | Exception] = SimpleQueue()
    for numbered in enumerate(items):
        todo.put(numbered)

    def work() -> None:
        while True:
            try:
                index, item = todo.get_nowait()
            except Empty:
                return
            try:
                done.put((index, call(item)))
            except Exception as error:  # raised below, in the caller's thread
                done.put(error)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()  # the process may exit before they end
    for _ in items:
        result = done.get()
        if isinstance(result, Exception):
            raise result
        yield result
