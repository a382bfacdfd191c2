"""Measured peaks of training on a CPU against the estimate: ``python benchmarks/memory.py --model FOLDER``.

Two steps of each of CASES: of the model in FOLDER (SmolLM2-135M) and of random Llamas of other shapes. Each case trains
in processes of its own, whose peak is the largest resident set that the kernel saw (VmHWM); the estimate is made in
another, which trains nothing, as `lion plan` makes it. The C library is told to give freed blocks back
(MALLOC_MMAP_THRESHOLD_): otherwise it was seen to keep a fifth more than tensors ever held at once. The time of a step
is that of its processor (one thread a process), so that others on the machine count for little. The table is printed in
Markdown, ``--out`` writes the measurements as JSON, ``--only`` runs the cases with a word in their name. Some twenty
minutes on two cores; the case of 4 bits is left out without bitsandbytes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
COMMON = {
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama, 512 wide": COMMON | {"vocab_size": 32000} | dict(zip(SIZES, (512, 8, 8, 4, 1536), strict=True)),
    "Llama, 1,024 wide": COMMON | {"vocab_size": 49152} | dict(zip(SIZES, (1024, 8, 16, 8, 2816), strict=True)),
}
REAL = "SmolLM2-135M"
TIMEOUT = 600


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        model: REAL or a name in SHAPES.
        stage: SFT; DPO, with a second model as reference, of a pair or all pairs of four answers; KTO and groups of
            four, with one, too; GRPO of four, over a round of two steps; reward model.
        recompute: What the backward pass computes again.
        lora: Whether adapters train, and the reference of DPO is the policy without them.
        packed: Whether the weights under the adapters are held in four bits; such cases need bitsandbytes.
        precision: The trainer's.
        strategy: ``auto`` for one process; ``ddp`` and ``fsdp`` for two.
        tokens: Of a micro-batch on each process.
        optimizer: AdamW, SGD or AdaLomo.
        fused: Whether it steps within the backward pass (``FusedBackward``).
        clipped: Whether the norm of the gradient is clipped.
    """

    model: str
    stage: str = "SFT"
    recompute: str = "none"
    lora: bool = False
    packed: bool = False
    precision: str = "32-true"
    strategy: str = "auto"
    tokens: int = 1024
    optimizer: str = "AdamW"
    fused: bool = False
    clipped: bool = False

    @property
    def ranks(self) -> int:
        """Processes."""
        return 1 if self.strategy == "auto" else 2

    @property
    def name(self) -> str:
        """For a person."""
        extras = {
            f"recompute {self.recompute}": self.recompute != "none",
            "LoRA": self.lora,
            "4 bits": self.packed,
            self.precision: self.precision != "32-true",
            self.optimizer: self.optimizer != "AdamW",
            "fused": self.fused,
            "clipped": self.clipped,
        }
        return ", ".join([self.stage, *(name for name, there in extras.items() if there)])

    @property
    def spread(self) -> str:
        """Over what."""
        return "one" if self.ranks == 1 else f"{self.ranks}, {self.strategy}"

    def job(self, folder: str) -> dict[str, Any]:
        """What ``memory_workers.py`` is told.

        Args:
            folder: Of the model, or of a tokenizer for one of SHAPES.
        """
        source = {"path": folder} if self.model == REAL else {"config": SHAPES[self.model]}
        return {**asdict(self), "ranks": self.ranks, "source": source, "tokenizer": folder}


SMALL, WIDE = SHAPES
MODES = ("none", "elementwise", "full")
CASES = (
    *(Case(REAL, stage, mode) for stage in ("SFT", "DPO") for mode in MODES),
    *(Case(SMALL, stage, mode) for stage in ("SFT", "DPO") for mode in MODES),
    Case(SMALL, precision="bf16-mixed"),
    Case(SMALL, "DPO", lora=True),
    Case(WIDE, "SFT", recompute="full", tokens=2048),
    Case(WIDE, "DPO", recompute="full", lora=True, tokens=2048),
    Case(REAL, "DPO", lora=True, packed=True),
    *(Case(SMALL, stage, strategy="ddp") for stage in ("SFT", "DPO")),
    *(Case(SMALL, stage, mode, strategy="fsdp") for stage in ("SFT", "DPO") for mode in ("none", "full")),
    Case(WIDE, "SFT", recompute="full", strategy="fsdp", tokens=2048),
    *(Case(SMALL, stage) for stage in ("DPO of four", "KTO", "groups of four", "GRPO of four", "reward model")),
)


