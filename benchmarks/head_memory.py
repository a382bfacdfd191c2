"""Peak memory and time of the head and its loss, in tiles and plain: ``python benchmarks/head_memory.py``.

Each way runs in a process of its own, so that a peak is its own; ways alternate, and medians of the rounds are printed.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

TARGETS, HIDDEN, VOCABULARY, ROUNDS = 2048, 576, 49152, 5


def measure(way: str) -> None:
    """Print MiB that a forward and backward add to the process's peak, and its seconds after one warm-up."""
    import torch

    from lion_lightning.ops.logprobs import token_logps

    hidden = torch.randn(TARGETS, HIDDEN, requires_grad=True)
    weight = (torch.randn(VOCABULARY, HIDDEN) * 0.02).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (TARGETS,))
    ways = {
        "tiled": lambda: -token_logps(hidden, weight, targets).values.sum(),
        "plain": lambda: torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum"),
    }
    torch.autograd.backward(token_logps(hidden[:8], weight, targets[:8]).values.sum())  # gradients exist before
    before = _peak_mib()
    for _ in range(2):
        started = time.perf_counter()
        torch.autograd.backward(ways[way]())
        seconds = time.perf_counter() - started
    print(_peak_mib() - before, seconds)


def main() -> None:
    """Alternate the two ways and print medians and their ratio."""
    measurements: dict[str, list[tuple[float, float]]] = {"tiled": [], "plain": []}
    for _ in range(ROUNDS):
        for way, found in measurements.items():
            printed = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True).stdout
            mib, seconds = map(float, printed.split())
            found.append((mib, seconds))
    print(f"{TARGETS} targets, hidden {HIDDEN}, vocabulary {VOCABULARY}, fp32, {ROUNDS} rounds")
    medians = {
        way: [statistics.median(column) for column in zip(*found, strict=True)] for way, found in measurements.items()
    }
    for way, (mib, seconds) in medians.items():
        print(f"{way:8} {mib:7.0f} MiB  {seconds:6.2f} s")
    ratios = [one / other for one, other in zip(medians["tiled"], medians["plain"], strict=True)]
    print(f"tiled over plain: memory {ratios[0]:.2f}, time {ratios[1]:.2f}")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
