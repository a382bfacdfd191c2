"""Read a pipeline file into the stages of a run, each with its complete config."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lion_lightning.tools.pipeline.configs import Config, merged, with_output_folder, with_plain_parts, with_start_model
from lion_lightning.tools.train.config_file import read_config_file, with_files_read
from lion_lightning.tools.train.option_hints import meant_option

KEYS = {"out", "seeds", "workers", "stages", "evaluate"}
FIT_KEYS = {"seed_everything", "model", "data", "trainer"}
STAGE_KEYS = FIT_KEYS | {"config", "start", "evaluate"}

FOLDER_NAME = re.compile(r"\w([\w.-]{0,62}[\w-])?")
RESERVED = re.compile(r"seed-.*|(report|run)\..*|lightning_logs|(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names in a run's folder that no stage can have: those of seeds, reports and logs, and of devices on some systems."""


class StagePlan(NamedTuple):
    """One stage of one seed.

    Attributes:
        name: Its name in the pipeline file.
        folder: Folder of all its output.
        config: The complete config for ``lion fit``.
        start: Folder of the stage that it starts from; None where it starts from its config's own policy.
        evaluate: Config of ``lion evaluate`` for its export; None for no evaluation.
    """

    name: str
    folder: Path
    config: Config
    start: Path | None
    evaluate: Config | None


class Plan(NamedTuple):
    """Stages that ``lion run`` runs.

    Attributes:
        out: Folder of the run.
        chains: The stages in order, of each seed.
        workers: Chains that run at the same time.
    """

    out: Path
    chains: list[list[StagePlan]]
    workers: int


def read_plan(path: Path, changes: Config | None = None, options: Mapping[str, str] | None = None) -> Plan:
    """Read a pipeline file.

    Args:
        path: The file, as docs/pipeline.md describes it.
        changes: Keys of it to be replaced, e.g. ``{"out": "runs/other"}``.
        options: Values laid over the stages, by key: ``dpo.trainer.max_steps`` of one, ``trainer.max_steps`` of all.

    Raises:
        ValueError: If a file can't be read, or a key is unknown, missing or has a wrong value.
    """
    given = {**read_config_file(path), **(changes or {})}
    if "stages" not in given and FIT_KEYS & given.keys():
        raise ValueError(f"{path}: this is the config of a single stage; train it with `lion fit -c {path}`")
    _refuse_unknown(str(path), given, KEYS)
    stages = given.get("stages")
    if not isinstance(stages, Mapping) or not stages:
        raise ValueError(f"{path}: `stages` is missing; name the stages in order, e.g. stages: {{sft: {{config: F}}}}")
    _require_folder_names(path, list(stages))
    given_stages = {}
    for name, stage in stages.items():
        given_stages[name] = _stage(path, name, stage, options or {}, list(stages))
    out = given["out"] if given.get("out") is not None else Path("runs") / path.stem
    if not isinstance(out, str | Path) or not str(out).strip():
        raise ValueError(f"{path}: out is {out!r}; give the path of a folder")
    out = Path(out).expanduser()
    evaluate = _evaluation(str(path), with_files_read(given.get("evaluate"), path.parent))
    chains = _chains(path, given.get("seeds"), out, given_stages, evaluate)
    workers = given.get("workers", 1)
    if type(workers) is not int or workers < 1:
        raise ValueError(f"{path}: workers is {workers!r}; give an integer of at least 1")
    return Plan(out, chains, workers)


def plan_to_yaml(plan: Plan) -> str:
    """The plan as YAML, which :func:`plan_from_yaml` reads in another process."""
    chains: list[list[Config]] = []
    for chain in plan.chains:
        chains.append([])
        for stage in chain:
            start = None if stage.start is None else str(stage.start)
            chains[-1].append({**stage._asdict(), "folder": str(stage.folder), "start": start})
    text: str = yaml.safe_dump({"out": str(plan.out), "chains": chains, "workers": plan.workers})
    return text


def plan_from_yaml(text: str) -> Plan:
    """Read a plan that :func:`plan_to_yaml` wrote."""
    given = yaml.safe_load(text)
    chains: list[list[StagePlan]] = []
    for chain in given["chains"]:
        chains.append([])
        for stage in chain:
            start = None if stage["start"] is None else Path(stage["start"])
            chains[-1].append(StagePlan(**{**stage, "folder": Path(stage["folder"]), "start": start}))
    return Plan(Path(given["out"]), chains, given["workers"])


def _require_folder_names(path: Path, names: Sequence[Any]) -> None:
    """Refuse names that are no folders within ``out``, or the same folder twice."""
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not FOLDER_NAME.fullmatch(name) or RESERVED.fullmatch(name):
            raise ValueError(
                f"{path}: stages: {str(name)[:60]!r} cannot name a stage and its folder; use at most "
                "64 letters, digits, `_`, `-` and dots within the name, and not a reserved name such as seed-0"
            )
        same = unicodedata.normalize("NFKC", name).casefold()
        if same in seen:
            raise ValueError(
                f"{path}: stages: {seen[same]!r} and {name!r} are the same folder where case is ignored; rename one"
            )
        seen[same] = name


def _evaluation(where: str, evaluate: Any) -> Config | None:
    if evaluate is None:
        return None
    if not isinstance(evaluate, Mapping):
        raise ValueError(f"{where}: evaluate is {evaluate!r}; give a mapping with keys of `lion evaluate`")
    for key, what in (("model", "export"), ("out", "folder `evaluation`")):
        if key in evaluate:
            raise ValueError(f"{where}: evaluate.{key} is set to each stage's {what}; leave it out")
    return dict(evaluate)


