"""Infilled documents from files to batches: the causal mixture, anew in each epoch, the same however it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from lightning.pytorch import Trainer
from transformers import PreTrainedTokenizerFast

from lion_lightning import InfillDataModule, SFTDataModule, Source
from lion_lightning.data.infill import FillInMiddle, PrefixLM, SpanInfill
from lion_lightning.data.packing.best_fit import Wrapped
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.data.streaming.loader import StreamLoader
from lion_lightning.data.streaming.settings import StreamSettings
from lion_lightning.types import PackedBatch, Sample, SampleSegment
from tests.unit.data.letters import byte_tokenizer

TOKENS = [*SpanInfill().tokens, *FillInMiddle().tokens]


def tokenizer(tokens: Sequence[str] = TOKENS) -> PreTrainedTokenizerFast:
    made = byte_tokenizer()
    made.add_tokens(list(tokens), special_tokens=True)
    return made


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Source]:
    def source(texts: Sequence[str], **options: Any) -> Source:
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return Source(str(path), **options)

    return source


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., InfillDataModule]:
    def module(sources: list[Source], *, kind: Any = InfillDataModule, **options: Any) -> InfillDataModule:
        settings: dict[str, Any] = {"max_length": 64, "cache_dir": tmp_path / "cache"} | options
        made: InfillDataModule = kind(sources, settings.pop("tokenizer", tokenizer()), **settings)
        return made

    return module


Make = Callable[..., InfillDataModule]
MakeSource = Callable[..., Source]
TEXTS = [f"{number:04} {number * number:06}" for number in range(80)]


def ready(data: InfillDataModule) -> InfillDataModule:
    data.prepare_data()
    data.setup()
    return data


def loader(data: InfillDataModule, epoch: int = 0) -> PackedLoader:
    made = data.train_dataloader()
    assert isinstance(made, PackedLoader)
    made.sampler.set_epoch(epoch)  # as Lightning does
    return made


def documents(batches: Any) -> dict[int, str]:
    """Text of each document, by its index."""
    found: dict[int, str] = {}
    for batch in cast(list[PackedBatch], list(batches)):
        for segment, owner in zip(batch.segments, batch.segment_samples, strict=True):
            ids = batch.input_ids[segment.start : segment.stop].tolist()
            index = batch.sample_indices[owner]
            found[index] = found.get(index, "") + str(tokenizer().decode(ids))
    return found


def contents(batches: Any) -> list[tuple[list[int], ...]]:
    return [(batch.input_ids.tolist(), batch.targets.tolist(), batch.logit_positions.tolist()) for batch in batches]


def test_some_documents_are_as_they_were_and_others_have_holes(source: MakeSource, module: Make) -> None:
    found = documents(loader(ready(module([source(TEXTS)], corruption=SpanInfill(spans=1)))))
    assert len(found) == 80
    infilled = 0
    for index, text in found.items():
        if "<sep>" not in text:
            assert text == f"{TEXTS[index]}<|im_end|>"
            continue
        context, answer = text.split("<|im_end|><sep><mask_1>")
        span = answer.removesuffix("<eom>")
        assert context.replace("<mask_1>", span) == TEXTS[index]
        infilled += 1
    assert 22 <= infilled <= 58  # 4 standard deviations around 40


def test_all_tokens_but_the_first_are_trained(source: MakeSource, module: Make) -> None:
    for batch in loader(ready(module([source(TEXTS)], share=1.0))):
        assert len(batch.targets) == len(batch.input_ids) - len(batch.segments)


@pytest.mark.slow
def test_half_of_10000_documents_are_corrupted(source: MakeSource, module: Make) -> None:
    texts = source([f"{number:02}" for number in range(100)], fraction=100)
    data = ready(module([texts], corruption=FillInMiddle()))
    assert data.train_mixture is not None
    mixed = data.train_mixture.documents
    begin = tokenizer().convert_tokens_to_ids("<|fim_prefix|>")
    count = sum(mixed[position].segments[0].input_ids[0] == begin for position in range(10_000))
    assert 4800 <= count <= 5200


def test_share_0_gives_the_batches_of_fine_tuning(source: MakeSource, module: Make) -> None:
    texts = source(TEXTS, fraction=1.5)
    plain = ready(module([texts], kind=SFTDataModule, mask="none"))
    none = ready(module([texts], share=0.0))
    for epoch in (0, 3):
        assert contents(loader(none, epoch)) == contents(loader(plain, epoch))
    assert loader(none).fingerprint() == loader(plain).fingerprint()


def test_epochs_differ_and_have_as_many_rows(source: MakeSource, module: Make) -> None:
    made = loader(ready(module([source(TEXTS)])))
    epochs, rows = [], len(made.rows)
    for epoch in (0, 1, 0):
        made.sampler.set_epoch(epoch)
        epochs.append(documents(made))
        assert len(made.rows) == rows
    assert epochs[0] == epochs[2] != epochs[1]


def test_repeated_documents_get_other_holes(source: MakeSource, module: Make) -> None:
    data = ready(module([source(TEXTS, fraction=2.0)], share=1.0, corruption=FillInMiddle()))
    assert data.train_mixture is not None
    mixed = data.train_mixture.documents
    pairs = [(mixed[place], mixed[place + 80]) for place in range(80)]
    assert all(one.index == other.index for one, other in pairs)
    differing = [one.segments[0].input_ids.tolist() != other.segments[0].input_ids.tolist() for one, other in pairs]
    assert sum(differing) > 70


def test_workers_and_ranks_read_the_same(source: MakeSource, module: Make) -> None:
    texts = source(TEXTS)
    alone = contents(loader(ready(module([texts])), epoch=2))
    assert contents(loader(ready(module([texts], num_workers=2)), epoch=2)) == alone
    parts = []
    for rank in (0, 1):
        data = ready(module([texts]))
        strategy = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 2, "rank": rank})
        data.trainer = cast(Trainer, SimpleNamespace(strategy=strategy))
        parts.append([batch for batch in loader(data, epoch=2) if len(batch.targets)])
    assert contents(parts[0]) == alone[::2]
    assert contents(parts[1]) == alone[1::2]


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_resumed_epoch_goes_on_with_the_same_infills(source: MakeSource, module: Make, epoch: int) -> None:
    texts = source(TEXTS)
    whole = contents(loader(ready(module([texts])), epoch))
    begun = loader(ready(module([texts])), epoch)
    list(islice(begun, 3))
    resumed = loader(ready(module([texts])))
    resumed.load_state_dict(begun.state_dict())
    assert contents(resumed) == whole[3:]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"corruption": SpanInfill(spans=3)}, "data.corruption.spans was 4, is 3"),
        ({"share": 0.4}, "data.share was 0.5, is 0.4"),
        ({"seed": 1}, "seed was 0, is 1"),
    ],
)
def test_other_infills_are_not_resumed_within_an_epoch(
    source: MakeSource, module: Make, change: dict[str, Any], named: str
) -> None:
    texts = source(TEXTS)
    begun = loader(ready(module([texts])))
    list(islice(begun, 3))
    other = loader(ready(module([texts], **change)))
    with pytest.raises(ValueError, match="that epoch's batches have changed") as error:
        other.load_state_dict(begun.state_dict())
    assert named in str(error.value)


def test_validation_sees_the_infills_of_the_first_epoch(source: MakeSource, module: Make) -> None:
    data = ready(module([source(TEXTS)], validation_share=0.5))
    made = cast(PackedLoader, data.val_dataloader())
    first = contents(made)
    made.sampler.set_epoch(3)
    assert contents(made) == first
    assert any("<sep>" in text for text in documents(made).values())
    list(loader(data, epoch=3))
    assert contents(cast(PackedLoader, data.val_dataloader())) == first


def test_rows_have_room_for_every_infill(source: MakeSource, module: Make) -> None:
    texts = source(["x" * 200, *TEXTS])
    made = loader(ready(module([texts], share=1.0)))
    for epoch in range(6):
        made.sampler.set_epoch(epoch)
        assert all(len(batch.input_ids) <= batch.capacity == 64 for batch in made)
    data = ready(module([texts]))
    assert data.train_mixture is not None
    assert int(data.train_mixture.documents.lengths.max()) == 64  # 50 of the 200 tokens, and room for 14 more


def test_files_of_fewer_than_2_tokens_stay_causal_and_are_counted(source: MakeSource, module: Make) -> None:
    data = ready(module([source(["a", "b", "c", "de", "fgh"])], share=1.0))
    found = documents(loader(data))
    assert [found[index] for index in range(3)] == ["a<|im_end|>", "b<|im_end|>", "c<|im_end|>"]
    assert all("<sep>" in found[index] for index in (3, 4))
    assert "never infilled, fewer than 2 tokens: 3" in data.notes()


def test_notes_tell_share_corruption_and_the_room_that_stays_free(source: MakeSource, module: Make) -> None:
    data = ready(module([source(["abcdefghij"] * 1 + TEXTS)], share=1.0, corruption=FillInMiddle()))
    share, room = data.notes()
    assert share == "infills by FillInMiddle: 100% of the documents, others in each epoch; counted without them"
    # 3 tokens are added to files that end with EOS: one of 4 is free, of 11 or 12 tokens of text, EOS and 4
    assert room.startswith("room for 4 more tokens a document, of which 3.0 are used on average; about 6.")
    assert data.row_messages()["all"] == data.notes()
    assert data.description()["corruption"]["class_path"] == "FillInMiddle"
    assert data.description()["share"] == 1.0
    assert ready(module([source(TEXTS)], share=0.0)).notes() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 1.5}, "data.share is 1.5; give a share of the documents from 0 to 1"),
        ({"share": float("nan")}, "data.share is nan"),
        ({"mask": "assistant"}, "data.mask is 'assistant', and an infill trains all tokens of a document"),
        ({"packing": Wrapped()}, "data.packing: Wrapped cuts documents, and one with holes cannot be cut"),
        ({"max_length": 15}, "data.max_length is 15, and an infill adds up to 14 tokens"),
    ],
)
def test_refused_settings(source: MakeSource, module: Make, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        module([source(TEXTS)], **options)


def streamed(data: InfillDataModule, epoch: int = 0) -> StreamLoader:
    made = ready(data).train_dataloader()
    assert isinstance(made, StreamLoader)
    made.set_epoch(epoch)
    return made


def test_streams_are_infilled_anew_in_each_epoch_and_resumed(source: MakeSource, module: Make) -> None:
    texts = source(TEXTS * 3, streaming=True)
    options: dict[str, Any] = {"corruption": SpanInfill(spans=1), "stream": StreamSettings(window=30, remember=0)}
    whole = contents(streamed(module([texts], **options), epoch=1))
    assert contents(streamed(module([texts], num_workers=1, **options), epoch=1)) == whole
    begun = streamed(module([texts], **options), epoch=1)
    list(islice(begun, 5))
    resumed = streamed(module([texts], **options))
    resumed.load_state_dict(begun.state_dict())
    assert contents(resumed) == whole[5:]
    first, second = (documents(streamed(module([texts], **options), epoch)) for epoch in (0, 1))
    counts = [sum("<sep>" in text for text in found.values()) for found in (first, second)]
    assert all(90 <= count <= 150 for count in counts)  # 4 standard deviations around half of 240
    assert {index: "<sep>" in text for index, text in first.items()} != {
        index: "<sep>" in text for index, text in second.items()
    }


def test_streamed_documents_with_special_tokens_are_refused(source: MakeSource, module: Make) -> None:
    made = streamed(module([source([*TEXTS, "<sep>"], streaming=True)]))
    with pytest.raises(ValueError, match=r"texts.jsonl:81: the row holds a special token of SpanInfill"):
        list(made)


def test_missing_special_tokens_are_named(source: MakeSource, module: Make) -> None:
    data = module([source(TEXTS)], tokenizer=tokenizer(["<sep>", "<eom>", "<mask_1>", "<mask_3>"]))
    words = "data.corruption needs <mask_2>, <mask_4>, and <mask_2> is 8 of the tokenizer's tokens; add them to"
    with pytest.raises(ValueError, match=words):
        ready(data)
    with pytest.raises(ValueError, match="needs <mask_2>, <mask_4>, <mask_5> and 6 more, and <mask_2> is"):
        ready(module([source(TEXTS)], tokenizer=data.tokenizer, corruption=SpanInfill(spans=11)))
    with pytest.raises(ValueError, match="one of its tokens is empty; name a token"):
        ready(module([source(TEXTS)], corruption=SpanInfill(separator="")))


@pytest.mark.parametrize(
    "corruption", [FillInMiddle(end="<|im_end|>"), SpanInfill(spans=1, mask="<sep>")], ids=["EOS", "twice"]
)
def test_a_token_with_two_meanings_is_refused(source: MakeSource, module: Make, corruption: Any) -> None:
    with pytest.raises(ValueError, match="give it tokens that differ from each other, EOS and BOS"):
        ready(module([source(TEXTS)], corruption=corruption))


def test_special_tokens_within_a_row_are_refused(source: MakeSource, module: Make) -> None:
    texts = [*TEXTS, "a file that quotes <eom>", "another"]
    with pytest.raises(ValueError, match=r"texts.jsonl:81: the row holds a special token of SpanInfill"):
        ready(module([source(texts)]))
    assert len(documents(loader(ready(module([source(texts)], share=0.0))))) == 82


def test_share_1_corrupts_every_document(source: MakeSource, module: Make) -> None:
    found = documents(loader(ready(module([source(TEXTS)], share=1.0, corruption=FillInMiddle(spm=0.0)))))
    assert all(text.startswith("<|fim_prefix|>") and text.endswith("<|im_end|>") for text in found.values())


def test_a_prefix_is_seen_in_both_directions_and_not_trained(source: MakeSource, module: Make) -> None:
    data = ready(module([source(TEXTS)], share=1.0, corruption=PrefixLM(SpanInfill(spans=1))))
    for batch in loader(data, epoch=1):
        owners = batch.target_segments.tolist()
        for number, (prefix, answer) in enumerate(zip(batch.segments[::2], batch.segments[1::2], strict=True)):
            assert (prefix.bidirectional, prefix.parent) == (True, -1)
            assert (answer.bidirectional, answer.parent) == (False, 2 * number)
            assert owners.count(2 * number) == 0
            assert owners.count(2 * number + 1) == answer.length
    text = documents(loader(data))[3]
    context, answered = text.split("<|im_end|><sep><mask_1>")
    assert context.replace("<mask_1>", answered.removesuffix("<eom>")) == TEXTS[3]


def test_a_document_is_cut_into_a_prefix_and_what_follows(source: MakeSource, module: Make) -> None:
    data = ready(module([source(TEXTS)], corruption=PrefixLM(), tokenizer=tokenizer([])))
    made = loader(data)
    assert {index: text.removesuffix("<|im_end|>") for index, text in documents(made).items()} == dict(enumerate(TEXTS))
    prefixes = [sum(segment.bidirectional for segment in batch.segments) for batch in made]
    assert 22 <= sum(prefixes) <= 58  # 4 standard deviations around half of 80
    assert data.notes() == ["infills by PrefixLM: 50% of the documents, others in each epoch; counted without them"]
    settings = data.description()["corruption"]
    assert settings == {"class_path": "PrefixLM", "infill": None}


def test_turns_with_a_weight_are_refused(tmp_path: Path, module: Make) -> None:
    path = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2", "weight": 0.5}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(ValueError, match="a weight of its own, and mask: none trains all of it alike"):
        ready(module([Source(str(path))]))


def test_conversations_are_infilled_as_text(tmp_path: Path, module: Make) -> None:
    path = tmp_path / "chats.jsonl"
    rows = [{"question": f"{number} + 1?", "answer": str(number + 1)} for number in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = documents(loader(ready(module([Source(str(path))], share=1.0, max_length=128))))
    assert len(found) == 20
    assert all("<sep>" in text for text in found.values())


def test_an_epoch_of_samples_without_a_digest_is_found_again() -> None:
    class Fresh:
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return 4

        def __getitem__(self, position: int, /) -> Any:
            ids = np.array([position, self.epoch], np.int32)
            return Sample((SampleSegment(ids, np.ones(2, np.bool_)),), position)

    made = [PackedLoader(Fresh(), np.full(4, 2), capacity=2, shuffle=True) for _ in range(2)]
    made[0].set_epoch(3)
    (first, *_) = islice(made[0], 1)
    assert first.input_ids.tolist()[1] == 3
    made[1].load_state_dict(made[0].state_dict())
    assert all(batch.input_ids.tolist()[1] == 3 for batch in made[1])
