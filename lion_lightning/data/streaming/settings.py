"""Settings of streamed sources, and refusals of what needs the entire set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lion_lightning.data.sources.source import Source

MixBy = Literal["tokens", "rows"]


@dataclass(frozen=True)
class StreamSettings:
    """How streamed sources are mixed, shuffled and packed.

    Args:
        window: Documents that are shuffled and packed together. More of them shuffle better and take more memory, and
            a resumed run encodes up to as many again.
        remember: Documents whose content is remembered: a duplicate of one of the last so many is left out, one that
            comes later is missed. 0 looks for none.
        mix_by: What the weights of the sources share out: ``tokens`` or ``rows`` (documents).

    Raises:
        ValueError: A setting is not valid.
    """

    window: int = 4096
    remember: int = 1_000_000
    mix_by: MixBy = "tokens"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.window < 1:
            raise ValueError(f"data.stream.window is {self.window}; give at least 1 document")
        if self.remember < 0:
            raise ValueError(f"data.stream.remember is {self.remember}; give a number of documents, 0 for none")
        if self.mix_by not in get_args(MixBy):
            raise ValueError(f"data.stream.mix_by is {self.mix_by!r}; choose tokens or rows")

    def duplicates(self) -> str:
        """Duplicates that the search misses, for the log."""
        if not self.remember:
            return "duplicates are not looked for (data.stream.remember: 0)"
        wrong = self.remember * 2.0**-64
        return (
            f"duplicates are found among the last {self.remember:,} documents (data.stream.remember); one farther back "
            f"is missed and trained again, and a new document is taken for one with a chance of {wrong:.0e}"
        )


def streamed_settings(
    stream: StreamSettings | None,
    sources: Sequence[Source],
    validation: Sequence[Source] | None,
    validation_share: float,
) -> StreamSettings | None:
    """The settings of a stream; None where no source streams.

    Raises:
        ValueError: Some stream and others do not, or something is asked for that needs all rows of a set.
    """
    for source in [*sources, *(validation or ())]:
        require_streamable(source)
    for source in validation or ():
        if source.streaming:
            raise ValueError(
                f"data.validation: source {source.label} streams, and each validation runs over the same rows; leave "
                "`streaming` out, and name a set of its own that fits the disk"
            )
    streamed = [source for source in sources if source.streaming]
    mapped = [source for source in sources if not source.streaming]
    if streamed and mapped:
        raise ValueError(
            f"data.sources: {streamed[0].label} streams and {mapped[0].label} does not; set `streaming: true` for all "
            "of them or for none"
        )
    if streamed and validation_share:
        raise ValueError(
            f"data.validation_share is {validation_share:g}, a share of all examples, and source {streamed[0].label} "
            "streams; give data.validation, a set of its own (its prompts are left out of the stream)"
        )
    if stream and not streamed:
        raise ValueError("data.stream is set, and no source streams; set `streaming: true` on them")
    return (stream or StreamSettings()) if streamed else None


def require_streamable(source: Source) -> None:
    """Refuse settings that a source that streams cannot have, or that no other has.

    Raises:
        ValueError: One is set; the message says what to set instead.
    """
    label = source.label
    if not source.streaming:
        for name in ("weight", "iterable"):
            if getattr(source, name) is not None:
                raise ValueError(f"source {label}: `{name}` is for sources that stream; set `streaming: true` too")
    elif source.fraction != 1:
        raise ValueError(
            f"source {label}: fraction {source.fraction:g} is a share of all rows, which a stream does not know; give "
            "the source a `weight` among the others, or skip rows with a `transform`"
        )
    elif source.weight is not None and not 0 < source.weight < math.inf:
        raise ValueError(f"source {label}: weight is {source.weight:g}; give a number above 0")
    elif "[" in source.split:
        raise ValueError(
            f"source {label}: split {source.split!r} is a part of all rows, which a stream does not know; name a whole "
            "split, or the files to read"
        )
