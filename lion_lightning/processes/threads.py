"""Calls in several threads, for which nobody who is stopped has to wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(call: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[tuple[int, Result]]:
    """Results of a call for each item, with the item's place, as they come.

    Who is interrupted meanwhile does not wait for the calls under way, as he would with a pool of threads: a server may
    take minutes to answer, and whoever stops this process does not wait that long.

    Args:
        call: Called in several threads.
        items: Its arguments.
        threads: How many at once.

    Raises:
        Exception: A call's own, of the first one that fails.
    """
    todo: SimpleQueue[tuple[int, Item]] = SimpleQueue()
    done: SimpleQueue[tuple[int, Result] | Exception] = SimpleQueue()
    for numbered in enumerate(items):
        todo.put(numbered)

    def work() -> None:
        while True:
            try:
                place, item = todo.get_nowait()
            except Empty:
                return
            try:
                done.put((place, call(item)))
            except Exception as error:
                done.put(error)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    for _ in items:
        result = done.get()
        if isinstance(result, Exception):
            raise result
        yield result
