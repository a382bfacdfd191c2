"""Ten files as people have them, read as they are."""

from __future__ import annotations

from pathlib import Path

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.tokenize import tokenize
from tests.odd_rows import write_odd_files
from tests.unit.data.letters import byte_tokenizer

TRAINED = {
    "parts.jsonl": ["Hi!<|im_end|>", "4<|im_end|>"],
    "sharegpt.json": ["Oslo.<|im_end|>", "Hello.<|im_end|>"],
    "tools.csv.gz": ["2<|im_end|>"],
    "utf16.tsv": ["Là.<|im_end|>", "Der.<|im_end|>"],
    "hh.jsonl.zst": ["Hello.<|im_end|>A model.<|im_end|>"],
    "alpaca.jsonl": ["3<|im_end|>", "Hello.<|im_end|>"],
    "dialog.parquet": ["Hello.<|im_end|>Bye.<|im_end|>"] * 2,
    "prefilled.jsonl": ["two, three<|im_end|>"],
    "semicolons.csv": ["Nile.<|im_end|>"],
    "broken.jsonl": ["1<|im_end|>", "2<|im_end|>", "3<|im_end|>"],
}
BAD = {
    "parts.jsonl": {"messages[N] has a content part of the kind 'image_url'": 1},
    "tools.csv.gz": {"the chat template leaves out the row's tools": 1},
    "broken.jsonl": {
        "broken JSON (Expecting value)": 1,
        "not UTF-8 (invalid start byte)": 1,
        "the column 'label' holds the mark of an answer that is not wanted, "
        "and prompt + response has no place for it": 1,
    },
}


def test_every_odd_file_trains_its_answers_and_nothing_else(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    for settings in write_odd_files(tmp_path):
        table = tokenize(Source(**settings), ChatEncoder(tokenizer), tmp_path / "cache")
        trained = []
        for row in range(len(table)):
            segment = table.segment(row, 0, int(table.segment_lengths[row]))
            trained.append(tokenizer.decode(segment.input_ids[segment.supervised].tolist()))
        assert trained == TRAINED[settings["name"]], settings["name"]
        assert table.messages["bad row"] == BAD.get(settings["name"], {}), settings["name"]
