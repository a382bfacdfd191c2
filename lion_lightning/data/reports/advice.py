"""What a person is told about the rows of a source, once at the start."""

from __future__ import annotations

from lion_lightning.data.formats.unused_columns import is_harmless
from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.sources.source import Source


def findings(notes: RowMessages, rows: int) -> list[str]:
    """What was found in the rows, an item each: for reports. What is warned of was said when the rows were read.

    Args:
        notes: What was noted.
        rows: Number of rows.
    """
    lines = [f"rows left out, {cause}: {count:,}" for cause, count in notes["left out"].items()]
    lines += [f"plain text, without a chat template: {count:,} rows" for count in notes["plain text"].values()]
    lines += [f"not used: {names}" for names in [notes.listed("unused", rows)] if names]
    lines += [f"kept for judges: {names}" for names in [notes.listed("kept", rows)] if names]
    return lines


def warnings(source: Source, notes: RowMessages, rows: int, has_chat_template: bool) -> list[str]:
    """What is likely not meant, each with what to do.

    Args:
        source: Where the rows come from.
        notes: What was noted.
        rows: Number of rows.
        has_chat_template: Whether the tokenizer has one.
    """
    told = [f"{text} ({count:,} times)" for text, count in notes["warning"].items()]
    told += [f"{count:,} of {rows:,} rows are left out: {cause}" for cause, count in notes["left out"].items()]
    doubtful = {name: count for name, count in notes["unused"].items() if not is_harmless(name)}
    if doubtful:
        told.append(
            f"not used: {RowMessages.of({'unused': doubtful}).listed('unused', rows)}. If a column matters, say with "
            "`columns` what it is, or use it in a `transform`; if not, name it in `ignore`"
        )
    plain = notes["plain text"].total()
    if plain and has_chat_template and source.format is None:
        told.append(
            f"{plain:,} of {rows:,} rows are plain text, which is read without the tokenizer's chat template. Set "
            "`format: chat` on the source to make each prompt a user's turn and each answer an assistant's, or "
            "`format: text` if plain text is meant"
        )
    return [f"source {source.label}: {line}" for line in told]
