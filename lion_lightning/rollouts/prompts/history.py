"""History of each prompt in the rounds on disk: how often it was asked, and what a curriculum measured."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lion_lightning.rollouts.files import RESTORE
from lion_lightning.rollouts.prompts.curriculum import Curriculum
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.rollouts.rounds import Round, find_rounds, round_path

logger = logging.getLogger(__name__)


class PromptHistory:
    """History of the prompts of a run in its earlier rounds. Each round is read once; those that were set aside, never.

    Args:
        curriculum: What is measured; None for nothing.

    Raises:
        ValueError: A round of the curriculum's folder is damaged, there is none, or none measures anything.
    """

    def __init__(self, curriculum: Curriculum | None = None) -> None:
        self.curriculum = curriculum
        self._read: set[Path] = set()
        self._asked: Counter[bytes] = Counter()
        self._measured: dict[bytes, float] = {}
        if curriculum is not None and curriculum.rounds is not None:
            folder = Path(curriculum.rounds)
            for finished in find_rounds(folder):
                self._measure(finished, curriculum)
            if not self._measured:
                name = f"{type(curriculum).__name__}.rounds"
                raise ValueError(
                    f"{folder}: no round there measures a prompt; name a folder of judged rounds as {name}"
                )

    def read(self, folder: Path, numbers: Iterable[int]) -> None:
        """Read the rounds of this run with these numbers, unless they were read.

        Raises:
            ValueError: One is missing or damaged.
        """
        for number in numbers:
            path = round_path(folder, number)
            if path in self._read:
                continue
            if not path.exists():
                why = "and which prompts it asked decides what later rounds ask"
                raise ValueError(f"{path}: gone, {why}; {RESTORE}")
            finished = Round(path)
            self._asked.update(judged.group for judged in finished.judged())
            if self.curriculum is not None:
                self._measure(finished, self.curriculum)
            self._read.add(path)

    def _measure(self, finished: Round, curriculum: Curriculum) -> None:
        for judged in finished.judged():
            measured = curriculum.measure(judged)
            if measured is not None:
                self._measured[judged.group] = measured

    def rest(self, positions: Sequence[int], pool: PromptPool) -> list[int]:
        """Prompts of a run that no round has asked yet, in the order in which they are to be asked.

        Args:
            positions: All prompts of the run, as positions in the pool; one may come several times.
            pool: The pool.
        """
        # A prompt that is to be asked three times and was asked twice is left once.
        seen: Counter[bytes] = Counter()
        left = []
        for position in positions:
            group = pool.group(position)
            seen[group] += 1
            if seen[group] > self._asked[group]:
                left.append(position)
        return sorted(left, key=lambda position: self._place(pool.group(position)))  # a stable sort

    def warn_of_unwanted(self, positions: Sequence[int], pool: PromptPool, number: int) -> None:
        """Warn of prompts of a round that are only asked because no others are left."""
        unwanted = sum(self._place(pool.group(position)) == math.inf for position in positions)
        if unwanted:
            logger.warning(
                "round %d: %s would not ask %d of its %d prompts, but no others are left; end the run sooner, or give "
                "data.prompts more sources",
                *(number, type(self.curriculum).__name__, unwanted, len(positions)),
            )

    def _place(self, group: bytes) -> float:
        return 0.0 if self.curriculum is None else self.curriculum.place(self._measured.get(group))
