"""Everything that only a GPU can tell, in one go of under ten minutes: parity, speed, memory.

    python benchmarks/gpu.py [--only parity sft] [--rounds 8] [--out FILE]
    python benchmarks/gpu.py --tiny --device cpu     # the same lines with a tiny model, to see that they run

Parts, each with a time budget: what the machine is, whether packed rows are exact there (``gpu_checks.py``), SFT, DPO
and GRPO against TRL's trainers (``paired_benchmark.py``), a round of own answers against the bare engine. Workers are
processes on the same device that take turns; where TRL is not installed, ours runs alone. Parts that fail print why,
and the next one runs; the exit status is 1 if one has failed. A target that is missed is no failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import results
import rollout
import torch
from gpu_checks import Check, Place, checks, path_taken
from gpu_group_checks import group_checks
from grpo_tables import EIGHT, PROMPTS, against_grpo
from measurements import Measurement, show
from paired_benchmark import PEER, PairedBenchmark, Stage, make_model, tokens

OUT = Path(__file__).parent / "results" / "gpu.json"
BUDGETS = {"machine": 60.0, "parity": 85.0, "sft": 150.0, "dpo": 130.0, "grpo": 100.0, "round": 65.0}
"""Seconds at most; together under ten minutes."""
LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FLASH: dict[str, Any] = {"attention": "flash_attention_2"}


@dataclass
class Run:
    """What is asked for, and what was found so far.

    Attributes:
        device: ``cuda`` or ``cpu``.
        tiny: Whether the model and its rows are made small.
        rounds: Turns of each side that count.
        peak: Dense bf16 FLOP/s of the device; None where that is not known.
    """

    device: str
    tiny: bool
    rounds: int
    peak: float | None
    machine: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write all of it.

        Args:
            path: A JSON file.
        """
        tested = [asdict(check) | {"passed": check.passed} for check in self.checks]
        more = {"machine": self.machine, "parity": tested, "errors": self.errors, "seconds": self.seconds}
        results.save(path, self.measurements, **more)


def machine(run: Run) -> None:
    """What the measurements are from, and which attention ``lion`` takes there."""
    run.machine |= results.machine()
    run.machine["device"] = torch.cuda.get_device_name() if run.device == "cuda" else run.device
    run.machine["dense bf16 peak"] = f"{run.peak:.4g} FLOP/s" if run.peak else "not known"
    run.machine["model"] = "tiny" if run.tiny else "Llama 3.2 1B's shape, vocabulary 49,152, random"
    run.machine["attention path under bf16-mixed"] = path_taken(Place(run.device, run.tiny))
    for name, value in run.machine.items():
        print(f"{name}: {value}")


def parity(run: Run) -> None:
    """Packed rows, the head and references are exact.

    Raises:
        ArithmeticError: If one is not.
    """
    place = Place(run.device, run.tiny)
    for check in chain(checks(place), group_checks(place)):
        run.checks.append(check)
        print(check.row(), flush=True)
    if run.device == "cuda":
        torch.cuda.empty_cache()
    if wrong := [check.what for check in run.checks if not check.passed]:
        raise ArithmeticError(f"{len(wrong)} checks failed: {'; '.join(wrong)}")


def sft(run: Run) -> None:
    """Tokens a second, MFU and peak memory of fine-tuning."""
    settings: dict[str, dict[str, Any]] = {
        "padding-free, SDPA": {"padding_free": True},
        "padded, batches by length, SDPA": {"by_length": True},
    }
    if find_spec("flash_attn"):
        settings = {"padding-free, flash-attn": {"padding_free": True, **FLASH}, **settings}
    length, each = (512, 2) if run.tiny else (8192, 4)
    compare(
        run,
        Stage(
            "sft",
            f"SFT, {length:,}-token rows, {each} a step",
            "tokens/s",
            {"stage": "sft", "data": "documents", "tokens": length, "accumulate": each},
            "ours",
            "trl_sft",
            settings,
            tokens,
            least=1.1,
        ),
    )


def dpo(run: Run) -> None:
    """Pairs a second and peak memory of DPO with a cached reference."""
    settings: dict[str, dict[str, Any]] = {"padded, SDPA": {}}
    if find_spec("flash_attn"):
        settings["padded, flash-attn"] = FLASH
    data, pairs = ("gsm8k", 1) if run.tiny else ("chat", 10)
    compare(
        run,
        Stage(
            "dpo",
            f"DPO, cached reference, {data} pairs, {pairs} x 2 a step",
            "pairs/s",
            {"stage": "dpo", "data": data, "pairs": pairs, "accumulate": 2},
            "ours",
            "trl_dpo",
            settings,
            len,
            least=1.8,
            most=0.6,
        ),
    )


