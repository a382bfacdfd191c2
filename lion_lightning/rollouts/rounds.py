"""A round of on-policy sampling on disk: one Arrow file with everything that was made in it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from lion_lightning.cache import atomic_write, explain_write_errors, read_object
from lion_lightning.rollouts.files import DamagedFileError, read_table, write_table
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)

WRITABLE = "set `rounds_dir` of OnPolicySampling to a folder that you can write"
"""What to do when a round cannot be written."""

SCHEMA = pa.schema(
    [
        ("where", pa.string()),
        ("text", pa.string()),
        ("messages", pa.string()),  # JSON, as are the row and the scores by judge: their forms are the user's
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
"""Columns of a round."""


@dataclass(frozen=True)
class Rollout:
    """A prompt with what was answered, how it was scored, and which pairs that gave.

    Attributes:
        prompt: What was asked.
        answers: The answers; their ``token_ids`` are set.
        group: Hash of the prompt that its pairs share.
        monitor: Whether this is one of the prompts that every round answers once and nothing is trained on. Its
            answers are this round's and, from the second round on, the first round's.
        seed: Seed that the answers were sampled with.
        scores: Score of each answer.
        by_judge: The same of each judge, where several were combined.
        pairs: Positions of chosen and rejected, a tuple a pair.
        left_out: Why there are no pairs, in a few words; empty where there are.
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


@dataclass(frozen=True)
class Round:
    """A finished round.

    Attributes:
        path: Its file, ``round-0000.arrow``.
    """

    path: Path

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Number, identity (what decided the answers: policy, sampler, judge, prompts, seed) and time of the round.

        Raises:
            ValueError: The file is no round, or is damaged (:class:`DamagedFileError`).
        """
        made: Any = self._content[1]
        if not isinstance(made, dict) or not isinstance(made.get("round"), int) or "identity" not in made:
            raise ValueError(f"{self.path}: not a round of on-policy sampling; name a folder of rounds")
        return made

    @cached_property
    def _content(self) -> tuple[Any, Any]:
        return read_table(self.path, SCHEMA)

    @property
    def number(self) -> int:
        """Which round it is: the epoch that it was sampled for."""
        return int(self.metadata["round"])

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """All that was sampled, in order."""
        return _rollouts(self.path, self._content[0])

    @property
    def summary_path(self) -> Path:
        """A JSON file beside the round, with the figures that were logged and what became of its pairs."""
        return self.path.with_suffix(".json")

    @property
    def summary(self) -> dict[str, Any]:
        """What is in that file; empty where there is none yet.

        Keys: ``metrics`` (figures by log key), ``report`` (a ``PairReport`` as a mapping, with the pairs that the data
        module's filters left out by cause under ``lost``), ``left_out`` (prompts without pairs, by cause).
        """
        if not self.summary_path.exists():
            return {}
        made = read_object(self.summary_path, "the summary of a round", "remove it, the round itself needs none")
        if not _is_summary(made):
            raise ValueError(f"{self.summary_path}: not the summary of a round; remove it, the round itself needs none")
        return made

    def pairs(self) -> int:
        """Number of pairs, before the data module's filters."""
        return sum(len(rollout.pairs) for rollout in self.rollouts)


def _is_summary(made: dict[str, Any]) -> bool:
    """Whether what is read of a summary is what was written: numbers where they are known, and counts of pairs."""
    metrics, report = made.get("metrics", {}), made.get("report", {})
    if (
        not isinstance(metrics, dict)
        or not isinstance(report, dict)
        or not isinstance(report.get("left_out", {}), dict)
    ):
        return False
    counts = [report.get("kept", {}), *report.get("left_out", {}).values()]
    if not all(isinstance(count, dict) for count in counts):
        return False
    numbers = [*metrics.values(), *(count.get("pairs", 0) for count in counts)]
    return all(value is None or isinstance(value, int | float) for value in numbers)


def round_path(folder: Path, number: int) -> Path:
    """Where a round lies."""
    return folder / f"round-{number:04}.arrow"


def find_rounds(folder: Path) -> list[Round]:
    """The finished rounds of a folder, in order."""
    return [Round(path) for path in sorted(folder.glob("round-*.arrow"))]


def set_aside(folder: Path, number: int) -> None:
    """Make room for a round where another run's, or a damaged one, lies; keep that, and all rounds that followed it.

    Args:
        folder: Folder of the rounds.
        number: The round that is going to be made.
    """
    for other in find_rounds(folder):
        if other.path < round_path(folder, number):
            continue
        why, name = _set_aside_as(other)
        aside = folder / "set_aside" / f"{other.path.stem}-{name}.arrow"
        aside.parent.mkdir(exist_ok=True)
        logger.warning("%s is %s, and is now %s", other.path, why, aside)
        if other.summary_path.exists():
            other.summary_path.replace(aside.with_suffix(".json"))
        other.path.replace(aside)


def _set_aside_as(other: Round) -> tuple[str, str]:
    try:
        return "of another policy or other settings", str(other.metadata["identity"])[:12]
    except ValueError:
        return "damaged", "damaged"


def write_summary(made: Round, summary: Mapping[str, Any]) -> None:
    """Write what :attr:`Round.summary` reads; figures that are not known become null.

    Raises:
        ValueError: The file cannot be written.
    """
    metrics = {name: None if math.isnan(value) else value for name, value in summary["metrics"].items()}
    with (
        explain_write_errors(made.summary_path, "the summary of a round", WRITABLE),
        atomic_write(made.summary_path) as temporary,
    ):
        temporary.write_text(json.dumps({**summary, "metrics": metrics}, indent=2) + "\n", "utf-8")


def write_rollouts(path: Path, rollouts: Iterable[Rollout], metadata: Mapping[str, Any] | None = None) -> None:
    """Write rollouts as one file, which is there in full or not at all.

    Args:
        path: The file.
        rollouts: What to write.
        metadata: What the file says about itself, as plain data.

    Raises:
        ValueError: The file cannot be written.
    """
    table = pa.Table.from_pylist([_to_row(rollout) for rollout in rollouts], schema=SCHEMA)
    with explain_write_errors(path, "sampled answers", WRITABLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, table, metadata)


def read_rollouts(path: Path) -> list[Rollout]:
    """Read what :func:`write_rollouts` wrote.

    Raises:
        ValueError: The file is damaged (:class:`DamagedFileError`), or is of another kind.
    """
    return _rollouts(path, read_table(path, SCHEMA)[0])


def lies_at(path: Path) -> bool:
    """Whether rollouts lie there as they were written; what is damaged is removed, to be made again."""
    try:
        return path.exists() and bool(read_table(path, SCHEMA))
    except ValueError as error:
        logger.warning("%s: removed, and made again (%s)", path, str(error).partition(": ")[2].partition(";")[0])
        path.unlink(missing_ok=True)
        return False


def _rollouts(path: Path, table: Any) -> list[Rollout]:
    try:
        return [_from_row(row) for row in table.to_pylist()]
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path}: damaged (a row is no rollout: {error})") from error


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
