"""The config of one stage of a pipeline file, for commands that look at it before it trains."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from lion_lightning.tools.pipeline.configs import Config, as_file, with_available_model
from lion_lightning.tools.pipeline.plan import StagePlan, read_plan
from lion_lightning.tools.pipeline.stage import exported
from lion_lightning.tools.train.config_file import named_config_files, read_config_file
from lion_lightning.tools.train.lightning_cli import LionCLI, build_cli

logger = logging.getLogger(__name__)


def build_for_stage(arguments: list[str], stage: str | None, kind: type[LionCLI] = LionCLI) -> LionCLI:
    """Instantiate model, data module and trainer of a config, or of one stage of a pipeline file.

    Args:
        arguments: Options of ``lion fit``; one of the config files may be a pipeline file.
        stage: Name of the stage; None for the config of a single stage.
        kind: Class of the CLI.

    Raises:
        ValueError: The pipeline has no such stage, there is no pipeline, or a file is invalid.
    """
    for place, file in named_config_files(arguments):
        if "stages" in read_config_file(file):
            with as_file(stage_config(Path(file), stage), f"{file}: stages.{stage}: ") as path:
                own = [*arguments[: place.start], "-c", str(path), *arguments[place.stop :]]
                return build_cli(own, run=False, kind=kind)
    if stage is not None:
        raise ValueError(f"--stage {stage}: there is no pipeline file; name one with -c FILE, or leave --stage out")
    return build_cli(arguments, run=False, kind=kind)


def stage_config(path: Path, name: str | None) -> Config:
    """The config that ``lion run`` plans for a stage of a pipeline file, with a model that exists, which is logged.

    That is the export of the stage that it starts from, and before there is one the model that its chain starts from.
    Of several seeds it is the first.

    Raises:
        ValueError: The file is invalid, or has no such stage.
    """
    chain = read_plan(path).chains[0]
    names = [stage.name for stage in chain]
    if name not in names:
        known = f"its stages are {', '.join(names)}"
        if name is None:
            raise ValueError(f"{path}: this is a pipeline; look at one stage of it with --stage NAME ({known})")
        close = get_close_matches(name, names, n=1)
        raise ValueError(f"{path}: there is no stage {name!r}; {f'did you mean {close[0]!r}?' if close else known}")
    return _with_model(chain[names.index(name)], chain, f"{path}: stage {name}")


def _with_model(stage: StagePlan, chain: Sequence[StagePlan], where: str) -> Config:
    by_folder = {each.folder: each for each in chain}
    links = [stage]  # back to a stage whose model exists
    while (start := links[-1].start) is not None and not exported(start):
        links.append(by_folder[start])
    config = links[-1].config
    for later in reversed(links[:-1]):
        config = with_available_model(later.config, config)
    if stage.start is not None:
        model = f"the model that stage {links[-1].name} starts from" if start is None else str(start / "export")
        missing = f"; {stage.start / 'export'} is not there yet" if len(links) > 1 else ""
        logger.info("%s, with %s%s", where, model, missing)
    return config
