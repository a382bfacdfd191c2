"""Findings of HealthMonitor: faults planted into small runs of the demo, and healthy runs of it.

    make demo                                       # or: lion run configs/pipeline.yaml
    python benchmarks/health.py --recorded runs/pipeline/seed-*/*

Starts from the SFT and the DPO of a finished `lion run`. Each run is a stage of the demo in small, through all of its
steps: SFT on 300 conversations, DPO and KTO on 400 pairs, online DPO and GRPO on three rounds of 40 prompts with eight
answers. Stopped, it goes on with the same command. Faults of many rounds are planted into the recorded ones of the
online DPO, and recorded stages of full size are healthy runs, too; both are shown to the detectors again. The table
says for each symptom how many of the planted faults were found, and how many of the healthy runs it was said of. A run
that stops with the symptom as its error has found it, too.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from health_cases import SYMPTOMS, Case, healthy, planted
from health_streams import STREAMS, found, planted_rounds, recorded
from results import put_lines

from lion_lightning.callbacks.monitors.health import Finding, Sampled, read_findings
from lion_lightning.cli import main as lion
from lion_lightning.tools.pipeline.configs import Config, merged
from lion_lightning.tools.train.config_file import read_config_file, with_files_read

SFT, PAIRS, HELD_OUT, PROMPTS, ROUNDS = 300, 400, 30, 40, 3
"""Conversations, pairs, held-out rows, prompts of a round, and rounds."""

START = {"dpo": "sft", "kto": "sft", "online_dpo": "dpo", "grpo": "dpo"}


STOPPING = ("NaN or infinity", "ties")
"""Symptoms with which `lion fit` may stop, and say so, before a detector sees the step or the round."""


def small(stage: str, configs: Path, run: Path, seed: int) -> Config:
    """The config of a stage of the demo, in small.

    Args:
        stage: Its name.
        configs: Folder of the configs.
        run: Folder of a seed of a finished run.
        seed: Of the draw of rows and prompts.
    """
    config: Config = with_files_read(read_config_file(configs / f"{stage}.yaml"), configs)
    arguments = config["data"]["init_args"]
    # shares of the demo's rows
    rows = {"sources": SFT / 5000 if stage == "sft" else PAIRS / 4000, "validation": HELD_OUT / 330}
    for name, fraction in rows.items():
        for source in arguments.get(name, ()):
            source |= {"fraction": fraction, "seed": seed}
    if stage != "sft":
        config["model"]["init_args"]["policy"] = {"path": str(run / START[stage] / "export")}
    trainer = config["trainer"]
    trainer["callbacks"] = [each for each in trainer["callbacks"] if each["class_path"].endswith("OnPolicySampling")]
    for callback in trainer["callbacks"]:
        callback["init_args"] |= {"prompts_per_round": PROMPTS, "monitor_prompts": 4, "seed": seed}
        trainer["max_epochs"] = ROUNDS
    return merged(config, {"trainer": {"enable_progress_bar": False, "enable_model_summary": False}})


def config_of(case: Case, configs: Path, run: Path, folder: Path) -> Config:
    """The config of a case; arguments as of :func:`small`, and the folder that the run writes to."""
    config = merged(small(case.stage, configs, run, case.change.get("seed_everything", 0)), case.change)
    arguments, trainer = config["data"]["init_args"], config["trainer"]
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] *= case.factor
    if transform := arguments.pop("transform", None):
        for source in arguments["sources"]:
            source["transform"] = transform
    for callback in trainer["callbacks"]:
        judge = judged(callback["init_args"]["judge"], case)
        callback["init_args"] = merged(callback["init_args"], case.sampling) | {"judge": judge}
    trainer["callbacks"] += list(case.callbacks)
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
    own = {"default_root_dir": str(folder), "enable_checkpointing": False, "logger": logger}
    return merged(config, {"trainer": own})


def judged(own: Config, case: Case) -> Config:
    """The judge of a case, from the config's own."""
    if not case.judges:
        return own
    likes = [{"class_path": "health_plants.Likes", "init_args": {"what": what}} for what in case.judges]
    names, weights, judges = list(case.judges), list(case.judges.values()), likes
    if case.own:
        parts = own.get("init_args", {}) if own["class_path"].endswith("WeightedJudge") else {}
        names = [*parts.get("names", ["right"]), *names]
        weights = [*(case.own * weight for weight in parts.get("weights", [1.0])), *weights]
        judges = [*parts.get("judges", [own]), *likes]
    arguments = {"names": names, "weights": weights, "judges": judges}
    return {"class_path": "lion_lightning.judges.WeightedJudge", "init_args": arguments}