@dataclass(frozen=True)
class Found:
    """Figures of a case.

    Attributes:
        measured: MiB at the peak, of the process that took most.
        estimated: MiB.
        libraries: MiB of ``estimated`` that a process has before it trains.
        seconds: Processor seconds of the second step.
        gflop: Reckoned 10^9 FLOPs of a step, on each process.
    """

    measured: float
    estimated: float
    libraries: float
    seconds: float
    gflop: float


def main() -> None:
    """Train and estimate every case, and print the table."""
    options = _options()
    measurements: list[dict[str, Any]] = []
    bits = find_spec("bitsandbytes") is not None
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(folder)
        for case in CASES:
            if options.only in f"{case.model}, {case.name}, {case.spread}" and (bits or not case.packed):
                found = compare(case, options.model if case.model == REAL else folder)
                measurements.append({**asdict(case), **asdict(found)})
                print(rows(measurements)[-1], flush=True)
    print("\n".join(["", *HEADER, *rows(measurements)]))
    if options.out:
        options.out.write_text(json.dumps(measurements, indent=2) + "\n", encoding="utf-8")


HEADER = (
    "| model | tokens | stage | processes | measured | estimated | ratio | without libraries | s a step | GFLOP/s |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def rows(measurements: Sequence[dict[str, Any]]) -> list[str]:
    """The table, without its header, in Markdown.

    Args:
        measurements: As the JSON file has them.
    """
    made = []
    for measurement in measurements:
        found = Found(**{name: measurement[name] for name in Found.__dataclass_fields__})
        case = Case(**{name: measurement[name] for name in Case.__dataclass_fields__ if name in measurement})
        beyond = (found.estimated - found.libraries) / (found.measured - found.libraries)
        cells = [case.model, f"{case.tokens:,}", case.name, case.spread]
        cells += [f"{size:,.0f} MiB" for size in (found.measured, found.estimated)]
        cells += [f"{ratio:.2f}" for ratio in (found.estimated / found.measured, beyond)]
        made.append(f"| {' | '.join([*cells, f'{found.seconds:.1f}', f'{found.gflop / found.seconds:.0f}'])} |")
    return made


def compare(case: Case, folder: str) -> Found:
    """Train a case and estimate it.

    Args:
        case: The case.
        folder: Of the model, or of a tokenizer for one of SHAPES.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [_start("train", case, folder, rank, port) for rank in range(case.ranks)]
    trained = [_result(rank) for rank in ranks]
    largest = {name: max(rank[name] for rank in trained) for name in trained[0]}
    return Found(**largest, **_result(_start("estimate", case, folder, 0, port)))


def write_tokenizer(folder: str) -> None:
    """A tokenizer of two words, for models that have none."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0, "<end>": 2}, unk_token="<unk>"))
    made: Any = PreTrainedTokenizerFast
    made(tokenizer_object=words, eos_token="<end>", pad_token="<end>", unk_token="<unk>").save_pretrained(folder)


def _start(what: str, case: Case, folder: str, rank: int, port: int) -> subprocess.Popen[str]:
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
    if case.ranks > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "MASTER_PORT": port}
        own |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in ranks.items()}}
    arguments = [sys.executable, str(Path(__file__).with_name("memory_workers.py")), what, json.dumps(case.job(folder))]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=own)


def _result(process: subprocess.Popen[str]) -> dict[str, float]:
    try:
        printed, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return dict(json.loads(printed.strip().splitlines()[-1]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("LION_SMOLLM2"), help="folder of SmolLM2-135M")
    parser.add_argument("--only", default="", help="a word that the cases' names have, e.g. fsdp")
    parser.add_argument("--out", type=Path, help="JSON file for the measurements")
    options = parser.parse_args()
    if options.model is None:
        parser.error("--model: name the folder of SmolLM2-135M")
    return options


if __name__ == "__main__":
    main()
