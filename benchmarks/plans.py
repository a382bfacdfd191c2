"""What fits where, by `lion plan`'s arithmetic: ``python benchmarks/plans.py`` prints the tables of docs/planning.md.

Models of 2, 8 and 70 billion weights on 8, 64 and 512 GPUs of 80 GiB; nothing is trained, and nothing was measured on a
GPU. About two minutes on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch.optim import AdamW
from tqdm import tqdm

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.quantization import NF4Spec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.planning.job import Job, documents, trees
from lion_lightning.planning.memory import GIB, Offloaded, Placement, Replicated, Sharded
from lion_lightning.tools.plan.step_time import Machine, step_time

SIZES = ("num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size")
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "2B": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 16384,
        "vocab_size": 256000,
    },
    "8B": LLAMA | dict(zip(SIZES, (32, 4096, 32, 14336), strict=True)),
    "70B": LLAMA | dict(zip(SIZES, (64, 8192, 80, 28672), strict=True)),
}
GPUS = (8, 64, 512)
MEMORY = 80 * GIB
OVERHEAD = 2 * GIB
"""Left for CUDA's context, libraries, communication buffers and fragments. A guess: no GPU was measured."""

Kind = Callable[[int], Placement]
MACHINE = Machine(tflops=989, mfu=0.4, bandwidth=50)
TOKENS = 8192
"""Of a micro-batch on each GPU."""


COLUMNS = ("model", "stage", "strategy", *(f"{count} GPUs" for count in GPUS))
HEADER = (f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|")


def main() -> None:
    """Print the table, in Markdown."""
    print("\n".join(HEADER))
    for case in tqdm(list(cases()), "plans"):
        print("\n".join(rows(*case)), flush=True)


def cases() -> Iterator[tuple[str, Job, tuple[Kind, ...]]]:
    """A title, what is trained, and the placements to compare."""
    for model, config in MODELS.items():
        spec = PolicySpec(config=config, recompute="full")
        second = PolicySpec(config=config)
        small = PolicySpec(config=config, recompute="full", lora=LoRASpec(), quantization=NF4Spec(), dtype="bfloat16")
        whole: Kind = partial(Replicated, bucket_views=True)  # as in configs/strategy/ddp.yaml
        yield f"{model} | SFT", _job(spec, documents(TOKENS, 2048)), (whole, Sharded, Offloaded)
        pairs = trees(TOKENS, 2048, 2)
        yield f"{model} | DPO, frozen reference", _job(spec, pairs, second), (whole, Sharded, Offloaded)
        yield f"{model} | DPO, QLoRA, adapters off", _job(small, pairs, passes=1), (whole,)


def rows(title: str, job: Job, kinds: Sequence[Kind]) -> list[str]:
    """Rows of the table.

    Args:
        title: Their first cells.
        job: What is trained.
        kinds: From a number of GPUs to a placement, a row each.
    """
    made = []
    for kind in kinds:
        cells = [_cell(job, kind(count)) for count in GPUS]
        made.append(f"| {title} | {kind(GPUS[0]).name} | {' | '.join(cells)} |")
    return made


def _job(spec: PolicySpec, rows: Any, reference: PolicySpec | None = None, passes: int = 0) -> Job:
    return Job(
        spec,
        rows[0],
        rows[1],
        precision="bf16-mixed",
        optimizer=AdamW,
        references=(reference,) if reference else (),
        reference_passes=1 if reference else passes,
        overhead=OVERHEAD,
    )


def _cell(job: Job, placement: Placement) -> str:
    peak = placement.peak(job).total
    size = f"{peak / GIB:.0f} GiB"
    if peak > MEMORY:
        return f"{size}: too much"
    if isinstance(placement, Offloaded):  # transfers to the host's memory are not estimated
        return size
    return f"{size}, {step_time(job, placement, MACHINE).seconds:.1f} s"


if __name__ == "__main__":
    logging.getLogger("lion_lightning").setLevel(logging.ERROR)
    main()
