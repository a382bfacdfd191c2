"""DPO steps on the CPU, ours against TRL's DPOTrainer: ``python benchmarks/dpo.py --model FOLDER --gsm8k FILE``.

Same weights, same pairs in the same order, same AdamW, fp32, two threads, reference log-probs computed ahead on both
sides, so that what is timed is the policy's step; each run's first is left out. Sides alternate, and each round of each
is a process of its own, so that a peak is its own: ``peak_mib`` of the whole process, ``growth_mib`` over what it held
when training began (weights and libraries). Medians of the rounds, their range, and the largest difference of the
per-step losses are printed and written as JSON. Needs ``trl`` (1.16 is what was measured).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIDES = ("ours", "trl")
MEASURES = ("pairs_per_second", "pairs_per_cpu_second", "peak_mib", "growth_mib", "tokens")


def main() -> None:
    """Measure on each data set, print, and write the figures."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            options.model = folder
            _run("model", {"model": folder, "layers": options.layers, "hidden": options.hidden})
        found = {data: compare(_job(options, data), options.rounds) for data in _data_sets(options)}
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"all rounds: {options.out}")


def compare(job: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Alternate the sides; print and return the figures of a data set.

    Args:
        job: What to train on: model, data, pairs a step, steps.
        rounds: Runs of each side.
    """
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    print(f"\n{job['data']}: {job['steps']} steps of {job['pairs']} pairs, {job['forward']} a forward; {rounds} rounds")
    for number in range(rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            runs[side].append(_run(side, job))
            print(f"  round {number + 1}, {side}: {runs[side][-1]['pairs_per_second']:.3f} pairs/s", flush=True)
    return {"job": job, "runs": runs, **_summary(runs)}


def _summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    medians: dict[str, dict[str, float]] = {side: {} for side in SIDES}
    print(f"  {'':22}{'ours':>26}{'trl':>26}{'ours / trl':>12}")
    for name in MEASURES:
        cells = []
        for side in SIDES:
            values = sorted(run[name] for run in runs[side])
            medians[side][name] = statistics.median(values)
            cells.append(f"{medians[side][name]:,.5g} ({values[0]:,.4g}-{values[-1]:,.4g})")
        ratio = medians["ours"][name] / medians["trl"][name]
        print(f"  {name:22}{cells[0]:>26}{cells[1]:>26}{ratio:12.3f}")
    apart = max(
        abs(one - other)
        for first, second in zip(runs["ours"], runs["trl"], strict=True)
        for one, other in zip(first["losses"], second["losses"], strict=True)
    )
    for side in SIDES:
        print(f"  losses {side:5}", " ".join(f"{loss:.6f}" for loss in runs[side][0]["losses"]))
    print(f"  largest difference of a step's losses: {apart:.2g}")
    return {"medians": medians, "loss_difference": apart}


def _run(side: str, job: dict[str, Any]) -> dict[str, Any]:
    # Waiting threads sleep, so that CPU time is work also on a machine that others use.
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).with_name("dpo_sides.py")), side, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _job(options: argparse.Namespace, data: str) -> dict[str, Any]:
    return {
        "data": data,
        "model": str(options.model),
        "file": str(options.gsm8k),
        "pairs": options.pairs,
        "forward": options.forward or options.pairs,
        "steps": options.steps,
    }


def _data_sets(options: argparse.Namespace) -> list[str]:
    return ["gsm8k", "chat"] if options.gsm8k else ["chat"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a causal LM; without it a random one of SmolLM2's shape")
    parser.add_argument("--layers", type=int, default=30, help="of the random model")
    parser.add_argument("--hidden", type=int, default=576, help="size of the random model, a multiple of 64")
    parser.add_argument("--gsm8k", type=Path, help="example_model_solutions.jsonl; needs --model, for its tokenizer")
    parser.add_argument("--pairs", type=int, default=4, help="a step")
    parser.add_argument("--forward", type=int, help="pairs a forward, the rest accumulated; default: all of a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("dpo_benchmark.json"))
    parser.add_argument("--quick", action="store_true", help="a small random model and one short round")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.pairs, options.steps, options.rounds = 2, 2, 2, 1
    if options.gsm8k and not options.model:
        parser.error("--gsm8k needs --model: a random model has no tokenizer")
    return options


if __name__ == "__main__":
    main()
