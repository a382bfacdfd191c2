"""A prompt with its sampled answers, their scores and pairs, and the files that hold many of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from lion_lightning.cache import explain_write_errors
from lion_lightning.rollouts.files import DamagedFileError, read_table, write_table
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)

WRITABLE = "set `rounds_dir` of OnPolicySampling to a folder that you can write"
"""How to fix a round that cannot be written."""

SCHEMA = pa.schema(
    [
        ("where", pa.string()),
        ("text", pa.string()),
        ("messages", pa.string()),  # JSON, like row and by_judge: users decide what these hold
        ("row", pa.string()),
        ("original", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("group", pa.binary(16)),
        ("monitor", pa.bool_()),
        ("seed", pa.int64()),
        ("answers", pa.list_(pa.string())),
        ("finish_reasons", pa.list_(pa.string())),
        ("token_ids", pa.list_(pa.list_(pa.int32()))),
        ("scores", pa.list_(pa.float64())),
        ("by_judge", pa.string()),
        ("pairs", pa.list_(pa.list_(pa.int32()))),
        ("left_out", pa.string()),
    ]
)
"""Columns of a file of rollouts."""


@dataclass(frozen=True)
class Rollout:
    """A prompt with its answers, their scores and the pairs they make.

    Attributes:
        prompt: The prompt.
        answers: The answers; their ``token_ids`` are set.
        group: 16-byte hash of the prompt, which its pairs share.
        monitor: Marks a monitor prompt: every round samples one answer, and none is trained on. From the second round
            on, the first round's answer follows the new one.
        seed: Seed that the answers were sampled with.
        scores: Score of each answer.
        by_judge: Scores by judge, where several were combined.
        pairs: Positions of chosen and rejected answer, a tuple per pair.
        left_out: Why there are no pairs, in a few words; empty if there are pairs.
    """

    prompt: Prompt
    answers: tuple[Answer, ...] = ()
    group: bytes = bytes(16)
    monitor: bool = False
    seed: int = 0
    scores: tuple[float, ...] = ()
    by_judge: Mapping[str, Sequence[float]] = field(default_factory=dict)
    pairs: tuple[tuple[int, int], ...] = ()
    left_out: str = ""


def write_rollouts(path: Path, rollouts: Iterable[Rollout], metadata: Mapping[str, Any] | None = None) -> None:
    """Write rollouts to one file, atomically.

    Args:
        path: The file.
        rollouts: What to write.
        metadata: Plain data about them.

    Raises:
        ValueError: The file cannot be written.
    """
    table = pa.Table.from_pylist([_to_row(rollout) for rollout in rollouts], schema=SCHEMA)
    with explain_write_errors(path, "sampled answers", WRITABLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, table, metadata)


def read_rollouts(path: Path) -> list[Rollout]:
    """Read the rollouts of a file.

    Raises:
        ValueError: The file is damaged (:class:`DamagedFileError`) or of another kind.
    """
    return to_rollouts(path, read_table(path, SCHEMA)[0])


def to_rollouts(path: Path, table: Any) -> list[Rollout]:
    """The rows of a table as rollouts.

    Args:
        path: File of the table, for error messages.
        table: With the columns of :data:`SCHEMA`.

    Raises:
        DamagedFileError: A row is not a rollout.
    """
    try:
        return [_from_row(row) for row in table.to_pylist()]
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path}: damaged (a row is not a rollout: {error})") from error


def has_rollouts(path: Path) -> bool:
    """True if the file exists and is intact; a damaged file is removed, so that it is made again."""
    try:
        return path.exists() and bool(read_table(path, SCHEMA))
    except ValueError as error:
        reason = str(error).partition(": ")[2].partition(";")[0]
        logger.warning("%s: removed, and will be made again (%s)", path, reason)
        path.unlink(missing_ok=True)
        return False


def _to_row(rollout: Rollout) -> dict[str, Any]:
    prompt, answers = rollout.prompt, rollout.answers
    return {
        "where": prompt.where,
        "text": prompt.text,
        "messages": json.dumps(prompt.messages, default=str),
        "row": json.dumps(dict(prompt.row), default=str),
        "original": prompt.original,
        "prompt_ids": prompt.input_ids,
        "group": rollout.group,
        "monitor": rollout.monitor,
        "seed": rollout.seed,
        "answers": [answer.text for answer in answers],
        "finish_reasons": [answer.finish_reason for answer in answers],
        "token_ids": [answer.token_ids for answer in answers],
        "scores": rollout.scores,
        "by_judge": json.dumps({name: list(scores) for name, scores in rollout.by_judge.items()}),
        "pairs": rollout.pairs,
        "left_out": rollout.left_out,
    }


def _from_row(row: Mapping[str, Any]) -> Rollout:
    columns = zip(row["answers"], row["finish_reasons"], row["token_ids"], strict=True)
    return Rollout(
        prompt=Prompt(
            text=row["text"],
            input_ids=tuple(row["prompt_ids"]),
            messages=tuple(json.loads(row["messages"])),
            row=json.loads(row["row"]),
            original=row["original"],
            where=row["where"],
        ),
        answers=tuple(Answer(text, reason, ids and tuple(ids)) for text, reason, ids in columns),
        group=row["group"],
        monitor=row["monitor"],
        seed=row["seed"],
        scores=tuple(row["scores"]),
        by_judge={name: tuple(scores) for name, scores in json.loads(row["by_judge"]).items()},
        pairs=tuple((chosen, rejected) for chosen, rejected in row["pairs"]),
        left_out=row["left_out"],
    )
