"""Kills runs at random moments, goes on by the documented command, and compares the end with an undisturbed run.

``python benchmarks/kills.py --kills 100 --seed 0`` runs SFT, DPO, online DPO (``lion fit ... --ckpt_path last``) and
all three stages of ``lion run``, with a tiny model, each several times. Each is sent SIGKILL, SIGTERM or SIGINT again
and again: at a random change among its files, at a temporary file of a checkpoint or an export, or at a random moment
of its start. What must be equal in the end, bit for bit: weights, optimizer and schedule of every checkpoint that the
undisturbed run has, every value that was logged (but speeds), all rounds with their summaries, and every file of the
export. The exit code after a signal must be 128 plus its number.

It prints a line a run and, at the end, the kills by kind of run and by what was going on: start-up, training, the
writing of a checkpoint, sampling, judging, the end of training, the export, and between stages. Exits with 1 if
anything differed. 100 kills take about half an hour on two cores; processes are forked from one that has imported
everything, only the stages of ``lion run`` start as they do for everybody.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lion_lightning.processes.stopping import default_interrupts
from lion_lightning.tools.demo import write_demo

KINDS = ("sft", "dpo", "online_dpo", "run")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 8
"""Of one run; then it may end."""

PATIENCE = 600.0
"""Seconds that a process may take."""

JUDGE = '''"""A judge that costs nothing."""

import zlib


class Odd:
    def score(self, prompts, answers):
        return [[float(zlib.crc32(text.encode()) % 97) for text in texts] for texts in answers]
'''


class Kill(NamedTuple):
    """A process that was killed.

    Attributes:
        kind: Of run.
        moment: What was going on.
        signum: The signal.
        code: Exit code, as a shell would say it.
    """

    kind: str
    moment: str
    signum: int
    code: int


class Bench:
    """A folder with data, configs and runs.

    Args:
        folder: Where all of it goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_demo(folder / "demo", train=48, validation=8, preferences=48, prompts=40, questions=4)

    def prepare(self, name: str) -> Path:
        """A folder for a run, with its configs."""
        run = self.folder / name
        run.mkdir()
        for kind in KINDS[:-1]:
            (run / f"{kind}.yaml").write_text(yaml.safe_dump(self.config(kind), sort_keys=False))
        stages = {kind: {"config": f"{kind}.yaml"} for kind in KINDS[:-1]}
        (run / "run.yaml").write_text(yaml.safe_dump({"out": "out", "stages": stages}, sort_keys=False))
        (run / "odd_judge.py").write_text(JUDGE)
        return run

    def config(self, kind: str) -> dict[str, Any]:
        """Config of ``lion fit``; a stage starts from the undisturbed run's export of the one before."""
        demo, before = self.folder / "demo", {"dpo": "sft", "online_dpo": "dpo"}.get(kind)
        start = {"path": str(self.folder / f"whole_{before}" / "out" / "export")} if before else None
        model = {
            "policy": start or {"config": str(demo / "model")},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            "lr_scheduler": {"class_path": "lion_lightning.modules.LinearWithWarmup", "init_args": {"warmup": 0.2}},
        }
        data: dict[str, Any] = {"max_length": 96, "batch_size": 1}
        if kind == "sft":
            data |= {"sources": _sources(demo / "train.jsonl"), "validation": _sources(demo / "validation.jsonl")}
        else:
            data |= {"validation": _sources(demo / "preferences_validation.jsonl"), "row_length": 192}
            data |= {_PROMPTED[kind][0]: _sources(demo / _PROMPTED[kind][1])}
        trainer: dict[str, Any] = {
            "accelerator": "cpu",
            "default_root_dir": "out",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "num_sanity_val_steps": 0,
            "callbacks": [*_CALLBACKS, *([_SAMPLING] if kind == "online_dpo" else [])],
        }
        if kind == "online_dpo":
            trainer["reload_dataloaders_every_n_epochs"] = 1
        classes = _CLASSES[kind]
        return {
            "seed_everything": 0,
            "model": {"class_path": f"lion_lightning.{classes[0]}", "init_args": model},
            "data": {"class_path": f"lion_lightning.{classes[1]}", "init_args": data},
            "trainer": trainer,
        }


