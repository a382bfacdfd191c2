"""The file of a learning record: losses of documents before training and after each epoch, found by content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.errors import first_line

_VERSION = 1
_COLUMNS = {"digest": pa.binary(16), "where": pa.string(), "targets": pa.int64()}
_KEY = b"learning_record"  # of the manifest in the file's metadata
_FIX = "name a file that the callback LearningRecord has written"

Floats = npt.NDArray[np.float64]


class Moment(NamedTuple):
    """When losses were taken.

    Attributes:
        step: Optimizer steps that were done by then.
        share: Share of the epoch's batches that was trained by then: 1 unless the run or a limit cut the epoch short.
    """

    step: int
    share: float


@dataclass(frozen=True)
class RecordedLosses:
    """Losses of documents at several moments: before training, and after each epoch.

    Attributes:
        weights: Hash of the weights before training.
        moments: When the losses were taken.
        digests: ``(documents, 2)`` 128-bit hash of each document's content, which no tokenizer decides.
        places: Place of the raw row that each was made from.
        targets: ``(documents,)`` number of targets that each loss is the sum over; 0 where nothing was trained.
        nll: ``(moments, documents)`` sum of the negative log-probs of the targets, in nats.
    """

    weights: str
    moments: tuple[Moment, ...]
    digests: npt.NDArray[np.uint64]
    places: Sequence[str]
    targets: npt.NDArray[np.int64]
    nll: Floats

    @property
    def epochs(self) -> int:
        """Epochs after which losses were taken."""
        return len(self.moments) - 1

    def first(self, moments: int) -> RecordedLosses:
        """The first so many moments alone."""
        return replace(self, moments=self.moments[:moments], nll=self.nll[:moments])

    def take(self, rows: npt.NDArray[np.int64]) -> RecordedLosses:
        """The documents of these rows, in this order."""
        places = [self.places[row] for row in rows.tolist()]
        return replace(
            self, digests=self.digests[rows], places=places, targets=self.targets[rows], nll=self.nll[:, rows]
        )

    def taken(self, moment: Moment, nll: Floats) -> RecordedLosses:
        """The same with the losses, ``(documents,)``, of one moment more."""
        return replace(self, moments=(*self.moments, moment), nll=np.concatenate([self.nll, nll[None]]))

    def content(self) -> list[str]:
        """A hash for each moment, of its losses and of the documents: what a resumed run finds its own file by."""
        documents = blake2b(self.digests.tobytes() + self.targets.tobytes(), digest_size=16)
        hashes = []
        for moment, losses in zip(self.moments, self.nll, strict=True):
            found = documents.copy()
            found.update(f"{moment.step} {moment.share!r}".encode() + losses.tobytes())
            hashes.append(found.hexdigest())
        return hashes

    def write(self, path: Path) -> None:
        """Write the file; one of the same name is replaced at once or not at all.

        Raises:
            ValueError: It cannot be written.
        """
        columns = [
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), len(self.digests), [None, pa.py_buffer(np.ascontiguousarray(self.digests))]
            ),
            pa.array(self.places, pa.string()),
            pa.array(self.targets),
            *map(pa.array, self.nll),
        ]
        manifest = {
            "version": _VERSION,
            "weights": self.weights,
            "moments": [moment._asdict() for moment in self.moments],
            "content": self.content(),
        }
        schema = _schema(len(self.moments)).with_metadata({_KEY: json.dumps(manifest)})
        fix = "make room, or name another trainer.default_root_dir"
        with (
            explain_write_errors(path, "the learning record", fix),
            atomic_write(path) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, schema) as writer,
        ):
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    @classmethod
    def read(cls, path: str | Path) -> RecordedLosses:
        """Read a file.

        Raises:
            ValueError: It is not there, or is not what was written.
        """
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            table.validate(full=True)
            return _parsed(table)
        except FileNotFoundError as error:
            raise ValueError(f"{path}: there is no learning record; {_FIX}") from error
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: damaged, or not a learning record ({first_line(error)}); {_FIX}") from error


def _schema(moments: int) -> Any:
    losses = {f"nll_{number}": pa.float64() for number in range(moments)}
    return pa.schema({**_COLUMNS, **losses})


def _parsed(table: Any) -> RecordedLosses:
    """The losses of a table, compared with its manifest."""
    manifest = json.loads((table.schema.metadata or {})[_KEY])
    if manifest["version"] != _VERSION or not isinstance(manifest["weights"], str):
        raise ValueError("another version's")
    moments = tuple(Moment(int(each["step"]), float(each["share"])) for each in manifest["moments"])
    if not moments or not table.schema.equals(_schema(len(moments))) or any(c.null_count for c in table.columns):
        raise ValueError("it has other columns")
    digests, places, targets, *losses = (column.combine_chunks() for column in table.columns)
    found = RecordedLosses(
        manifest["weights"],
        moments,
        np.frombuffer(b"".join(digests.to_pylist()), np.uint64).reshape(-1, 2),
        places.to_pylist(),
        targets.to_numpy(),
        np.stack([column.to_numpy() for column in losses]),
    )
    if found.content() != manifest["content"]:
        raise ValueError("its content is not what was written")
    return found
