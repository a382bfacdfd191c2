"""Memory that operations allocate, counted as they run."""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from typing_extensions import override


class MemoryCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the live memory that operations allocate, by kind.

    Args:
        weights: Tensors that exist already and are not counted.
        vocabulary: Rows of the embedding, which identifies logits; None for no logits.
    """

    def __init__(self, weights: Iterable[Tensor] = (), vocabulary: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.live: Counter[str] = Counter()
        self.moment = ""
        self.peaks: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._kinds: dict[int, str] = {}
        for tensor in weights:
            self._kinds[_key(tensor)] = "weights"

    @contextmanager
    def at(self, moment: str) -> Iterator[None]:
        """Record peaks under this name, until the end of the block or another name."""
        self.turn(moment)
        yield
        self.moment = ""

    def turn(self, moment: str) -> None:
        """Record peaks under this name from now on."""
        self.moment = moment
        self._note()

    def move(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor as another kind."""
        size, key = tensor.untyped_storage().nbytes(), _key(tensor)
        self.live[self._kinds[key]] -= size
        self.live[kind] += size
        self._kinds[key] = kind

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if not isinstance(tensor, Tensor) or _key(tensor) in self._kinds:  # a view, or written in place
                continue
            kind = "activations"
            if func is torch.ops.aten._to_copy.default and self._kinds.get(_key(args[0])) == "weights":
                kind = "copies"  # by autocast
            elif tensor.dim() == 2 and tensor.shape[1] == self.vocabulary:
                kind = "logits"
            storage, key = tensor.untyped_storage(), _key(tensor)
            self._kinds[key] = kind
            self.live[kind] += storage.nbytes()
            weakref.finalize(storage, self._forget, key, storage.nbytes())
        self._note()
        return made

    def _forget(self, key: int, size: int) -> None:
        self.live[self._kinds.pop(key)] -= size

    def _note(self) -> None:
        if self.moment and self.live.total() > self.peaks[self.moment].total():
            self.peaks[self.moment] = self.live.copy()


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of full tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
