"""Log-probs of pairs under one model, on disk, found by the pairs' content."""

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
from lion_lightning.ops.logprobs import pair_segments
from lion_lightning.types import AnswerLogps, PackedBatch, PairLogps

log = logging.getLogger(__name__)

STORE_VERSION = 1
"""Raise it when the same model and pair give other values: older stores are then no longer found."""

Keys = npt.NDArray[np.uint64]
_FIELDS = len(AnswerLogps._fields)


def pair_keys(batch: PackedBatch) -> Keys:
    """128-bit hash of each pair: its tokens, and which of them are targets. ``(pairs, 2)``."""
    host = batch.on_cpu()
    ids, logit_positions = host.input_ids.numpy(), host.logit_positions.numpy()
    # Targets are sorted by segment: those of segment i are bounds[i] to bounds[i + 1].
    bounds = np.searchsorted(host.target_segments.numpy(), np.arange(len(batch.segments) + 1))
    digests = []
    for pair in pair_segments(batch):
        state = blake2b(digest_size=16)
        for number in pair:
            start, stop = batch.segments[number].start, batch.segments[number].stop
            targets = logit_positions[bounds[number] : bounds[number + 1]] - start
            state.update(np.array([stop - start, len(targets), *ids[start:stop], *targets], np.int64).tobytes())
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


class PairStore:
    """Log-probs of pairs under one model. Several processes may add to it; each flush writes a new file.

    Args:
        folder: Folder of the store; made on the first flush.
        identity: Plain data that the values depend on; another identity is another store.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, {"version": STORE_VERSION, **identity}
        self._pending: list[tuple[Keys, Tensor]] = []
        self._keys: Keys = np.empty((0, 2), np.uint64)
        self._values = torch.empty(0, 2, _FIELDS)
        self._require_identity()
        self.reload()

    def __len__(self) -> int:
        """Number of pairs on disk, as of the last :meth:`reload`."""
        return len(self._keys)

    def has(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """True for each pair that is in the store, ``(pairs,)``."""
        return self._find(keys)[1]

    def get(self, keys: Keys, device: torch.device | str = "cpu") -> PairLogps:
        """Log-probs of pairs, by their keys ``(pairs, 2)``; a ValueError if one is not there."""
        rows, found = self._find(keys)
        if not found.all():
            raise ValueError(
                f"{self.folder}: no reference log-probs for {int((~found).sum())} of the batch's {len(keys)} pairs; "
                "precompute all pairs first (CachedReference.precompute), and give all ranks the same `cache_dir`"
            )
        values = self._values[torch.from_numpy(rows)].to(device, non_blocking=True)
        return PairLogps(*(AnswerLogps(*side.unbind(1)) for side in values.unbind(1)))

    def add(self, keys: Keys, logps: PairLogps) -> None:
        """Add pairs, in memory until :meth:`flush`."""
        values = torch.stack([torch.stack(list(side), 1) for side in logps], 1)  # (pairs, 2, fields)
        self._pending.append((keys, values.float().cpu()))

    def flush(self) -> None:
        """Write what was added, atomically."""
        if not self._pending:
            return
        keys = torch.from_numpy(np.concatenate([keys for keys, _ in self._pending]).view(np.int64))
        values = torch.cat([values for _, values in self._pending])
        metadata = {"digest": hash_tensors({"keys": keys, "values": values}.items())}
        with explain_write_errors(self.folder, "reference log-probs"):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale_files(self.folder)
            with atomic_write(self.folder / "identity.json") as temporary:
                temporary.write_text(json.dumps(self.identity, indent=1), "utf-8")
            with atomic_write(self.folder / f"{uuid4().hex}.safetensors") as temporary, unwrap_os_errors():
                save_file({"keys": keys, "values": values}, temporary, metadata)
        self._pending = []

    def reload(self) -> None:
        """Read what all processes have flushed; damaged files are removed, and their pairs count as uncached."""
        paths = sorted(self.folder.glob("[!.]*.safetensors"))
        parts = [part for part in map(_read, paths) if part is not None]
        keys = np.concatenate([np.empty((0, 2), np.uint64), *(keys for keys, _ in parts)])
        values = torch.cat([torch.empty(0, 2, _FIELDS), *(values for _, values in parts)])
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # sorted for searchsorted in _find
        ordered = keys[order]
        first = np.ones(len(keys), dtype=bool)  # several processes may have scored the same pair
        first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        self._keys, self._values = ordered[first], values[torch.from_numpy(order[first])]

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


def _read(path: Path) -> tuple[Keys, Tensor] | None:
    try:
        with safe_open(path, "pt") as file:
            keys, values = file.get_tensor("keys"), file.get_tensor("values")
            digest = (file.metadata() or {}).get("digest")
        if digest != hash_tensors({"keys": keys, "values": values}.items()):
            raise ValueError("its content is not what was written")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        log.warning("%s is damaged (%s): it is removed, and its pairs are computed again.", path, first_line(error))
        path.unlink(missing_ok=True)
        return None
    return keys.numpy().view(np.uint64), values
