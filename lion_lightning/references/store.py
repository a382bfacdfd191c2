"""Log-probs of answers under one model, on disk, found by the content of prompt and answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lion_lightning.cache import atomic_write, explain_write_errors, read_object, remove_stale_files, unwrap_os_errors
from lion_lightning.errors import first_line
from lion_lightning.models.weights.hash import hash_tensors
from lion_lightning.types import PackedBatch, TokenLogps

log = logging.getLogger(__name__)

STORE_VERSION = 2
"""Raise it when the same model and answer give other values: older stores are then no longer found."""

Keys = npt.NDArray[np.uint64]


def answer_keys(batch: PackedBatch) -> Keys:
    """128-bit hash of each answer: the tokens of its prompt and its own, and which are targets. ``(answers, 2)``."""
    host = batch.on_cpu()
    ids, logit_positions = host.input_ids.numpy(), host.logit_positions.numpy()
    # Targets are sorted by segment: those of segment i are bounds[i] to bounds[i + 1].
    bounds = np.searchsorted(host.target_segments.numpy(), np.arange(len(batch.segments) + 1))
    digests = []
    for number in batch.answers:
        answer, prompt = batch.segments[number], batch.segments[batch.segments[number].parent]
        targets = (
            logit_positions[bounds[number] : bounds[number + 1]] - answer.start
        )  # the first may be the prompt's end
        state = blake2b(digest_size=16)
        for numbers in (ids[prompt.start : prompt.stop], ids[answer.start : answer.stop], targets):
            state.update(np.array([len(numbers), *numbers], np.int64).tobytes())
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def answer_counts(batch: PackedBatch) -> npt.NDArray[np.int64]:
    """Number of targets of each answer, ``(answers,)``."""
    counts = np.bincount(batch.on_cpu().target_segments.numpy(), minlength=len(batch.segments))
    return counts[np.array(batch.answers, np.int64)]


class AnswerStore:
    """Log-probs of answers under one model, target by target. Several processes may add; each flush writes a new file.

    Args:
        folder: Folder of the store; made on the first flush.
        identity: Plain data that the values depend on; another identity is another store.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, {"version": STORE_VERSION, **identity}
        self._pending: list[tuple[Keys, Tensor, Tensor]] = []
        self._keys: Keys = np.empty((0, 2), np.uint64)
        self._starts = self._counts = np.empty(0, np.int64)
        self._values = np.empty(0, np.float32)
        self._require_identity()
        self.reload()

    def __len__(self) -> int:
        """Number of answers on disk, as of the last :meth:`reload`."""
        return len(self._keys)

    def has(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """True for each answer that is in the store, ``(answers,)``."""
        return self._find(keys)[1]

    def get(self, keys: Keys, device: torch.device | str = "cpu") -> TokenLogps:
        """Log-probs of answers, one after the other, by keys ``(answers, 2)``; a ValueError if one is not there."""
        rows, found = self._find(keys)
        if not found.all():
            raise ValueError(
                f"{self.folder}: no reference log-probs for {int((~found).sum())} of the batch's {len(keys)} answers; "
                "precompute all of them first (CachedReference.precompute), and give all ranks the same `cache_dir`"
            )
        parts = [self._values[self._starts[row] : self._starts[row] + self._counts[row]] for row in rows.tolist()]
        values = np.concatenate([np.empty(0, np.float32), *parts])
        return TokenLogps(torch.from_numpy(values).to(device, non_blocking=True))

    def add(self, keys: Keys, counts: npt.NDArray[np.int64], logps: TokenLogps) -> None:
        """Add answers, in memory until :meth:`flush`.

        Args:
            keys: ``(answers, 2)``.
            counts: ``(answers,)`` number of targets of each.
            logps: ``(targets,)`` of all of them, one after the other.
        """
        self._pending.append((keys, torch.from_numpy(counts), logps.values.float().cpu()))

    def flush(self) -> None:
        """Write what was added, atomically."""
        if not self._pending:
            return
        keys = torch.from_numpy(np.concatenate([keys for keys, *_ in self._pending]).view(np.int64))
        counts = torch.cat([counts for _, counts, _ in self._pending])
        values = torch.cat([values for *_, values in self._pending])
        content = {"keys": keys, "counts": counts, "values": values}
        metadata = {"digest": hash_tensors(content.items())}
        with explain_write_errors(self.folder, "reference log-probs"):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale_files(self.folder)
            with atomic_write(self.folder / "identity.json") as temporary:
                temporary.write_text(json.dumps(self.identity, indent=1), "utf-8")
            with atomic_write(self.folder / f"{uuid4().hex}.safetensors") as temporary, unwrap_os_errors():
                save_file(content, temporary, metadata)
        self._pending = []

    def reload(self) -> None:
        """Read what all processes have flushed; damaged files are removed, and their answers count as uncached."""
        paths = sorted(self.folder.glob("[!.]*.safetensors"))
        parts = [part for part in map(_read, paths) if part is not None]
        keys = np.concatenate([np.empty((0, 2), np.uint64), *(keys for keys, *_ in parts)])
        counts = np.concatenate([np.empty(0, np.int64), *(counts for _, counts, _ in parts)])
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # sorted for searchsorted in _find
        ordered = keys[order]
        first = np.ones(len(keys), dtype=bool)  # several processes may have scored the same answer
        first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        kept = order[first]
        self._keys, self._starts, self._counts = keys[kept], (np.cumsum(counts) - counts)[kept], counts[kept]
        self._values = np.concatenate([np.empty(0, np.float32), *(values for *_, values in parts)])

    def _find(self, keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Row of each key, and whether it is there; searched by the first 64 bits, which never collide in practice."""
        if not len(self._keys):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
        rows = np.searchsorted(self._keys[:, 0], keys[:, 0]).clip(max=len(self._keys) - 1)
        return rows, (self._keys[rows] == keys).all(axis=1)

    def _require_identity(self) -> None:
        manifest = self.folder / "identity.json"
        if not manifest.exists():
            if any(self.folder.glob("[!.]*.safetensors")):
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


def _read(path: Path) -> tuple[Keys, npt.NDArray[np.int64], npt.NDArray[np.float32]] | None:
    try:
        with safe_open(path, "pt") as file:
            content = {name: file.get_tensor(name) for name in ("keys", "counts", "values")}
            digest = (file.metadata() or {}).get("digest")
        if digest != hash_tensors(content.items()):
            raise ValueError("its content is not what was written")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        log.warning("%s is damaged (%s): it is removed, and its answers are computed again.", path, first_line(error))
        path.unlink(missing_ok=True)
        return None
    return content["keys"].numpy().view(np.uint64), content["counts"].numpy(), content["values"].numpy()
