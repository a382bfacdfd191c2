"""The claims of docs/ablations.md, decided on the demo task by a protocol that was written down before the runs.

    python benchmarks/ablations.py --rates      # once: learning rates, on a seed that decides nothing else
    python benchmarks/ablations.py              # stopped, it goes on with the same command

A seed has its own data, made by `lion demo`, its own weights and order of rows, and its own 1,100 held-out questions.
All variants of ablation_variants.py that an undecided claim of ablation_claims.py needs are trained on it and answer
the questions greedily; their mean grade counts. Seeds are added one by one until the rule decides each claim, at most
twelve. After each seed, results/ablations.json has every number, and with --page and --figure the tables and the
picture are renewed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ablation_claims import CLAIMS, MAX_SEEDS, Claim, Decision, decide
from ablation_table import claim_table, draw, rate_table, variant_table
from ablation_variants import VARIANTS, needed, stages_of, with_rate
from results import put_lines

from lion_lightning.printing import clock
from lion_lightning.tools.demo import write_demo
from lion_lightning.tools.pipeline.configs import merged
from lion_lightning.tools.pipeline.plan import Plan, StagePlan
from lion_lightning.tools.pipeline.run import Runner
from lion_lightning.tools.pipeline.stage import DONE
from lion_lightning.tools.report.logs import read_stage

HERE = Path(__file__).parent
RESULTS, RATES = HERE / "results" / "ablations.json", HERE / "results" / "ablation_rates.json"
RATE_SEED = 100

Results = dict[str, dict[str, dict[str, Any]]]
"""Measurements by variant and seed."""


def run_variants(names: Iterable[str], stages: dict[str, StagePlan], out: Path, workers: int) -> None:
    """Train and evaluate variants of one seed, each as soon as those that it needs are done.

    Args:
        names: Which; all that they need among them.
        stages: All variants of the seed, as :func:`stages_of` gives them.
        out: Folder of the seed.
        workers: Trainings at the same time.
    """
    if not (out / "demo" / "questions.jsonl").exists():
        write_demo(out / "demo", seed=int(out.name.removeprefix("seed-")))
    waiting = [name for name in names if not (stages[name].folder / DONE).exists()]
    while waiting:
        ready = [name for name in waiting if not {VARIANTS[name].start, VARIANTS[name].judge} & {*waiting}]
        Runner(Plan(out, [[stages[name]] for name in ready], workers)).run()
        waiting = [name for name in waiting if name not in ready]


def measured(folder: Path) -> dict[str, Any]:
    """Measurements of a finished variant: its grade on the held-out questions, its losses and its cost."""
    stage = read_stage(folder)
    graded = stage.evaluation.get("accuracy", {})
    found = {"grade": graded.get("estimate"), "by": {key: one["estimate"] for key, one in graded.get("by", {}).items()}}
    found["parts"] = {key: one["estimate"] for key, one in graded.get("parts", {}).items()}
    for key in ("train/loss", "val/loss", "val/rewards/accuracy", "val/rewards/margin"):
        if values := stage.values(key):
            found[key] = values[-1]
    found["steps"] = max(stage.curves["train/loss"]) + 1
    found["seconds"] = stage.seconds
    return found


def differences(claim: Claim, results: Results) -> list[float]:
    """Grades of the claim's first variant minus those of the second, for the seeds in a row that have both."""
    found = []
    for seed in map(str, range(MAX_SEEDS)):
        pair = [results.get(name, {}).get(seed) for name in (claim.first, claim.second)]
        if None in pair:
            break
        first, second = (one["grade"] for one in pair if one)
        found.append(first - second)
    return found


def decisions(results: Results) -> list[tuple[Claim, Decision]]:
    """Each claim with its decision so far."""
    return [(claim, decide(differences(claim, results))) for claim in CLAIMS]