def run_case(case: Case, configs: Path, run: Path, out: Path) -> dict[str, Any]:
    """Train a case, unless that is done, and say what was found."""
    folder = out / case.folder
    done = folder / "outcome.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config_of(case, configs, run, folder)), "utf-8")
        began = time.process_time()
        code = lion(["fit", "-c", str(path)])
        if code and case.symptom not in STOPPING:
            raise SystemExit(f"{path}: the run failed; fix it and start again")
        watched = folder / "health.jsonl"  # not there where the run stopped before its first step
        found = [finding.to_dict() for finding in read_findings(watched)] if watched.exists() else []
        outcome = {"code": code, "seconds": round(time.process_time() - began, 1), "findings": found}
        done.write_text(json.dumps(outcome, indent=1) + "\n", "utf-8")
    known: dict[str, Any] = json.loads(done.read_text("utf-8"))
    return {"run": case.folder, "planted": case.symptom, **known}


def replayed(stages: Iterable[Path], online: Path) -> list[dict[str, Any]]:
    """Outcomes of recorded runs, with faults and without.

    Args:
        stages: Folders of healthy stages.
        online: Folder of the stage whose rounds are given faults.
    """
    rounds = [
        event._replace(rollouts=event.rollouts[:150]) for _, event in recorded(online) if isinstance(event, Sampled)
    ]
    outcomes = []
    for stream in STREAMS:
        findings = found((float(sampled.step), sampled) for sampled in planted_rounds(stream, rounds))
        outcomes.append(_outcome(f"{stream.symptom}/recorded, {stream.name}", stream.symptom, findings))
    for stage in stages:
        outcomes.append(_outcome(f"healthy/recorded, {'/'.join(stage.parts[-3:])}", None, found(recorded(stage))))
    return outcomes


def _outcome(run: str, planted_symptom: str | None, findings: Iterable[Finding]) -> dict[str, Any]:
    plain = [finding.to_dict() for finding in findings]
    return {"run": run.replace(", ", "_").replace(" ", "_"), "planted": planted_symptom, "code": 0, "findings": plain}


def table(outcomes: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each symptom, and one for all, in Markdown."""
    runs = list(outcomes)
    healthy_runs = [one for one in runs if one["planted"] is None]
    lines = [
        "| symptom | faults trained | recorded | found | healthy runs | false alarms |",
        "|---|---|---|---|---|---|",
    ]
    totals = [0, 0, 0, 0]
    for symptom in SYMPTOMS:
        faults = [one for one in runs if one["planted"] == symptom]
        trained = sum("seconds" in one for one in faults)
        found_in = [sum(_names(one, symptom) for one in some) for some in (faults, healthy_runs)]
        counts = [trained, len(faults) - trained, *found_in]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        lines.append("| {} | {} | {} | {} | {} | {} |".format(symptom, *counts[:3], len(healthy_runs), counts[3]))
    return [*lines, "| all | {} | {} | {} | {} | {} |".format(*totals[:3], len(healthy_runs), totals[3])]


def _names(outcome: dict[str, Any], symptom: str) -> bool:
    if outcome["code"] and symptom in STOPPING:
        return True
    return any(finding["symptom"] == symptom for finding in outcome["findings"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    outcomes = []
    for case in [*planted(), *healthy()]:
        is_done = (options.out / case.folder / "outcome.json").exists()
        if any(word in case.folder for word in options.only) and (is_done or not options.done):
            outcomes.append(run_case(case, options.configs, options.run, options.out))
            said = ", ".join(finding["symptom"] for finding in outcomes[-1]["findings"])
            print(f"{case.folder}: {outcomes[-1]['seconds']:.0f} s; {said or 'nothing'}", flush=True)
    if (options.run / "online_dpo").exists():
        outcomes += replayed(options.recorded, options.run / "online_dpo")
    lines = table(outcomes)
    print("\n".join(lines))
    if options.results:
        options.results.write_text(json.dumps(outcomes, indent=1) + "\n", "utf-8")
    if options.page:
        put_lines(options.page, "health", lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="folder of the demo's configs")
    parser.add_argument("--run", type=Path, default=Path("runs/pipeline/seed-0"), help="seed of a finished `lion run`")
    parser.add_argument("--out", type=Path, default=Path("runs/health"))
    parser.add_argument("--recorded", type=Path, nargs="*", default=[], help="folders of healthy stages of full size")
    parser.add_argument("--done", action="store_true", help="train nothing: only count what was trained before")
    parser.add_argument("--only", nargs="+", default=[""], help="runs whose folder's name has one of these words")
    parser.add_argument("--results", type=Path, help="JSON file to write all outcomes to")
    parser.add_argument("--page", type=Path, help="page to put the table into, between its marks")
    return parser


if __name__ == "__main__":
    main()
