"""What a stream cannot do is refused in one line that says what to do instead."""

from __future__ import annotations

from typing import Any

import pytest

from lion_lightning.data.on_policy import OnPolicyDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.data.streaming.settings import StreamSettings
from tests.unit.data.letters import byte_tokenizer

STREAM = Source("a.jsonl", name="a", streaming=True)
MAPPED = Source("b.jsonl", name="b")


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([STREAM, MAPPED], {}, "data.sources: a streams and b does not; set `streaming: true` for all"),
        ([STREAM], {"validation_share": 0.1}, "validation_share is 0.1, .* and source a streams; give data.validation"),
        ([MAPPED], {"validation": [STREAM]}, "data.validation: source a streams, .* leave `streaming` out"),
        ([Source("a", streaming=True, fraction=0.5)], {}, "source a: fraction 0.5 .* give the source a `weight`"),
        ([Source("a", streaming=True, split="train[:9]")], {}, r"source a:train\[:9\]: split .* name a whole split"),
        ([Source("a", streaming=True, weight=0)], {}, "source a: weight is 0; give a number above 0"),
        ([Source("a", weight=2)], {}, "source a: `weight` is for sources that stream; set `streaming: true` too"),
        ([MAPPED], {"stream": StreamSettings()}, "data.stream is set, and no source streams"),
    ],
)
def test_what_needs_the_whole_set_is_refused(sources: list[Source], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        SFTDataModule(sources, byte_tokenizer(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["prompts", "sources"])
def test_rounds_draw_from_all_rows(name: str) -> None:
    given = {"prompts": [MAPPED], "sources": [MAPPED]} | {name: [STREAM]}
    with pytest.raises(ValueError, match=f"data.{name}: source a streams, and each round draws from all of its rows"):
        OnPolicyDataModule(**given, tokenizer=byte_tokenizer())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "data.stream.window is 0; give at least 1 document"),
        ({"remember": -1}, "data.stream.remember is -1; give a number of documents, 0 for none"),
        ({"mix_by": "bytes"}, "data.stream.mix_by is 'bytes'; choose tokens or rows"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamSettings(**settings)


def test_all_rows_of_a_stream_are_nowhere_at_hand() -> None:
    with pytest.raises(ValueError, match="source a streams, and all of its rows are needed here"):
        STREAM.open()
