"""Everything that only a GPU can tell, in one go of under eight minutes: parity, speed, memory.

    python benchmarks/gpu.py [--only parity sft] [--rounds 8] [--out FILE]
    python benchmarks/gpu.py --tiny --device cpu     # the same lines with a tiny model, to see that they run

Four parts, each with a time budget: what the machine is, whether packed rows are exact there (``gpu_checks.py``), SFT
and DPO against TRL's trainers (``gpu_duel.py``). Sides are processes of their own on the same device that take turns;
where TRL is not installed, ours runs alone. Parts that fail print why, and the next one runs; the exit status is 1 if
one has failed. A target that is missed is no failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from figures import show
from gpu_checks import Place, checks, path_taken
from gpu_duel import Duel, Run

OUT = Path(__file__).parent / "results" / "gpu.json"
BUDGETS = {"machine": 60.0, "parity": 90.0, "sft": 165.0, "dpo": 150.0}
"""Seconds at most; together under eight minutes."""
DENSE_BF16 = {"h200": 989.4e12, "h100 nvl": 835.5e12}
"""FLOP/s of devices whose entry in Lightning's table is missing, or counts sparsity."""


def machine(run: Run) -> None:
    """What the figures are from, and which attention ``lion`` takes there."""
    packages = ("torch", "transformers", "lightning", "trl", "flash_attn", "liger_kernel")
    run.machine |= {name: _version(name) for name in packages}
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
    for check in checks(Place(run.device, run.tiny)):
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
        flash = {"padding_free": True, "attention": "flash_attention_2"}
        settings = {"padding-free, flash-attn": flash, **settings}
    duel = Duel(run, "sft", "trl_sft", settings)
    duel.fight()
    what = f"SFT, {duel.job['tokens']:,}-token rows, {duel.job['accumulate']} a step"
    duel.tell(what, "tokens/s", lambda items: sum(item.length for item in items), 1.1, None)


def dpo(run: Run) -> None:
    """Pairs a second and peak memory of DPO with a cached reference."""
    settings: dict[str, dict[str, Any]] = {"padded, SDPA": {}}
    if find_spec("flash_attn"):
        settings["padded, flash-attn"] = {"attention": "flash_attention_2"}
    duel = Duel(run, "dpo", "trl_dpo", settings)
    duel.fight()
    what = f"DPO, cached reference, {duel.job['data']} pairs, {duel.job['pairs']} x {duel.job['accumulate']} a step"
    duel.tell(what, "pairs/s", len, 1.8, 0.6)


PARTS: dict[str, Callable[[Run], None]] = {"machine": machine, "parity": parity, "sft": sft, "dpo": dpo}


def dense_peak(device: str) -> float | None:
    """FLOP/s that the device can do in bf16 without sparsity, as far as known.

    Args:
        device: ``cuda`` or ``cpu``.
    """
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name().lower()
    known = [flops for kind, flops in DENSE_BF16.items() if all(word in name for word in kind.split())]
    if known:
        return known[0]
    from lightning.fabric.utilities.throughput import get_available_flops

    return get_available_flops(torch.device("cuda"), torch.bfloat16)


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


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
    show(run.figures)
    print(f"seconds: {run.seconds}, all {sum(run.seconds.values()):.0f}")
    if run.errors:
        raise SystemExit("\n".join(f"{name} failed: {error[-300:]}" for name, error in run.errors.items()))


if __name__ == "__main__":
    main()
