"""The examples of a source that document filters choose among."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import Completion, Conversation, Example, Text
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.digests import content_digest
from lion_lightning.data.store.example_batch import Encoder

ReadExample = Example | PromptAnswers
"""An example as it was read from its row, before it is tokenized."""


@dataclass(frozen=True)
class Candidates:
    """Unique examples of one source.

    Attributes:
        source: Where they come from.
        digests: ``(examples, 2)`` 128-bit hash of each; of a prompt of online training the hash of its group.
        read: Reads all examples from the beginning, in this order. Each call reads the source again.
        places: Places of the raw rows of some examples, by their positions.
    """

    source: Source
    digests: npt.NDArray[np.uint64]
    read: Callable[[], Iterator[ReadExample]]
    places: Callable[[Sequence[int]], list[str]]

    @classmethod
    def of(cls, selection: Selection, encoder: Encoder) -> Candidates:
        """The examples of a tokenized source, whose text is read from the source again."""
        rows = selection.spans.examples
        return cls(
            selection.source,
            selection.table.digests[rows],
            partial(_read_again, selection, encoder),
            lambda positions: [selection.table.where(int(rows[position])) for position in positions],
        )

    @classmethod
    def of_block(cls, selection: Selection, examples: Sequence[ReadExample]) -> Candidates:
        """The examples of a block of rows that have just been read, among all ``examples`` of the block."""
        rows = selection.spans.examples.tolist()
        return cls(
            selection.source,
            selection.table.digests[rows],
            lambda: (examples[row] for row in rows),
            lambda positions: [selection.table.where(rows[position]) for position in positions],
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.digests)

    @property
    def digest(self) -> str:
        """Hash of the examples' contents, in their order."""
        return blake2b(self.digests.tobytes(), digest_size=16).hexdigest()

    def user_texts(self) -> Iterator[tuple[str, ...]]:
        """Texts of the user in each example: the user's turns, the prompt of plain text, or a text without a prompt."""
        return map(user_texts, self.read())


def user_texts(example: ReadExample) -> tuple[str, ...]:
    """Texts of the user in one example; see :meth:`Candidates.user_texts`."""
    if isinstance(example, PromptAnswers):
        example = example.answers[0]  # all have the same prompt
        if isinstance(example, Conversation):
            example = example._replace(messages=example.messages[: example.prompt_turns])
    if isinstance(example, Conversation):
        return tuple(turn.content for turn in example.messages if turn.role == "user")
    if isinstance(example, Text):
        return (example.text,)
    assert isinstance(example, Completion)
    return (example.prompt or example.completion,)


def _read_again(selection: Selection, encoder: Encoder) -> Iterator[ReadExample]:
    """Read the examples of a selection once more, without those of the table that it has not.

    Raises:
        ValueError: The source gives other examples now.
    """
    source, digests = selection.source, selection.table.digests
    wanted = np.zeros(len(digests), np.bool_)
    wanted[selection.spans.examples] = True
    rows, number = source.open(), 0
    chosen = source.choose(len(rows))
    for row in tqdm(rows.take(chosen), f"filter {source.label}", len(chosen), unit=" rows", delay=2):
        try:
            examples = source.examples(row, encoder.read)
        except ValueError:
            if source.on_bad_row == "error":
                raise
            continue
        for example in examples:
            # A row that could be read but not encoded was left out, so that it has no example in the table.
            known = number < len(digests)
            if source.on_bad_row == "skip" and not (known and digests[number].tobytes() == content_digest(example)):
                continue
            if known and wanted[number]:
                yield example
            number += 1
    if number != len(digests):
        raise ValueError(
            f"source {source.label}: its rows give {number} examples, and gave {len(digests)} when they were "
            "tokenized; leave the files alone while a run starts, and have a transform give the same rows each time"
        )