def with_options(config: Config, options: Mapping[str, str], name: str, names: Sequence[str]) -> Config:
    """Lay options of the command line over the config of one stage of these names.

    Raises:
        ValueError: A key names no stage and no part of a config, or a value is not YAML.
    """
    for key, text in options.items():
        stage = next((each for each in names if key.startswith(f"{each}.")), None)
        parts = (key if stage is None else key.removeprefix(f"{stage}.")).split(".")
        if parts[0] not in FIT_KEYS:
            raise ValueError(_no_option(key, ".".join(parts), stage, names))
        is_number = re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", text, re.IGNORECASE)
        try:  # YAML 1.1 takes 1e-5 for a text
            value: Any = float(text) if is_number else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--{key}: {text[:60]!r} is not a YAML value") from error
        if stage in (None, name):
            for part in reversed(_in_classes(config, parts)):
                value = {part: value}
            config = merged(config, value)
    return config


def _in_classes(config: Any, parts: Sequence[str]) -> list[str]:
    """The path to a setting, with the ``init_args`` of the classes on the way, which options may leave out."""
    path: list[str] = []
    for part in parts:
        if isinstance(config, Mapping) and "class_path" in config and part not in ("class_path", "init_args"):
            path.append("init_args")
            config = config.get("init_args")
        path.append(part)
        config = config.get(part) if isinstance(config, Mapping) else None
    return path


def _no_option(key: str, name: str, stage: str | None, names: Sequence[str]) -> str:
    """Message of an option that no stage has; ``name`` is the part of ``key`` behind the stage's name."""
    option = meant_option(name)
    if option and option.partition(".")[0] in FIT_KEYS:
        return f"--{key}: there is no such option; did you mean --{stage or names[0]}.{option}?"
    parts = ", ".join(sorted(FIT_KEYS))
    if stage is not None:
        return f"--{key}: behind the name of a stage comes one of {parts}, e.g. --{stage}.trainer.max_steps 3"
    return (
        f"--{key}: begin with a stage ({', '.join(names)}), or with one of {parts} for all stages, "
        f"e.g. --{names[0]}.trainer.max_steps 3"
    )


def _stage(path: Path, name: str, stage: Any, options: Mapping[str, str], names: Sequence[str]) -> Config:
    """A stage of the file: its complete ``config``, and ``start`` and ``evaluate`` where they are given."""
    if isinstance(stage, str):
        stage = {"config": stage}
    if not isinstance(stage, Mapping):
        raise ValueError(f"{path}: stages.{name} is {stage!r}; give a mapping with `config` or keys of `lion fit`")
    _refuse_unknown(f"{path}: stages.{name}", stage, STAGE_KEYS)
    config: Config = {}
    files = stage.get("config") or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError(f"{path}: stages.{name}.config is {files!r}; give a config file, or a list of them")
    for file in files:
        file_path = path.parent / file
        config = merged(config, with_files_read(read_config_file(file_path), file_path.parent))
    own = with_files_read({key: value for key, value in stage.items() if key != "config"}, path.parent)
    config = merged(config, {key: value for key, value in own.items() if key in FIT_KEYS})
    where = f"{path}: stages.{name}"
    # Plain before, so that options find the classes, and after, since an option may be a class.
    config = with_plain_parts(with_options(with_plain_parts(config, where), options, name, names), where)
    return {"config": config, **{key: own[key] for key in ("start", "evaluate") if key in own}}


def _chains(
    path: Path, seeds: Any, out: Path, stages: Mapping[str, Config], evaluate: Config | None
) -> list[list[StagePlan]]:
    """The stages in order, for each seed; a single chain with the configs' own seeds if there are none."""
    if seeds is not None:
        valid = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
        if not valid or len(set(seeds)) < len(seeds):
            raise ValueError(f"{path}: seeds is {seeds!r}; give a list of different integers from 0 on, e.g. [0, 1, 2]")
    chains: list[list[StagePlan]] = []
    for seed in [None] if seeds is None else seeds:
        folder = out if seed is None else out / f"seed-{seed}"
        # The seed of weights and dropout, and that of the order of the data.
        change = {} if seed is None else {"seed_everything": seed, "data": {"init_args": {"seed": seed}}}
        chain: list[StagePlan] = []
        for name, given in stages.items():
            own = {"evaluate": evaluate, **given, "config": merged(given["config"], change)}
            chain.append(_planned(f"{path}: stages.{name}", folder, name, own, list(stages)[: len(chain)]))
        chains.append(chain)
    return chains


def _planned(where: str, folder: Path, name: str, given: Config, before: Sequence[str]) -> StagePlan:
    """A stage of one chain, whose stages have their folders in ``folder``, after those of these names."""
    start, config = given.get("start", before[-1] if before else None), given["config"]
    if start is not None:
        if start not in before:
            raise ValueError(f"{where}.start is {start!r}; name an earlier stage ({', '.join(before) or 'none'})")
        config = with_start_model(config, folder / start / "export")
    config, evaluate = (_with_folders(each, folder, before) for each in (config, _evaluation(where, given["evaluate"])))
    config = with_output_folder(config, folder / name)
    return StagePlan(name, folder / name, config, folder / start if start else None, evaluate)


def _with_folders(value: Any, folder: Path, before: Sequence[str]) -> Any:
    """Replace ``${stage}`` in all texts by the folder of that stage, where it is one of those before."""
    if isinstance(value, Mapping):
        return {key: _with_folders(inner, folder, before) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_folders(inner, folder, before) for inner in value]
    for name in before if isinstance(value, str) else ():
        value = value.replace(f"${{{name}}}", str(folder / name))
    return value


def _refuse_unknown(where: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(map(str, given.keys() - known))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; it takes {', '.join(sorted(known))}")
