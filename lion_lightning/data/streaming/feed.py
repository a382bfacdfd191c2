"""Encoded blocks of each source in order, made ahead by worker processes where there are any."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import parent_process
from threading import Thread
from typing import Any

from torch.utils.data import DataLoader

from lion_lightning.data.streaming.encoding import BlockEncoder, EncodedBlock, FailedBlock, Request
from lion_lightning.data.streaming.reading import RawBlock

_AHEAD = 4  # blocks that each worker is given ahead


class BlockFeed:
    """The blocks of each source, in its order, whatever the number of workers.

    This process reads the rows; workers parse and encode them. They are given the next block of the source that the
    fewest are ahead of, for its share, so that one whose blocks are used up quickly is read ahead more.

    Args:
        blocks: Raw blocks of each source.
        encoder: Encodes them.
        shares: Share of each source in the mixture.
        num_workers: Worker processes; 0 encodes in this one, when a block is asked for.
    """

    def __init__(
        self, blocks: Sequence[Iterator[RawBlock]], encoder: BlockEncoder, shares: Sequence[float], num_workers: int
    ) -> None:
        self._blocks, self._encoder, self._shares = blocks, encoder, shares
        self._ended = [False] * len(blocks)
        self._ahead = [0] * len(blocks)  # blocks of each source that were asked for and not taken
        self._ready: list[deque[EncodedBlock | FailedBlock]] = [deque() for _ in blocks]
        self._encoded: Iterator[EncodedBlock | FailedBlock] | None = None
        if num_workers:
            loader: DataLoader[Any] = DataLoader(
                encoder,
                sampler=_Requests(self),
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=num_workers,
                prefetch_factor=_AHEAD,
                worker_init_fn=_begin_worker,
            )
            self._encoded = iter(loader)

    def take(self, source: int) -> EncodedBlock | None:
        """The next block of a source; None behind its last.

        Raises:
            ValueError: A row is wrong, or cannot be read.
        """
        if self._encoded is None:
            request = self._request(source)
            found = self._encoder[request] if request else None
        else:
            found = self._take_ready(source)
        if isinstance(found, FailedBlock):
            raise ValueError(found.error)
        return found

    def close(self) -> None:
        """Stop the workers."""
        self._encoded = None

    def _take_ready(self, source: int) -> EncodedBlock | FailedBlock | None:
        assert self._encoded is not None
        while not self._ready[source]:
            if self._ended[source] and not self._ahead[source]:
                return None
            block = next(self._encoded, None)
            if block is None:
                return None
            self._ready[block.source].append(block)
        self._ahead[source] -= 1
        return self._ready[source].popleft()

    def requests(self) -> Iterator[Request]:
        """Tasks of the workers, one after the other, each chosen when it is asked for."""
        while left := [number for number, ended in enumerate(self._ended) if not ended]:
            source = min(left, key=lambda number: self._ahead[number] / self._shares[number])
            if request := self._request(source):
                self._ahead[source] += 1
                yield request

    def _request(self, source: int) -> Request | None:
        """The next raw block of a source; None behind its last."""
        if self._ended[source]:
            return None
        try:
            block = next(self._blocks[source], None)
        except (ValueError, OSError) as error:  # raised when it is this block's turn, not when it was read ahead
            self._ended[source] = True
            return Request(source, None, str(error))
        self._ended[source] = block is None
        return None if block is None else Request(source, block)


class _Requests:
    """A sampler of what the feed wants next."""

    def __init__(self, feed: BlockFeed) -> None:
        self._feed = feed

    def __iter__(self) -> Iterator[Request]:
        return self._feed.requests()


def _as_it_is(block: Any) -> Any:
    return block


def _begin_worker(number: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
    parent, parent_id = parent_process(), os.getppid()

    def end_with_parent() -> None:
        # When its parent was killed, torch's worker would wait for somebody to take its last block, forever. A worker
        # of a fork server has that server for os.getppid(), which lives on.
        while os.getppid() == parent_id and (parent is None or parent.is_alive()):
            time.sleep(1)
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()
