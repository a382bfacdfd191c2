"""Trajectories: conversations of one turn or several, each with a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.data.encoding.trees import TreeEncoder
from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import Conversation, Text, recognize
from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.reports.tree_reports import TreeReport
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.spans import Spans
from lion_lightning.data.selection.tree_filters import TreeFilters
from lion_lightning.data.selection.trees import cut, join
from lion_lightning.data.sources.source import Source
from lion_lightning.data.trees import TreeDataModule
from lion_lightning.models.tokenizer import TokenizerSpec


class TrajectoryEncoder(TreeEncoder):
    """A prompt, and all that follows it as its one answer, whose value is the reward."""

    @override
    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[PromptAnswers]:
        own = columns.get("reward", "reward")
        example = recognize(
            {name: value for name, value in row.items() if name != own},
            {name: column for name, column in columns.items() if name != "reward"},
        )
        if isinstance(example, Text):
            raise ValueError("a text has no actions; give the row a prompt and a completion, or messages")
        if isinstance(example, Conversation) and example.prompt_turns is None:
            roles = [turn.role for turn in example.messages]
            example = example._replace(prompt_turns=roles.index("assistant"))
        return [PromptAnswers((example,), (_reward(row, own),))]


@dataclass(frozen=True)
class TrajectoryReport(TreeReport):
    """Counts of one source of trajectories.

    Attributes:
        rewarded: Trajectories of one epoch with a reward above 0.
    """

    noun: ClassVar[str] = "trajectories"
    kind: ClassVar[str] = "trajectories"

    rewarded: int

    @classmethod
    @override
    def lengths(cls, spans: Spans) -> dict[str, Any]:
        return {"rewarded": int((spans.values > 0).sum())}

    @override
    def units(self) -> str:
        return f"{self.answers:,} trajectories ({self.rewarded:,} with a reward) from {self.prompts:,} prompts"


@dataclass(frozen=True)
class TrajectoryFilters(TreeFilters):
    """Truncate prompts, and leave out trajectories that are too long: their reward lies in what would be cut off.

    Args:
        max_length: Most tokens of a prompt with its trajectory.
        max_prompt_length: Most tokens of a prompt; None for no other limit.
        keep: Which end of a prompt that is too long stays: ``start`` or ``end``.
    """

    report: ClassVar[type[SourceReport]] = TrajectoryReport

    @override
    def apply(self, selection: Selection) -> Selection:
        selection = self.truncate_prompts(selection)
        fitting = selection.spans.lengths <= self.max_length
        selection = selection.filter(fitting, f"longer than {self.max_length} tokens")
        return selection.filter_answers(selection.targets > 0, "no supervised token")

    @override
    def arrange(self, selection: Selection, row_length: int | None = None) -> Selection:
        return cut(join(selection), row_length)

    @override
    def problems(self, reports: Sequence[SourceReport]) -> list[str]:
        found = [report for report in reports if isinstance(report, TrajectoryReport) and report.answers]
        if not found or any(report.rewarded for report in found):
            return []
        names = ", ".join(report.name for report in found)
        return [
            f"data.sources ({names}): all rewards are 0, so there is nothing to learn; add trajectories with others"
        ]


class TrajectoryDataModule(TreeDataModule):
    """Packed rows of trajectories: a prompt, all turns that follow it, and the reward at their end. Experimental.

    >>> data = TrajectoryDataModule([Source("games.jsonl")], TokenizerSpec("smollm2"), max_length=1024)

    Reads the rows of :class:`~lion_lightning.data.sft.SFTDataModule` with one more column, ``reward``, from 0 to 1.
    All assistant turns behind the prompt are actions; other turns are the environment. Trajectories from one prompt
    share a tree, and so its computation.

    Args:
        sources: Sources to train on.
        tokenizer: A tokenizer, or how to load one; in a config it is taken from the model.
        **kwargs: Further arguments of :class:`~lion_lightning.data.trees.TreeDataModule`.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self, sources: list[Source], tokenizer: TokenizerSpec | PreTrainedTokenizerBase, **kwargs: Any
    ) -> None:
        super().__init__(
            sources=sources,
            tokenizer=tokenizer,
            make_filters=TrajectoryFilters,
            make_validation_filters=TrajectoryFilters,
            **kwargs,
        )

    @override
    def make_encoder(self) -> TrajectoryEncoder:
        return TrajectoryEncoder(self.tokenizer, self.train_reasoning)


def _reward(row: Mapping[str, Any], column: str) -> float:
    reward = row.get(column)
    if reward is None:
        raise ValueError(
            f"the row has no {column!r}, and a trajectory has a reward; say with `columns` which column `reward` is"
        )
    if not isinstance(reward, int | float) or not 0 <= reward <= 1:
        raise ValueError(
            f"{column} is {reward!r}; give a number from 0 to 1, since it is learned as a share of a probability: of "
            "rewards from a to b take (reward - a) / (b - a) (with a `transform`)"
        )
    return float(reward)
