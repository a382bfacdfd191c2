"""The sides of ``preparation.py``, each a worker of ``interleaved``: ``python preparation_workers.py SIDE JOB``.

A turn goes from a JSON Lines file, new to the side, to packed rows with masked prompts: reading, rendering the chat
template, tokenizing, masking, packing. Loading the tokenizer and the libraries is left out.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

from interleaved import Turns


def ours(job: dict[str, Any]) -> None:
    """``SFTDataModule``, its cache empty each time, to the rows of an epoch."""
    from lion_lightning import SFTDataModule, Source, TokenizerSpec

    tokenizer = TokenizerSpec(path=job["tokenizer"]).load()
    turns = Turns()
    turns.start()
    for turn, path in enumerate(job["files"]["messages"]):
        with tempfile.TemporaryDirectory() as folder:
            source = Source(path=path)
            data = SFTDataModule([source], tokenizer, max_length=job["capacity"], cache_dir=folder)
            data.prepare_data()
            data.setup()
            loader = data.train_dataloader()
            batches = list(loader) if turn == 0 else []  # to count; the first turn warms up and is left out
        tokens, targets = (sum(len(getattr(batch, name)) for batch in batches) for name in ("input_ids", "targets"))
        turns.end(rows=len(loader), tokens=tokens, targets=targets)


def trl(job: dict[str, Any]) -> None:
    """What SFTTrainer does to a dataset before it trains, with packing; columns and processes as the job says."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    turns = Turns()
    turns.start()
    for turn, path in enumerate(job["files"][job["columns"]]):
        with tempfile.TemporaryDirectory() as folder:
            rows = load_dataset("json", data_files=path, split="train", cache_dir=folder)
            arguments = SFTConfig(
                folder,
                max_length=job["capacity"],
                packing=True,
                assistant_only_loss=job["columns"] == "messages",
                dataset_num_proc=job["processes"],
                use_cpu=True,
                bf16=False,
                report_to=[],
                disable_tqdm=True,
            )
            trainer = SFTTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
            packed = trainer.train_dataset
            assert packed is not None
            counted = list(packed) if turn == 0 else []
            tokens = sum(len(row["input_ids"]) for row in counted)
            targets = sum(label != -100 for row in counted for label in row["labels"])
        turns.end(rows=len(packed), tokens=tokens, targets=targets)


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    {"ours": ours, "trl": trl}[sys.argv[1]](json.loads(sys.argv[2]))
