"""Text of tokens with marks of what is trained: colors on a terminal, else (or with ``NO_COLOR``) brackets."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lion_lightning.printing import harmless

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

    from lion_lightning.types import SampleSegment

_TRAINED, _TRAINED_REASONING, _REASONING, _CONTEXT = "bold green", "bold cyan", "dim cyan", "dim"
_EXAMPLES = (
    ("trained", 1.0, False),
    ("trained with this weight", 0.5, False),
    ("trained", 1.0, True),
    ("not trained", 0.0, True),
    ("context, not trained", 0.0, False),
)


def legend(colors: bool) -> Text:
    """A line that explains the marks by themselves."""
    from rich.text import Text

    examples = []
    for words, weight, reasoning in _EXAMPLES:
        examples.append(Text())
        _add(examples[-1], words, weight, reasoning, colors)
    return Text("Marks: ") + Text("  ").join(examples)


def marked(tokenizer: PreTrainedTokenizerBase, piece: SampleSegment, colors: bool) -> Text:
    """The text of a segment, with its runs marked."""
    from rich.text import Text

    weights = targets(piece) * (np.float32(1.0) if piece.weights is None else piece.weights)
    reasoning = np.zeros(len(weights), np.bool_) if piece.reasoning is None else piece.reasoning
    tokens = zip(weights.tolist(), reasoning.tolist(), piece.input_ids.tolist(), strict=True)
    text = Text()
    for (weight, is_reasoning), run in groupby(tokens, key=lambda token: token[:2]):
        words = str(tokenizer.decode([token for *_, token in run], clean_up_tokenization_spaces=False))
        _add(text, words, weight, is_reasoning, colors)
    return text


def targets(piece: SampleSegment) -> npt.NDArray[np.bool_]:
    """Which tokens are trained; the first of a document has nothing to be predicted from."""
    return piece.supervised & ((np.arange(len(piece.input_ids)) > 0) | (piece.parent >= 0))


def _add(text: Text, words: str, weight: float, reasoning: bool, colors: bool) -> None:
    """Append words whose tokens count so much in the loss; 0 where they are context."""
    notes = [f"{weight:g}"] if weight not in (0.0, 1.0) else []
    if reasoning:
        notes.append("reasoning")
    note = f"{', '.join(notes)}: " if notes else ""
    if colors:
        style = (_TRAINED_REASONING if reasoning else _TRAINED) if weight else (_REASONING if reasoning else _CONTEXT)
        text.append(note, style=f"{style} reverse")
        text.append(harmless(words), style=style)
    else:
        opening, closing = ("[[", "]]") if weight else ("((", "))") if reasoning else ("", "")
        text.append(f"{opening}{note}{harmless(words)}{closing}")
