"""Ten files as people have them: ``python -m tests.odd_rows TOKENIZER`` prints what ``lion inspect`` says of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import yaml

from lion_lightning.cli import main

Rows = list[dict[str, Any]]


def lines(rows: Rows) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def cells(rows: Rows, delimiter: str) -> str:
    """Rows as a table of cells."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [*rows[0]], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    """A message as OpenAI has it."""
    return {"role": role, "content": content, **more}


def write_odd_files(folder: Path) -> list[dict[str, Any]]:
    """Write the files, and return the settings of their sources.

    Args:
        folder: Where to.
    """
    image = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "a.png"}}]
    parts: Rows = [
        {"messages": [said("user", [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], name=None),
                      said("assistant", "Hi!", tool_calls=None)], "tools": None, "id": 1},
        {"messages": [said("developer", "Be brief."), said("user", "2+2?", name="Ada"), said("assistant", "4")]},
        {"messages": [said("user", image), said("assistant", "A cat.")]},
    ]  # fmt: skip
    (folder / "parts.jsonl").write_bytes(lines(parts))

    shared = [{"from": "human", "value": "Name a city."}, {"from": "gpt", "value": "Oslo."}]
    talks: Rows = [
        {"id": "a", "conversations": [*shared, {"from": "human", "value": "Thanks!"}], "system": "Be kind."},
        {"id": "b", "conversations": [{"from": "user", "value": "Hi"}, {"from": "bing", "value": "Hello."}]},
    ]
    (folder / "sharegpt.json").write_text(json.dumps(talks, indent=2), encoding="utf-8-sig")

    call = {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'}
    called = [shared[0], call, {"from": "observation", "value": "wet"}, {"from": "gpt", "value": "It rains."}]
    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
    table: Rows = [
        {"messages": json.dumps([said("user", "1+1?"), said("assistant", "2")]), "tools": ""},
        {"messages": json.dumps(called), "tools": json.dumps([tool])},
    ]
    (folder / "tools.csv.gz").write_bytes(gzip.compress(cells(table, ",").encode()))

    questions: Rows = [{"question": "Où?", "answer": "Là."}, {"question": "Hvor?", "answer": "Der."}]
    (folder / "utf16.tsv").write_text(cells(questions, "\t"), encoding="utf-16", newline="")

    begin = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who are you?\n\nAssistant:"
    with pa.CompressedOutputStream(str(folder / "hh.jsonl.zst"), "zstd") as file:
        file.write(lines([{"chosen": f"{begin} A model.", "rejected": f"{begin} Nobody."}]))

    alpaca: Rows = [
        {"instruction": "Add.", "input": "1 + 2", "output": "3"},
        {"instruction": "Greet.", "input": None, "output": "Hello."},
    ]
    (folder / "alpaca.jsonl").write_bytes(gzip.compress(lines(alpaca)))  # whose name does not say so

    rounds = [{"human": "Hi", "assistant": "Hello."}, {"human": "Bye", "assistant": "Bye."}]
    kinds = ("Be kind.", "Be brief.")
    dialog = pa.Table.from_pylist([{"dialog": rounds, "system_prompt": kind, "source": "a"} for kind in kinds])
    pyarrow.parquet.write_table(dialog, folder / "dialog.parquet")

    begun = [said("user", "Count to three."), said("assistant", "one, ", prefix=True)]
    prefilled: Rows = [{"prompt": begun, "completion": [said("assistant", "two, three")]}]
    (folder / "prefilled.jsonl").write_text(json.dumps(prefilled, indent=1))  # an array, in spite of its name

    dolly: Rows = [{"instruction": "Name a river.", "response": "Nile.", "category": "geography"}]
    (folder / "semicolons.csv").write_text(cells(dolly, ";"), newline="")

    good = [{"prompt": f"{number}+1=", "response": f"{number + 1}", "label": True} for number in range(3)]
    bad = [b'{"prompt": [', b'{"text": "\xff"}', lines([{**good[0], "label": False}]).strip()]
    (folder / "broken.jsonl").write_bytes(lines(good) + b"\n".join(bad))

    settings: dict[str, dict[str, Any]] = {
        "parts.jsonl": {"on_bad_row": "skip"},
        "tools.csv.gz": {"on_bad_row": "skip"},
        "hh.jsonl.zst": {"format": "chat", "columns": {"text": "chosen"}, "ignore": ["rejected"]},
        "broken.jsonl": {"on_bad_row": "skip", "format": "text"},
    }
    names = ["parts.jsonl", "sharegpt.json", "tools.csv.gz", "utf16.tsv", "hh.jsonl.zst", "alpaca.jsonl"]
    names += ["dialog.parquet", "prefilled.jsonl", "semicolons.csv", "broken.jsonl"]
    return [{"path": str(folder / name), "name": name, **settings.get(name, {})} for name in names]


def config(folder: Path, tokenizer: str) -> dict[str, Any]:
    """A config of SFT on the files.

    Args:
        folder: Where they are written.
        tokenizer: Folder of a model with its tokenizer.
    """
    data = {"sources": write_odd_files(folder), "max_length": 128, "cache_dir": str(folder / "cache")}
    model = {"policy": {"path": tokenizer}, "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}}
    return {
        "model": {"class_path": "lion_lightning.SFTModule", "init_args": model},
        "data": {"class_path": "lion_lightning.SFTDataModule", "init_args": data},
        "trainer": {"accelerator": "cpu", "logger": False},
    }


if __name__ == "__main__":
    tokenizer = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        Path("odd.yaml").write_text(yaml.safe_dump(config(Path("."), tokenizer)))
        sys.exit(main(["inspect", "-c", "odd.yaml", "--rows=10"]))