def search_rates(out: Path, workers: int) -> dict[str, dict[str, float]]:
    """Grade by variant and rate, of the variants with rates to choose from, on a seed that decides nothing else."""
    found: dict[str, dict[str, float]] = {}
    folder = out / f"seed-{RATE_SEED}"
    for start in ("sft", "dpo"):  # offline objectives, and then the online ones from the best DPO
        stages = stages_of(RATE_SEED, out, best_rates(found))
        run_variants(needed({start}), stages, folder, workers)
        chosen = {name: one for name, one in VARIANTS.items() if one.rates and one.start == start}
        planned: dict[tuple[str, float], StagePlan] = {}
        for name, variant in chosen.items():
            for rate in variant.rates:
                stage = stages[name]
                own = stage.folder.with_name(f"{stage.folder.name}-lr-{rate:g}")
                planned[name, rate] = _moved(stage._replace(config=merged(stage.config, with_rate(rate))), own)
        Runner(Plan(folder, [[stage] for stage in planned.values()], workers)).run()
        for (name, rate), stage in planned.items():
            found.setdefault(name, {})[f"{rate:g}"] = measured(stage.folder)["grade"]
    return found


def _moved(stage: StagePlan, folder: Path) -> StagePlan:
    """A stage with another folder for all of its output."""
    # by its text: the folder stands in many settings, alone or at the beginning of a path
    text = (
        json.dumps(stage.config).replace(f"{stage.folder}/", f"{folder}/").replace(f'"{stage.folder}"', f'"{folder}"')
    )
    return stage._replace(name=folder.name, folder=folder, config=json.loads(text))


def run_seed(seed: int, open_claims: Sequence[Claim], results: Results, out: Path, workers: int) -> None:
    """Train what the open claims need of a seed, and add its measurements to the results and their file.

    Args:
        seed: The seed.
        open_claims: Claims that are not decided yet.
        results: Measurements so far, changed in place.
        out: Folder of all seeds.
        workers: Trainings at the same time.
    """
    began = time.monotonic()
    names = needed({name for claim in open_claims for name in (claim.first, claim.second)})
    names = [name for name in names if str(seed) not in results.get(name, {})]
    stages = stages_of(seed, out, best_rates(_read(RATES)))
    run_variants(names, stages, out / f"seed-{seed}", workers)
    for name in names:
        results.setdefault(name, {})[str(seed)] = measured(stages[name].folder)
    _write(RESULTS, results)
    taken = clock(time.monotonic() - began)
    print(f"seed {seed}: {len(names)} trainings in {taken}; {len(open_claims)} claims were open", flush=True)


def best_rates(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """The rate of the highest grade, by variant."""
    return {name: float(max(grades, key=lambda rate: grades[rate])) for name, grades in found.items()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def show(results: Results, page: Path | None, figure: Path | None) -> None:
    """Print the tables, and renew them in a page and the picture where these are given."""
    decided = decisions(results)
    tables = {"claims": claim_table(decided), "variants": variant_table(results), "rates": rate_table(_read(RATES))}
    for name, lines in tables.items():
        print(*lines, "", sep="\n")
        if page:
            put_lines(page, name, lines)
    if figure:
        draw(decided, figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder of all seeds")
    parser.add_argument("--workers", type=int, default=2, help="trainings at the same time")
    parser.add_argument("--rates", action="store_true", help="search the learning rates, and decide nothing")
    parser.add_argument("--show", action="store_true", help="train nothing: tables and picture of what is measured")
    parser.add_argument("--page", type=Path, help="page to put the tables into, between their marks")
    parser.add_argument("--figure", type=Path, help="picture to draw")
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.rates:
        _write(RATES, search_rates(options.out, options.workers))
        print(*rate_table(_read(RATES)), sep="\n")
        return
    results: Results = _read(RESULTS)
    for seed in range(0 if options.show else MAX_SEEDS):
        open_claims = [claim for claim, decision in decisions(results) if not decision.outcome]
        if not open_claims:
            break
        run_seed(seed, open_claims, results, options.out, options.workers)
    show(results, options.page, options.figure)


if __name__ == "__main__":
    main()
