"""What policy gradients learn on the made-up task, beside online DPO: from the same model, prompts, judge and samples.

    make demo SEEDS=3                           # or: lion run configs/pipeline.yaml --seeds 0 1 2
    python benchmarks/policy_gradients.py --run configs/pipeline.yaml --seeds 0 1 2 --out runs/policy_gradients

Starts from the DPO stages of a finished `lion run`. All runs have the same rounds: 20 of 64 prompts, each answered
eight times at temperature 1. Rates are looked for on the first seed (RATES), and the best of each objective (BEST) is
trained on all seeds. Stopped, it goes on with the same command.

Before and after, the policies answer questions that no stage has seen: greedily, and eight times at temperature 1,
which gives the mean reward, and the divergence from the model that they start from and the entropy, both exact over
the vocabulary and summed over an answer's tokens. Intervals are those of differences to the start, or to another run,
over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ablations import Variant, folder_of, stage_of
from policy_gradient_outcomes import outcome
from typing_extensions import override

from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.tools.pipeline.configs import Config, merged
from lion_lightning.tools.pipeline.plan import Plan, read_plan
from lion_lightning.tools.pipeline.run import Runner
from lion_lightning.tools.pipeline.stage import DONE

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "policy_gradients.json"
CONFIGS = {name: {"config": f"{name}.yaml"} for name in ("sft", "dpo", "online_dpo", "grpo")}
"""Stages whose configs the runs change, next to the pipeline file."""

ROUNDS, PROMPTS, ANSWERS = 20, 64, 8
ROUND: Config = {
    "prompts_per_round": PROMPTS,
    "num_samples": ANSWERS,
    "monitor_prompts": 8,
    "sampler": {
        "class_path": "lion_lightning.sampling.TransformersSampler",
        "init_args": {"batch_size": 512, "sampling": {"temperature": 1.0, "max_new_tokens": 16}},
    },
}
FOUR_STEPS: Config = {"data": {"init_args": {"row_length": 256}}, "trainer": {"accumulate_grad_batches": 3}}
"""A round's groups with signal fill about 11 rows of 256 tokens."""

ONE_STEP: Config = {"trainer": {"accumulate_grad_batches": 1000}}
UNCLIPPED = {"clip_low": None}


class FourPasses(OnPolicySampling):
    """Samples a round every fourth epoch, and trains on it four times."""

    @override
    def should_sample(self, epoch: int) -> bool:
        return epoch % 4 == 0


FOUR_PASSES: Config = {
    "trainer": {"max_epochs": 4 * ROUNDS, "accumulate_grad_batches": 1000},
    "sampling_class": "policy_gradients.FourPasses",
}


def _loss(name: str, **arguments: Any) -> Config:
    loss = {"class_path": f"lion_lightning.losses.{name}", "init_args": arguments}
    return {"model": {"init_args": {"loss": loss}}}


def _rate(rate: float) -> Config:
    return {"model": {"init_args": {"optimizer": {"init_args": {"lr": rate}}}}}


OBJECTIVES: dict[str, Config] = {
    "GRPO": merged(_loss("GRPOLoss", beta=0.0), FOUR_STEPS),
    "RLOO": merged(_loss("RLOOLoss", beta=0.0), FOUR_STEPS),
    "DAPO": merged(_loss("DAPOLoss", beta=0.0), FOUR_STEPS),
    "online DPO": {"data": {"init_args": {"validation": None}}},
}
RATES: dict[str, Sequence[float]] = dict.fromkeys(OBJECTIVES, (1e-4, 2e-4, 4e-4))
BEST = {"GRPO": 2e-4, "RLOO": 2e-4, "DAPO": 2e-4, "online DPO": 2e-4}
"""Of RATES, by the held-out reward of the first seed."""


class Run(NamedTuple):
    """One setting of an objective.

    Attributes:
        variant: Its config, and what is changed in it.
        against: Name of the run that it is compared with; None for none.
        seeds: How many of the seeds it is trained on; None for all.
    """

    variant: Variant
    against: str | None = None
    seeds: int | None = None

    @property
    def name(self) -> str:
        """Its name in the table."""
        return self.variant.name


def _run(name: str, objective: str, rate: float, change: Config, against: str | None, seeds: int | None) -> Run:
    stage = "online_dpo" if objective == "online DPO" else "grpo"
    whole = merged(merged(OBJECTIVES[objective], _rate(rate)), change)
    return Run(Variant(stage, name, whole, "dpo"), against, seeds)


