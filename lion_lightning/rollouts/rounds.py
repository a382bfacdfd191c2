"""Rounds of on-policy sampling on disk: one Arrow file each, with prompts, answers, scores and pairs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lion_lightning.cache import atomic_write, explain_write_errors, hash_json, read_object
from lion_lightning.printing import without_secrets
from lion_lightning.rollouts.files import RESTORE, WRITABLE, OtherVersionError, read_table, to_rollouts
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)


class JudgedPrompt(NamedTuple):
    """A prompt that a round asked, with scores and without texts.

    Attributes:
        group: Hash of the prompt.
        scores: Score of each sampled answer; empty for a prompt that was too long to be asked.
        right: Whether each is right; empty where no verifier says so.
    """

    group: bytes
    scores: tuple[float, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True)
class Round:
    """A finished round.

    Attributes:
        path: Its file, ``round-0000.arrow``.
    """

    path: Path

    @cached_property
    def _content(self) -> tuple[Any, Any]:
        return read_table(self.path)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Number, ``identity`` (its hash, see :func:`round_settings`) and settings of the round.

        Raises:
            ValueError: The file is not a round, or is damaged (:class:`DamagedFileError`).
        """
        found: Any = self._content[1]
        if not isinstance(found, dict) or not isinstance(found.get("round"), int) or "identity" not in found:
            raise ValueError(f"{self.path}: not a round of on-policy sampling; name a folder of rounds")
        return found

    @property
    def number(self) -> int:
        """The epoch that the round was sampled for."""
        return int(self.metadata["round"])

    @property
    def identity(self) -> str | None:
        """Hash of all that decides the round; None if the file is missing, damaged or not a round."""
        try:
            return str(self.metadata["identity"])
        except (ValueError, FileNotFoundError):
            return None

    @property
    def problem(self) -> str:
        """Why it has no identity: ``gone``, ``damaged`` or ``of another version``; empty if it has one."""
        try:
            return "" if self.metadata else "damaged"
        except FileNotFoundError:
            return "gone"
        except OtherVersionError:
            return "of another version"
        except ValueError:
            return "damaged"

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """All prompts with their answers, in order."""
        return to_rollouts(self.path, self._content[0])

    def judged(self) -> Iterator[JudgedPrompt]:
        """The prompts to train on, in order, with what was said of their sampled answers."""
        columns = ("group", "monitor", "num_added", "scores", "right")
        for row in self._content[0].select(columns).to_pylist():
            if not row["monitor"]:
                # The last answers were added: the row's own, or that of the first round.
                sampled = slice(len(row["scores"]) - row["num_added"])
                yield JudgedPrompt(row["group"], tuple(row["scores"][sampled]), tuple(row["right"][sampled]))

    @property
    def num_pairs(self) -> int:
        """Number of pairs, before the data module's filters."""
        return sum(len(rollout.pairs) for rollout in self.rollouts if not rollout.left_out)

    @property
    def num_groups(self) -> int:
        """Number of prompts with two or more usable answers, before the data module's filters."""
        return sum(len(rollout.usable) > 1 for rollout in self.rollouts if not rollout.left_out)

    @property
    def items(self) -> str:
        """Items that an epoch trains on: ``pairs`` or ``groups``."""
        return str(self.metadata.get("items", "pairs"))

    @property
    def num_items(self) -> int:
        """Number of these, before the data module's filters."""
        return self.num_groups if self.items == "groups" else self.num_pairs

    @property
    def shapings(self) -> set[str]:
        """Parts of the scores that are not a judge's but those of reward shaping."""
        found = self.metadata.get("shaping")
        return {str(one.get("shaping")) for one in found if isinstance(one, dict)} if isinstance(found, list) else set()

    @property
    def summary_path(self) -> Path:
        """JSON file next to the round, with its logged metrics and the report on its pairs."""
        return self.path.with_suffix(".json")

    @property
    def summary(self) -> dict[str, Any]:
        """Content of the summary file; empty if there is none yet.

        Keys: ``metrics`` (by log key; null where unknown) and ``report`` (a ``PairReport`` or ``GroupReport`` as a
        mapping: what the data module's filters kept and left out).
        """
        if not self.summary_path.exists():
            return {}
        fix = "remove it, the round does not need it"
        found = read_object(self.summary_path, "the summary of a round", fix)
        if not _is_summary(found):
            raise ValueError(f"{self.summary_path}: not the summary of a round; {fix}")
        return found

    @property
    def logged_metrics(self) -> dict[str, float]:
        """Metrics of the summary, NaN where unknown; empty if it cannot be read."""
        try:
            metrics = self.summary.get("metrics", {})
        except ValueError:
            return {}
        return {name: math.nan if value is None else value for name, value in metrics.items()}

    def write_summary(self, metrics: Mapping[str, float], report: Mapping[str, Any]) -> None:
        """Write the file that :attr:`summary` reads."""
        # JSON has no NaN.
        plain = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        text = json.dumps({"report": report, "metrics": plain}, indent=2)
        with (
            explain_write_errors(self.summary_path, "the summary of a round", WRITABLE),
            atomic_write(self.summary_path) as temporary,
        ):
            temporary.write_text(text + "\n", "utf-8")