def grpo(run: Run) -> None:
    """Answers a second and peak memory of a step on groups of own answers, all right or wrong."""
    number, lengths = (4, [[6, 9], [4, 8]]) if run.tiny else (8, [PROMPTS, EIGHT])
    job = {"trees": 2, "answers": number, "lengths": lengths}
    what = f"GRPO, 2 prompts x {number} answers a step"
    stage = against_grpo("grpo", what, job, (number,) if run.tiny else (4, 8, 16), least=2.0)
    compare(run, replace(stage, peak="peak_mib"))


def whole_round(run: Run) -> None:
    """Tokens a second of sampling, judging and writing, over the bare engine's."""
    large = {"layers": 16, "hidden": 2048, "new_tokens": 128, "batch_size": 256, "prompts": 64}
    tiny = {"layers": 1, "hidden": 64, "new_tokens": 4, "batch_size": 16, "prompts": 4}
    rounds, sizes = (1, tiny) if run.tiny else (2, large)
    run.measurements += rollout.measure(rounds, items=("groups",), device=run.device, **sizes)


def compare(run: Run, stage: Stage) -> None:
    """Let both sides train, and keep the measurements.

    Args:
        run: What is asked for; the measurements are put there.
        stage: What they do.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = {"device": run.device, "precision": "bf16-mixed" if run.device == "cuda" else "32-true"}
        model = {"model": folder, "shape": TINY if run.tiny else LLAMA_1B, "dtype": "bfloat16"}
        job = stage.job | place | model
        make_model(job)
        command = f"python benchmarks/gpu.py --only {stage.name}"
        warm_up, trial, large = (1, 1, 512) if run.tiny else (2, 2, 8192)
        paired = PairedBenchmark(replace(stage, job=job, command=command), run.rounds, warm_up, trial, large)
        paired.run()
    run.measurements += [*paired.measurements(), *_efficiency(run, paired)]
    if find_spec("trl") is None:
        print("TRL is not installed: ours alone")
    elif PEER not in paired.turns:
        run.errors[f"{stage.name}: TRL"] = "; ".join(f"{name}: {error}" for name, error in paired.errors.items())
    for name, error in paired.errors.items():
        print(f"TRL, {name}, left out: {error}")


def _efficiency(run: Run, paired: PairedBenchmark) -> Iterator[Measurement]:
    """MFU, and the same over what a large matrix product reaches."""
    what = paired.stage.what
    if run.peak:
        least = 0.5 if paired.stage.name == "sft" else None
        shares = [rate / run.peak for rate in paired.rates]
        yield Measurement(f"{what}: MFU", "of the dense bf16 peak", shares, least=least)
    yield Measurement(f"{what}: FLOP/s", "of a large matmul's in the same round", paired.shares)


PARTS: dict[str, Callable[[Run], None]] = {
    "machine": machine,
    "parity": parity,
    "sft": sft,
    "dpo": dpo,
    "grpo": grpo,
    "round": whole_round,
}


def dense_peak(device: str) -> float | None:
    """FLOP/s that the device can do in bf16 without sparsity, as far as known.

    Args:
        device: ``cuda`` or ``cpu``.
    """
    from lion_lightning.callbacks.monitors.throughput import listed_peak

    return listed_peak(torch.device("cuda"), torch.bfloat16) if device == "cuda" else None


@contextmanager
def _budget(seconds: float) -> Iterator[None]:
    """Stop what takes longer, also where it waits for another process."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than its {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def perform(run: Run, parts: Sequence[str], out: Path) -> None:
    """The parts in turn; what is known is written after each.

    Args:
        run: What is asked for.
        parts: Their names.
        out: A JSON file.
    """
    for name in parts:
        print(f"--- {name}", flush=True)
        start = time.perf_counter()
        try:
            with _budget(BUDGETS[name] * (4 if run.tiny else 1)):
                PARTS[name](run)
        except (Exception, SystemExit) as error:
            run.errors[name] = f"{type(error).__name__}: {error}"[-2000:]
            print("".join(traceback.format_exception(error))[-3000:])
        run.seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {run.seconds[name]} seconds", flush=True)
        run.save(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model: to see that all of this runs")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--peak", type=float, help="dense bf16 FLOP/s of the device, where they are not known here")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        parser.error("there is no GPU here; `--tiny` shows that the script runs")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # the sides share the memory
    run = Run(options.device, options.tiny, options.rounds, options.peak or dense_peak(options.device))
    perform(run, options.only, options.out)
    show(run.measurements)
    print(f"seconds: {run.seconds}, all {sum(run.seconds.values()):.0f}")
    if run.errors:
        raise SystemExit("\n".join(f"{name} failed: {error[-300:]}" for name, error in run.errors.items()))


if __name__ == "__main__":
    main()
