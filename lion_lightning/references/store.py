"""Log-probs of answers under one model, on disk, found by the content of prompt and answer."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from lion_lightning.cache import atomic_write, explain_write_errors, read_object, remove_stale_files
from lion_lightning.errors import first_line
from lion_lightning.references.answer_file import AnswerFile, Block, Counts, Keys, to_block
from lion_lightning.types import PackedBatch, TokenLogps

log = logging.getLogger(__name__)

STORE_VERSION = 3
"""Part of what stores are found by. Raise it when files change, or the same model and answer give other values."""


def answer_keys(batch: PackedBatch) -> Keys:
    """128-bit hash of each answer: the tokens of its prompt and its own, and which are targets. ``(answers, 2)``."""
    host = batch.on_cpu()
    ids, places = host.input_ids.numpy(), host.logit_positions.numpy()
    bounds = batch.target_bounds()
    # Of each segment: what it and its ancestors hold, so that a prompt is hashed once for its answers.
    states: list[blake2b] = []
    digests = []
    for number, segment in enumerate(batch.segments):
        state = states[segment.parent].copy() if segment.parent >= 0 else blake2b(digest_size=16)
        length = -segment.length if segment.bidirectional else segment.length  # other log-probs, another key
        state.update(length.to_bytes(8, "little", signed=True) + ids[segment.start : segment.stop].tobytes())
        states.append(state)
        if segment.parent >= 0:
            # Counted from the answer's start: its first target is predicted from elsewhere, its prompt's last token.
            targets = np.maximum(places[bounds[number] : bounds[number + 1]] - segment.start, -1)
            final = state.copy()
            final.update(targets.tobytes())
            digests.append(final.digest())
    return np.frombuffer(b"".join(digests if batch.values else []), np.uint64).reshape(-1, 2)


def answer_counts(batch: PackedBatch) -> Counts:
    """Number of targets of each answer, ``(answers,)``."""
    counts: Counts = np.diff(batch.target_bounds())[np.array(batch.answers, np.int64)]
    return counts


class AnswerStore:
    """Log-probs of answers under one model, target by target. Several processes may add, each to its file.

    Keys and places are in memory, about 100 bytes per answer; log-probs stay on disk until they are read.

    Args:
        folder: Folder of the store; made on the first flush.
        identity: Plain data that the values depend on; another identity is another store.
        rank: Number of this process among those that add: of an answer that several have scored at once, the first
            one's log-probs are found.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.identity, self.rank = folder, dict(identity), rank
        self._files: dict[Path, AnswerFile] = {}
        self.own: Path | None = None  # the file that this process adds to
        self._pending: list[tuple[Keys, Counts, Tensor]] = []
        self._added: set[int] = set()  # first 64 bits of the keys that were added since the last reload
        self._require_identity()
        self.reload()

    def __len__(self) -> int:
        """Number of answers on disk, as of the last :meth:`reload`."""
        return len(self._keys)

    def has(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """True for each answer that is in the store, or was added by this process; ``(answers,)``."""
        added = np.fromiter((word in self._added for word in keys[:, 0].tolist()), np.bool_, len(keys))
        return self._find(keys)[1] | added

    def get(self, keys: Keys, device: torch.device | str = "cpu") -> TokenLogps:
        """Log-probs of answers, one after the other, by keys ``(answers, 2)``; a ValueError if one is not there."""
        rows, found = self._find(keys)
        if not found.all():
            raise ValueError(
                f"{self.folder}: no reference log-probs for {int((~found).sum())} of the batch's {len(keys)} answers; "
                "precompute all of them first (CachedReference.precompute), and give all ranks the same `cache_dir`"
            )
        places = zip(self._owners[rows].tolist(), self._starts[rows].tolist(), self._stops[rows].tolist(), strict=True)
        parts = [self._words[owner][start:stop] for owner, start, stop in places]
        values = np.concatenate([np.empty(0, np.float32), *parts])
        return TokenLogps(torch.from_numpy(values).to(device, non_blocking=True))

    def add(self, keys: Keys, counts: Counts, logps: TokenLogps) -> None:
        """Add answers, in memory until :meth:`flush`; does not wait for the device.

        Args:
            keys: ``(answers, 2)``.
            counts: ``(answers,)`` number of targets of each.
            logps: ``(targets,)`` of all of them, one after the other.
        """
        assert len(logps.values) == counts.sum()
        self._pending.append((keys, counts, logps.values.float()))
        self._added.update(keys[:, 0].tolist())

    def flush(self) -> None:
        """Write what was added: a block more in this process's file."""
        if not self._pending:
            return
        keys, counts = (np.concatenate(parts) for parts in list(zip(*self._pending, strict=True))[:2])
        block = to_block(keys, counts, torch.cat([values for *_, values in self._pending]).cpu().numpy())
        with explain_write_errors(self.folder, "reference log-probs"):
            if self.own is None:
                self._begin(block)
            else:
                self._append(self.own, block)
        self._pending = []

    def reload(self, files: Iterable[Path | None] = ()) -> None:
        """Read what all processes have flushed; damaged files are removed, and their answers count as uncached.

        Args:
            files: Files that other processes are known to have: network file systems list new ones late.
        """
        for path in {*self.folder.glob("[!.]*.arrow"), *filter(None, files)}:
            file = self._files.setdefault(path, AnswerFile(path))
            try:
                file.read_on()
            except FileNotFoundError:
                pass  # another process has removed it since; what was read of it is still mapped
            except (ValueError, pa.ArrowException) as error:
                log.warning(
                    "%s is damaged (%s): it is removed, and its answers are computed again", path, first_line(error)
                )
                path.unlink(missing_ok=True)
                del self._files[path]
        self._make_index()
        self._added = set()

    def _make_index(self) -> None:
        """Keys of all files in order, for a binary search, and the place of each answer's log-probs."""
        files = [self._files[path] for path in sorted(self._files)]
        none = np.empty(0, np.int64)
        blocks, sizes = [Block(np.empty((0, 2), np.uint64), none, none)], [0] * len(files)
        for owner, file in enumerate(files):
            blocks += file.blocks
            sizes[owner] = sum(len(block.keys) for block in file.blocks)
        keys, starts, counts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        owners = np.repeat(np.arange(len(files), dtype=np.int32), np.array(sizes, np.int64))
        order = np.argsort(keys[:, 0], kind="stable")  # of equal ones, the first file's is the first
        if len(order):
            words = keys[order, 0]
            order = order[np.concatenate([[True], words[1:] != words[:-1]])]
        self._keys, self._owners = keys[order], owners[order]
        self._starts, self._stops = starts[order], (starts + counts)[order]
        self._words = [file.words for file in files]

    def _find(self, keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Row of each key, and whether it is there; searched by the first 64 bits, which never collide in practice."""
        if not len(self._keys):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
        rows = np.searchsorted(self._keys[:, 0], keys[:, 0]).clip(max=len(self._keys) - 1)
        return rows, (self._keys[rows] == keys).all(axis=1)

    def _begin(self, block: Any) -> None:
        """Make this process's file, with its first block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_stale_files(self.folder)
        with atomic_write(self.folder / "identity.json") as temporary:
            temporary.write_text(json.dumps(self.identity, indent=1), "utf-8")
        path = self.folder / f"{self.rank:05}-{uuid4().hex}.arrow"
        with atomic_write(path) as temporary:
            temporary.write_bytes(block)
        self.own = path

    def _append(self, path: Path, block: Any) -> None:
        self.own = None  # where this fails, another file is begun: nobody reads on behind half a block
        with path.open("ab") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        self.own = path

    def _require_identity(self) -> None:
        manifest = self.folder / "identity.json"
        if not manifest.exists():
            if any(self.folder.glob("[!.]*.arrow")):
                raise ValueError(f"{self.folder}: log-probs of an unknown model (no identity.json); delete the folder")
            return
        theirs = read_object(manifest, "what the log-probs come from", "delete the folder, they are computed again")
        ours = json.loads(json.dumps(self.identity))  # as it reads back: tuples are lists in JSON
        changed = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
        if changed:
            raise ValueError(
                f"{self.folder}: these log-probs belong to another model or setting ({', '.join(changed)} differ); "
                "delete the folder, or name another `cache_dir`"
            )
