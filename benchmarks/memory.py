"""Measured peaks of training on a CPU against what is reckoned: ``python benchmarks/memory.py --model FOLDER``.

Two steps each of SFT and of DPO (with a second model as reference), fp32, with gradient checkpointing and without: of
the model in FOLDER (SmolLM2-135M), and of a random Llama of another shape. Each case trains in a process of its own,
whose peak is the largest resident set that the kernel saw (VmHWM); the reckoning is made in another, which trains
nothing, as `lion plan` makes it. The C library is told to give freed blocks back (MALLOC_MMAP_THRESHOLD_): otherwise
it keeps up to a quarter more than tensors ever held at once. ``--ranks 2`` trains over that many processes under FSDP2
instead, ``--out`` writes the figures as JSON. The table is printed in Markdown; under five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1536,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
COLUMNS = ("model", "stage", "checkpointing", "measured_mib", "reckoned_mib")
TIMEOUT = 600


def main() -> None:
    """Train and reckon every case, and print the table."""
    options = _options()
    print("| model | stage | checkpointing | measured | reckoned | reckoned / measured |\n|---|---|---|---|---|---|")
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        _write_tokenizer(folder)
        models = {"SmolLM2-135M": {"path": options.model}, "Llama, 512 wide": {"config": LLAMA}}
        for name, policy in models.items():
            for stage in ("SFT", "DPO"):
                for checkpointing in (False, True):
                    spec = {**policy, "gradient_checkpointing": checkpointing}
                    job = {"policy": spec, "tokenizer": options.model if "path" in policy else folder, "stage": stage}
                    found = compare({**job, "tokens": options.tokens, "ranks": options.ranks})
                    row = [name, stage, "yes" if checkpointing else "no", *(f"{one:,.0f} MiB" for one in found)]
                    print("|", " | ".join([*row, f"{found[1] / found[0]:.2f}"]), "|", flush=True)
                    figures.append(dict(zip(COLUMNS, (name, stage, checkpointing, *found), strict=True)))
    if options.out:
        Path(options.out).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def compare(job: dict[str, Any]) -> tuple[float, float]:
    """MiB that a case took, the largest of its ranks, and that it was reckoned to take."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [_start("train", job, rank, port) for rank in range(job["ranks"])]
    measured = max(_result(rank) for rank in ranks)
    return measured, _result(_start("reckon", {**job}, 0, port))


def train(job: dict[str, Any]) -> float:
    """Train two steps; the peak of this process in MiB."""
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader

    from lion_lightning.strategies import FSDP2Strategy
    from lion_lightning.types import PackedBatch

    module, batch = _module(job), _batch(job)
    rows: Any = [batch] * 2  # in the second, the optimizer has its state
    loader: Any = DataLoader(rows, batch_size=None)
    assert isinstance(batch, PackedBatch)
    trainer = Trainer(
        accelerator="cpu",
        devices=job["ranks"],
        strategy=FSDP2Strategy() if job["ranks"] > 1 else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, loader)
    return _status("VmHWM")


def reckon(job: dict[str, Any]) -> float:
    """What the case is reckoned to take, in MiB."""
    from lion_lightning.planning.job import job_of
    from lion_lightning.planning.memory import Sharded, Whole, library_memory

    module = _module(job)
    plan = job_of(module, job["tokens"], job["tokens"], precision="32-true", on_gpu=False, overhead=library_memory())
    placement = Sharded(job["ranks"]) if job["ranks"] > 1 else Whole()
    for estimate in placement.moments(plan):
        print({name: size >> 20 for name, size in estimate.parts.items()}, estimate.moment, file=sys.stderr)
    return placement.peak(plan).total / 2**20


def _module(job: dict[str, Any]) -> Any:
    from lion_lightning.models.references import FrozenReference
    from lion_lightning.models.tokenizer import TokenizerSpec
    from lion_lightning.modules import DPOModule, SFTModule

    tokenizer = TokenizerSpec(job["tokenizer"])
    if job["stage"] == "SFT":
        return SFTModule(job["policy"], tokenizer)
    return DPOModule(job["policy"], tokenizer, reference=FrozenReference())


def _batch(job: dict[str, Any]) -> Any:
    """A row of random tokens: one document, or one pair."""
    import numpy as np

    from lion_lightning.data.collate import collate
    from lion_lightning.types import Piece, Sample

    draw, tokens = np.random.default_rng(0), job["tokens"]
    lengths, parents = ((tokens,), (-1,)) if job["stage"] == "SFT" else ((tokens // 3,) * 3, (-1, 0, 0))
    pieces = [
        Piece(
            draw.integers(3, 30000, length, dtype=np.int32),
            np.full(length, job["stage"] == "SFT" or parent == 0),
            parent,
        )
        for length, parent in zip(lengths, parents, strict=True)
    ]
    return collate([Sample(tuple(pieces), 0)], tokens)


def _write_tokenizer(folder: str) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0, "<end>": 2}, unk_token="<unk>"))
    made: Any = PreTrainedTokenizerFast
    made(tokenizer_object=words, eos_token="<end>", pad_token="<end>", unk_token="<unk>").save_pretrained(folder)


def _start(what: str, job: dict[str, Any], rank: int, port: int) -> subprocess.Popen[str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "MASTER_PORT": port}
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in ranks.items()}}
    arguments = [sys.executable, __file__, "--run", what, "--job", json.dumps(job)]
    own = dict(os.environ) if job["ranks"] == 1 else environment
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env=own | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    )


def _result(process: subprocess.Popen[str]) -> float:
    try:
        printed, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return float(printed.strip().splitlines()[-1])


def _status(field: str) -> float:
    """A figure of this process in MiB."""
    return int(Path("/proc/self/status").read_text(encoding="ascii").partition(f"{field}:")[2].split()[0]) / 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("LION_SMOLLM2"), help="folder of SmolLM2-135M")
    parser.add_argument("--tokens", type=int, default=1024, help="of a micro-batch (1024)")
    parser.add_argument("--ranks", type=int, default=1, help="processes; more than 1 under FSDP2 (1)")
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--run", choices=["train", "reckon"], help=argparse.SUPPRESS)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is None and options.run is None:
        parser.error("--model: name the folder of SmolLM2-135M")
    return options


if __name__ == "__main__":
    given = _options()
    if given.run:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        print({"train": train, "reckon": reckon}[given.run](given.job))
    else:
        main()