def _rate_runs() -> Iterator[Run]:
    for objective, rates in RATES.items():
        for rate in rates:
            best = rate == BEST[objective]
            against = "online DPO, lr {:g}".format(BEST["online DPO"]) if best and objective != "online DPO" else None
            yield _run(f"{objective}, lr {rate:g}", objective, rate, {}, against, None if best else 1)


GRPO = "GRPO, lr {:g}".format(BEST["GRPO"])


def _grpo_run(name: str, change: Config) -> Run:
    return _run(f"GRPO, {name}", "GRPO", BEST["GRPO"], change, GRPO, None)


RUNS = (
    *_rate_runs(),
    _grpo_run("beta 0.05", _loss("GRPOLoss", beta=0.05)),
    _grpo_run("beta 0.5", _loss("GRPOLoss", beta=0.5)),
    _grpo_run("no clipping", _loss("GRPOLoss", beta=0.0, **UNCLIPPED)),
    _grpo_run("one step a round", ONE_STEP),
    _run("GRPO, 45 rounds", "GRPO", BEST["GRPO"], {"trainer": {"max_epochs": 45}}, GRPO, 1),
    _grpo_run("each round four times", FOUR_PASSES),
    _grpo_run("each round four times, no clipping", merged(FOUR_PASSES, _loss("GRPOLoss", beta=0.0, **UNCLIPPED))),
)


def plan_of(base: Plan, out: Path, runs: Sequence[Run]) -> Plan:
    """The runs as stages, for the seeds of a finished run.

    Args:
        base: The finished run's plan, with the stages of :data:`CONFIGS`.
        out: Where the runs go.
        runs: Which of them.
    """
    chains = []
    for run in runs:
        for chain in base.chains[: run.seeds]:
            stages = {stage.name: stage for stage in chain}
            common: Config = {
                "trainer": {"max_epochs": ROUNDS, "log_every_n_steps": 1},
                "sampling": {**ROUND, "seed": chain[0].config.get("seed_everything", 0)},
            }
            change = merged(common, dict(run.variant.change))
            sampling_class = change.pop("sampling_class", None)
            stage = stage_of(stages, run.variant._replace(change=change), out / chain[0].folder.parent.name)
            for callback in stage.config["trainer"]["callbacks"]:
                if sampling_class and callback["class_path"].endswith("OnPolicySampling"):
                    callback["class_path"] = sampling_class
            chains.append([stage])
    return Plan(out, chains, base.workers)


def results(base: Plan, out: Path) -> dict[str, Any]:
    """Numbers of each run by seed, of those that are done, as plain data; ``start`` has the models they start from.

    Args:
        base: The finished run's plan.
        out: Folder of the runs.
    """
    found: dict[str, dict[str, Any]] = {"start": {}}
    for chain in base.chains:
        seed = chain[0].folder.parent.name
        start = next(stage for stage in chain if stage.name == "dpo")
        assert start.evaluate
        source = start.evaluate["prompts"][0]["path"]
        found["start"][seed] = outcome(start.folder, start.folder, source)._asdict()
        for run in RUNS:
            folder = folder_of(run.variant, out / seed)
            if (folder / DONE).exists():
                found.setdefault(run.name, {})[seed] = outcome(folder, start.folder, source)._asdict()
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", type=Path, default=Path("configs/pipeline.yaml"), help="pipeline file, with the configs"
    )
    parser.add_argument("--run-out", help="folder of the finished run, if not the file's")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds of that run, if not the file's")
    parser.add_argument("--workers", type=int, help="runs at a time, if not the file's")
    parser.add_argument("--out", type=Path, default=Path("runs/policy_gradients"))
    parser.add_argument("--only", nargs="+", help="names of runs, as the table has them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write every seed's numbers to")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    given: Mapping[str, Any] = {"out": options.run_out, "seeds": options.seeds, "workers": options.workers}
    known = {key: value for key, value in given.items() if value is not None}
    base = read_plan(options.run, {"stages": CONFIGS, **known})
    runs = [run for run in RUNS if options.only is None or run.name in options.only]
    Runner(plan_of(base, options.out, runs)).run()
    options.results.write_text(json.dumps(results(base, options.out), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