_CLASSES = {
    "sft": ("SFTModule", "SFTDataModule"),
    "dpo": ("DPOModule", "PreferenceDataModule"),
    "online_dpo": ("OnlineDPOModule", "OnPolicyDataModule"),
}
_PROMPTED = {"dpo": ("sources", "preferences.jsonl"), "online_dpo": ("prompts", "prompts.jsonl")}
_SAMPLING = {
    "class_path": "lion_lightning.callbacks.OnPolicySampling",
    "init_args": {
        "sampler": {
            "class_path": "lion_lightning.sampling.TransformersSampler",
            "init_args": {"sampling": {"temperature": 1.0, "max_new_tokens": 8}},
        },
        "judge": "odd_judge.Odd",
        "num_samples": 3,
        "monitor_prompts": 4,
        "chunk_size": 4,
        "keep_unfinished": True,
    },
}
_CALLBACKS: list[dict[str, Any]] = [
    {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {
            "dirpath": "out/checkpoints",
            "every_n_train_steps": 2,
            "save_last": "link",
            "save_top_k": -1,
        },
    },
    {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {
            "dirpath": "out/checkpoints",
            "filename": "end-{epoch}",
            "save_on_train_epoch_end": True,
            "save_top_k": -1,
        },
    },
    {"class_path": "lion_lightning.callbacks.Provenance"},
    {
        "class_path": "lion_lightning.callbacks.BeforeAfter",
        "init_args": {"prompts": ["Spell tako."], "max_new_tokens": 4},
    },
    {"class_path": "lion_lightning.callbacks.HuggingFaceExport"},
]


def _sources(path: Path) -> list[dict[str, str]]:
    return [{"path": str(path)}]