def round_path(folder: Path, number: int) -> Path:
    """File of a round."""
    return folder / f"round-{number:04}.arrow"


def find_rounds(folder: Path) -> list[Round]:
    """The finished rounds of a folder, in order."""
    return [Round(path) for path in sorted(folder.glob("round-*.arrow"))]


def first_monitor_answers(folder: Path, number: int) -> dict[bytes, Answer]:
    """Answers of the first round to the monitor prompts, by ``group``; empty for the first round itself."""
    first = round_path(folder, 0)
    if number == 0 or not first.exists():
        return {}
    answers = {}
    for rollout in Round(first).rollouts:
        if rollout.monitor:
            answers[rollout.group] = rollout.answers[0]
    return answers


def round_settings(
    sampling: Mapping[str, Any], policy_digest: str, prompts: Sequence[Prompt], max_prompt_length: int
) -> dict[str, Any]:
    """All that decides a round, as plain data. Rounds with equal settings are equal; their hash is the identity."""
    # Judges may read any column of a row.
    content = [[prompt.text, prompt.input_ids, dict(prompt.row)] for prompt in prompts]
    return {
        **sampling,
        "policy": policy_digest,
        "prompts": hash_json(content),
        "max_prompt_length": max_prompt_length,
    }


def identity_of(part: Any) -> Any:
    """Plain data that stands for a setting: a part's ``identity()`` if it has one, else its class path.

    It is stored with the round, so secrets are masked.
    """
    if part is None or isinstance(part, str | int | float):
        return part
    if isinstance(part, list):
        return [identity_of(one) for one in part]
    if not hasattr(part, "identity"):
        return f"{type(part).__module__}.{type(part).__qualname__}"
    return json.loads(json.dumps(without_secrets(part.identity()), default=str))


def kept_items(report: Mapping[str, Any], items: str) -> float:
    """Pairs or groups of a round that the filters kept, by a report of its summary; NaN where that is unknown."""
    found = report.get("prompts") if items == "groups" else report.get("kept", {}).get("pairs")
    return math.nan if found is None else float(found)


def kept_metrics(report: Mapping[str, Any], items: str, made: float) -> dict[str, float]:
    """Share of the pairs or groups made that the filters kept, and how many kept groups have equal scores, if any."""
    metrics = {f"{items}_kept": kept_items(report, items) / max(made, 1) if report else 0.0}
    return metrics | ({"groups_equal": float(report["equal"])} if report.get("equal") else {})


def restored_round(path: Path, identity: str) -> Round:
    """The round within which a checkpoint was saved. It cannot be sampled again, since its policy is gone."""
    stored = Round(path)
    if stored.identity == identity:
        return stored
    problem = stored.problem or "another now"
    raise ValueError(f"{path}: the checkpoint stands within this round, which is {problem}; {RESTORE}")


def set_aside(folder: Path, number: int, reason: str) -> None:
    """Move a round, and all that followed it, to ``set_aside``, to make room for a new one of its number."""
    for stored in find_rounds(folder):
        if stored.path < round_path(folder, number):
            continue
        # By identity, so that rounds of one number that were set aside do not replace each other.
        name = stored.identity[:12] if stored.identity else stored.problem.removeprefix("of ").replace(" ", "-")
        target = folder / "set_aside" / f"{stored.path.stem}-{name}.arrow"
        target.parent.mkdir(exist_ok=True)
        logger.warning("%s is %s; moved to %s", stored.path, stored.problem or reason, target)
        if stored.summary_path.exists():
            stored.summary_path.replace(target.with_suffix(".json"))
        stored.path.replace(target)


def _is_summary(found: dict[str, Any]) -> bool:
    """True for numbers (or null) by name, and counts by cause."""
    metrics, report = found.get("metrics", {}), found.get("report", {})
    if not isinstance(metrics, dict) or not isinstance(report, dict):
        return False
    if not isinstance(report.get("left_out", {}), dict):
        return False
    numbers = [*metrics.values(), report.get("prompts")]
    for count in (report.get("kept", {}), *report.get("left_out", {}).values()):
        if not isinstance(count, dict):
            return False
        numbers += count.values()
    return all(value is None or isinstance(value, int | float) for value in numbers)
