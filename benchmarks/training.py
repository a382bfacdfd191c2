"""SFT, DPO and the reference pass on the CPU, ours against TRL's trainers, side by side.

    python benchmarks/training.py [--only sft] [--rounds 5] [--precision 32-true]

Same random weights, same token ids in the same steps (of real documents' lengths), same fused AdamW, so the same real
tokens. Each side is a process of its own that takes its turn; the first step of each warms up and is left out. Of TRL's
settings, micro-batches among them, the one that is fastest on the machine at hand is kept, by a trial in the same run;
precision is what is fastest there, the same for both.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from batches import Item
from measurements import Measurement, show
from paired_benchmark import PairedBenchmark, Stage, fastest_precision, make_model

ROUNDS = 5
SMOLLM2 = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
SIX_LAYERS = {
    "num_hidden_layers": 6,
    "hidden_size": 256,
    "intermediate_size": 682,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Of the prototype that the targets of DPO come from: its vocabulary, 49,152, is SmolLM2's."""
PADDING: dict[str, dict[str, Any]] = {
    "padding-free": {"padding_free": True},
    "padded, batches by length": {"by_length": True},
}


def targets(items: list[Item]) -> int:
    """Supervised tokens of a micro-batch."""
    return sum(item.targets for item in items)


def pairs(name: str, what: str, data: str, shape: dict[str, int], number: int, reference: bool = False) -> Stage:
    """DPO, or its reference pass, on pairs of some lengths.

    Args:
        name: Of the stage.
        what: The model and the lengths in words.
        data: ``gsm8k`` or ``chat``.
        shape: Of the model.
        number: Pairs a turn.
        reference: Whether only the reference's log-probs are computed.
    """
    stage = "reference" if reference else "dpo"
    small = {"pairs": 1, "accumulate": number}
    job = {"stage": stage, "data": data, "pairs": number, "accumulate": 1, "shape": shape}
    title = "reference pass" if reference else "DPO, cached reference"
    return Stage(
        name,
        f"{title}, {what}, {number} pairs a {'turn' if reference else 'step'}",
        "pairs/s",
        job,
        "ours_reference" if reference else "ours",
        f"trl_{stage}",
        {f"{number} pairs at once": {}, "a pair at a time": small},
        len,
        least=3.0 if reference else 5.0,
        most=None if reference else 0.4,
        peak="" if reference else "peak_mib",
        before="" if reference else "references",
    )


STAGES = (
    Stage(
        "sft",
        "SFT, SmolLM2's shape, lengths of GSM8K and Self-Instruct, 2,048 tokens a step",
        "supervised tokens/s",
        {"stage": "sft", "data": "documents", "tokens": 2048, "first": [512, 1400], "accumulate": 1, "shape": SMOLLM2},
        "ours",
        "trl_sft",
        PADDING,
        targets,
        least=2.0,
        most=0.5,
    ),
    pairs("dpo-gsm8k", "six layers, GSM8K solutions", "gsm8k", SIX_LAYERS, 4),
    pairs("dpo-chat", "six layers, chat-like pairs", "chat", SIX_LAYERS, 2),
    pairs("reference-gsm8k", "six layers, GSM8K solutions", "gsm8k", SIX_LAYERS, 4, reference=True),
    pairs("reference-chat", "six layers, chat-like pairs", "chat", SIX_LAYERS, 2, reference=True),
    pairs("dpo-gsm8k-smollm2", "SmolLM2's shape, GSM8K solutions", "gsm8k", SMOLLM2, 4),
    pairs("dpo-chat-smollm2", "SmolLM2's shape, chat-like pairs", "chat", SMOLLM2, 2),
    pairs("reference-gsm8k-smollm2", "SmolLM2's shape, GSM8K solutions", "gsm8k", SMOLLM2, 4, reference=True),
    pairs("reference-chat-smollm2", "SmolLM2's shape, chat-like pairs", "chat", SMOLLM2, 2, reference=True),
)
QUICK = ("sft", "dpo-gsm8k", "dpo-chat", "reference-chat")
"""What ``make bench`` has time for."""


def measure(rounds: int = ROUNDS, names: Iterable[str] = QUICK, precision: str = "") -> list[Measurement]:
    """Speed and peak memory of each stage.

    Args:
        rounds: Steps of each side that count.
        names: Of the stages.
        precision: ``bf16-mixed`` or ``32-true``; the faster by default.
    """
    precision = precision or fastest_precision()
    found, models = [], dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        for stage in (stage for stage in STAGES if stage.name in set(names)):
            print(stage.name, end=" ", flush=True)
            shape = str(stage.job["shape"])
            known = shape in models
            model = models.setdefault(shape, f"{folder}/{len(models)}")
            place = {"device": "cpu", "precision": precision, "references": f"{folder}/{stage.name}"}
            job = stage.job | {"model": model} | place
            if not known:
                make_model(job)
            command = f"python benchmarks/training.py --only {stage.name}"
            paired = PairedBenchmark(replace(stage, job=job, command=command), rounds)
            paired.run()
            found += paired.measurements()
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=QUICK, choices=[stage.name for stage in STAGES])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--precision", default="", choices=["bf16-mixed", "32-true"])
    options = parser.parse_args()
    show(measure(options.rounds, options.only, options.precision))


if __name__ == "__main__":
    main()