def start(run: Path, kind: str) -> int:
    """Start the documented command, which begins a run or goes on with it; its process has a group of its own."""
    arguments = ["run", "run.yaml", "--no-report"] if kind == "run" else ["fit", "-c", f"{kind}.yaml"]
    arguments += [] if kind == "run" else ["--ckpt_path", "last"]
    sys.stdout.flush()
    if child := os.fork():
        with suppress(OSError):
            os.setpgid(child, child)  # here as well: it may be killed before it does so itself
        return child
    os.setpgid(0, 0)
    os.chdir(run)
    os.environ["LION_CACHE"] = str(run / "cache")
    log = os.open(run / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path.insert(0, str(run))
    from lion_lightning.cli import main

    code = 1
    try:
        code = main(arguments)
    finally:
        sys.stdout.flush()
        os._exit(code)


def changes(run: Path) -> Files:
    """Files of a run as they are now: name, size and time of change."""
    found = []
    for folder, _, files in os.walk(run):
        for name in files:
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            found.append((os.path.join(folder, name), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def watched(run: Path, child: int, stop: Callable[[Files, int, float], bool]) -> tuple[int | None, int]:
    """Wait for a process; its exit code, None if ``stop`` said to kill it, and how often its files changed.

    Args:
        run: The run's folder.
        child: The process.
        stop: From the latest changes, their number and the seconds so far to whether it is time.
    """
    began, seen, count = time.monotonic(), changes(run), 0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), count
        now = changes(run)
        new, seen = now - seen, now
        count += bool(new)
        if stop(new, count, time.monotonic() - began):
            return None, count
        if time.monotonic() - began > PATIENCE:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"{run}: still running after {PATIENCE:.0f} s; see log.txt there")
        time.sleep(0.002)


Files = frozenset[tuple[str, int, int]]
DRAFTS = ("epoch.*.ckpt", "end-.*.ckpt", "last.ckpt", "export")
MORE_DRAFTS = {"online_dpo": ("plan.json", "sampled-.*", "judged-.*", "round-.*"), "run": ("done.json", "round-.*")}
"""Files whose temporary file, or which themselves, is looked out for."""


def moment(draw: random.Random, kind: str, most: int) -> Callable[[Files, int, float], bool]:
    """When to kill: a little after a random change of the files, or of a certain one, or somewhere in the start."""
    way, delay = draw.random(), draw.choice([0.0, draw.uniform(0, 0.02), draw.uniform(0, 0.3)])
    reached: list[float] = []
    if way < 0.1:
        delay = draw.uniform(0.0, 3.0)
        reached.append(0.0)
    wanted = draw.randint(1, max(2, most // 3))
    name = draw.choice((*DRAFTS, *MORE_DRAFTS.get(kind, ())))
    certain = re.compile(rf"(.*/)?(\.[\w-]+\.[0-9a-f]{{32}}\.)?{name}(/.*)?") if way > 0.6 else None

    def stop(new: Files, count: int, seconds: float) -> bool:
        found = any(certain.fullmatch(name) for name, _, _ in new) if certain else count >= wanted
        if (found or count >= 0.9 * most) and not reached:
            reached.append(seconds)
        return bool(reached) and seconds >= reached[0] + delay

    return stop


def never(new: Files, count: int, seconds: float) -> bool:
    """Let a run end."""
    return False


def kill(child: int, kind: str, signum: int) -> int:
    """Send a signal and wait; SIGKILL and Ctrl-C reach all processes of a run, SIGTERM the first."""
    (os.kill if signum == signal.SIGTERM else os.killpg)(child, signum)
    began = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > PATIENCE:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
    if signum == signal.SIGKILL:
        _gone(child)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _gone(group: int) -> None:
    """Wait until no process of a group is left."""
    while True:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return
        time.sleep(0.01)


def going_on(run: Path, kind: str) -> str:
    """What a process was doing when it was killed, by the files that it left."""
    out = run / "out"
    stages = [out / name for name in KINDS[:-1] if (out / name).exists()] if kind == "run" else [out]
    if kind == "run" and (not stages or (stages[-1] / "done.json").exists()):
        return "between stages" if stages else "start-up"
    stage = stages[-1]
    left = [path.name for path in stage.rglob(".*.*")]
    if any(name.endswith(".ckpt") for name in left):
        return "checkpoint write"
    if any(name.endswith(".export") for name in left):
        return "export"
    if kind == "run" and (stage / "export" / "lion_export.json").exists():
        return "between stages"
    parts = next(stage.glob("rounds/*.parts-*"), None)
    if parts is not None:
        sampled, judged = (len(list(parts.glob(f"{what}-*.arrow"))) for what in ("sampled", "judged"))
        plan = parts / "plan.json"
        chunks = json.loads(plan.read_text())["chunks"] if plan.exists() else 0
        return "judging" if chunks and sampled == chunks and judged <= chunks else "sampling"
    if not any(stage.glob("checkpoints/[!.]*.ckpt")):
        return "training" if any(stage.glob("lightning_logs/*/metrics.csv")) else "start-up"
    return "the end" if _ended(run, kind, stage) else "training"


def _ended(run: Path, kind: str, stage: Path) -> bool:
    """Whether the undisturbed run's last step is in a checkpoint."""
    whole = run.parent / f"whole_{kind}" / "out"
    whole = whole / stage.name if kind == "run" else whole
    return _steps(whole) == _steps(stage)


def _steps(stage: Path) -> int:
    return max(
        int(path.stem.rpartition("step=")[2].partition("-")[0]) for path in stage.glob("checkpoints/epoch*.ckpt")
    )


def differences(run: Path, whole: Path) -> Iterator[str]:
    """What of a finished run is not what the undisturbed one has."""
    yield from (f"{path.relative_to(run)} left" for path in _stale_files(run))
    stages = [Path("out", name) for name in KINDS[:-1]] if (whole / "out" / "sft").exists() else [Path("out")]
    for stage in stages:
        one, other, name = run / stage, whole / stage, stage.name
        yield from (f"{name}: {what}" for what in _states(one, other))
        yield from (f"{name}: {what}" for what in _logs(one, other))
        yield from (f"{name}: {what}" for what in _exports(one / "export", other / "export"))
        yield from (f"{name}: {what}" for what in _rounds(one, other))


def _stale_files(run: Path) -> list[Path]:
    """What kills have left; the last start removed all that was not of its own making."""
    hidden = [path for folder in ("out", "cache") for path in (run / folder).rglob(".*")]
    return [path for path in hidden if re.fullmatch(r"\.[\w-]+\.[0-9a-f]{32}\..+", path.name)]


def _states(one: Path, other: Path) -> Iterator[str]:
    import torch

    from lion_lightning.models.checkpoints.files import require_checkpoint

    for path in sorted(other.glob("checkpoints/[!.l]*.ckpt")):  # last.ckpt is a link to one of them
        mine = one / "checkpoints" / path.name
        if not mine.exists():
            yield f"no {path.name}"
            continue
        states = [torch.load(require_checkpoint(place), weights_only=True) for place in (mine, path)]
        for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            if not _equal(*(state[name] for state in states)):
                yield f"{name} of {path.name}"


def _equal(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def logged(stage: Path) -> dict[tuple[str, int], str]:
    """Values by key and step, of all starts."""
    found: dict[tuple[str, int], str] = {}
    for path in sorted(stage.glob("lightning_logs/*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                cells = {(key, int(row["step"])): value for key, value in row.items() if value}
                found |= {cell: value for cell, value in cells.items() if not cell[0].startswith(("perf/", "step"))}
    return found


def _logs(one: Path, other: Path) -> Iterator[str]:
    mine, theirs = logged(one), logged(other)
    for key, step in sorted(mine.keys() | theirs.keys()):
        if mine.get((key, step)) != theirs.get((key, step)):
            yield f"metrics.csv {key} at {step}: {mine.get((key, step))} for {theirs.get((key, step))}"


def _exports(one: Path, other: Path) -> Iterator[str]:
    files = [{path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (one, other)]
    for name in sorted(files[0] | files[1]):
        if name not in files[0] & files[1] or (one / name).read_bytes() != (other / name).read_bytes():
            yield f"export/{name}"


def _rounds(one: Path, other: Path) -> Iterator[str]:
    from lion_lightning.rollouts.rounds import find_rounds

    mine, theirs = find_rounds(one / "rounds"), find_rounds(other / "rounds")
    if [made.number for made in mine] != [made.number for made in theirs]:
        yield f"rounds {[made.number for made in mine]} for {[made.number for made in theirs]}"
    for made, whole in zip(mine, theirs, strict=False):
        if made.rollouts != whole.rollouts:
            yield f"round {made.number}"
        if made.summary != whole.summary:
            yield f"summary of round {made.number}"


def apart(function: Callable[[], Any]) -> Any:
    """Call a function in a process of its own, so that this one starts no threads that a fork would lose."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(write, json.dumps(function()).encode())
        except BaseException as error:
            os.write(write, json.dumps([f"{type(error).__name__}: {error}"]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        found = file.read()
    os.waitpid(child, 0)
    return json.loads(found)


def killed_run(
    bench: Bench, kind: str, number: int, draw: random.Random, most: int, limit: int
) -> tuple[list[Kill], list[str]]:
    """A run that is killed again and again, and then ends: its kills, and what differs from the undisturbed one.

    Args:
        bench: Where.
        kind: Of run.
        number: Of this kind.
        draw: Where chance comes from.
        most: Changes of the files of the undisturbed run.
        limit: Kills at most.
    """
    run, kills = bench.prepare(f"{kind}_{number}"), list[Kill]()
    while True:
        child = start(run, kind)
        stop = moment(draw, kind, most) if len(kills) < min(limit, MOST_KILLS) else never
        code, _ = watched(run, child, stop)
        if code is not None:
            break
        signum = draw.choice(SIGNALS)
        code = kill(child, kind, signum)
        kills.append(Kill(kind, going_on(run, kind), signum, code))
        if code == 0:  # it ended before the signal reached it
            kills.pop()
            break
    if code != 0:
        lines = (run / "log.txt").read_text(errors="replace").strip().splitlines()
        return kills, [f"exit code {code}: {lines[-1] if lines else ''}"]
    found: list[str] = apart(lambda: list(differences(run, bench.folder / f"whole_{kind}")))
    found += [f"exit code {k.code} after signal {k.signum}" for k in kills if k.code != 128 + k.signum]
    if not found:
        shutil.rmtree(run)
    return kills, found


def main() -> int:
    """Run the benchmark; 0 if nothing differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all; a quarter of them of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--folder", type=Path, default=Path("runs/kills"), help="made anew")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", PYTHONUNBUFFERED="1")
    import lion_lightning.tools.train.lightning_cli  # noqa: F401  (imported once, before processes are forked)

    default_interrupts()  # as the command has it, whose processes these are from the fork on

    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    bench, draw = Bench(folder), random.Random(options.seed)
    kills: list[Kill] = []
    wrong: dict[str, list[str]] = {}
    last = max(KINDS.index(kind) for kind in options.kinds if kind != "run") if options.kinds != ["run"] else -1
    for kind in [kind for place, kind in enumerate(KINDS) if place <= last or kind in options.kinds]:
        whole, began = bench.prepare(f"whole_{kind}"), time.monotonic()
        code, most = watched(whole, start(whole, kind), never)
        if code != 0:
            print(f"{kind}: the undisturbed run failed; see {whole / 'log.txt'}")
            return 1
        print(f"{kind}: undisturbed in {time.monotonic() - began:.0f} s, {most} changes of its files", flush=True)
        wanted, number = len(kills) + -(-options.kills // len(options.kinds)), 0
        while kind in options.kinds and len(kills) < wanted:
            made, found = killed_run(bench, kind, number, draw, most, wanted - len(kills))
            kills += made
            if found:
                wrong[f"{kind} {number}"] = found
            told = ", ".join(f"{signal.Signals(k.signum).name} in {k.moment}: exit code {k.code}" for k in made)
            print(f"{kind} {number}: {len(made)} kills ({told}): {'; '.join(found[:4]) or 'equal'}", flush=True)
            number += 1
    print(table(kills, wrong))
    return 1 if wrong else 0


def table(kills: list[Kill], wrong: dict[str, list[str]]) -> str:
    """Kills by kind and moment, by signal, and what differed."""
    moments = ("start-up", "training", "checkpoint write", "sampling", "judging", "the end", "export", "between stages")
    counts = Counter((k.kind, k.moment) for k in kills)
    lines = [f"| kills | {' | '.join(moments)} | all |", f"|---|{'---|' * (len(moments) + 1)}"]
    for kind in KINDS:
        cells = [counts[kind, one] for one in moments]
        lines.append(f"| {kind} | {' | '.join(map(str, cells))} | {sum(cells)} |")
    totals = [sum(counts[kind, one] for kind in KINDS) for one in moments]
    lines.append(f"| all | {' | '.join(map(str, totals))} | {sum(totals)} |")
    signals = Counter(signal.Signals(k.signum).name for k in kills)
    lines.append(", ".join(f"{count} {name}" for name, count in sorted(signals.items())))
    lines.append("; ".join(f"{name}: {', '.join(found)}" for name, found in wrong.items()) or "every run ended equal")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
