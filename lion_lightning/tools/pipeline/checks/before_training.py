"""Check all stages of a run before the first one trains; ``lion run`` does it in a separate process.

Module, data module and trainer of each stage are built from its config, and its tokenizer, data, prompts, judge and
evaluation are checked. A stage whose start model does not exist yet is checked with the one that its chain starts from.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Trainer

from lion_lightning.cache import cache_folder
from lion_lightning.callbacks.startup import few_steps
from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.on_policy import RoundDataModule
from lion_lightning.errors import explain
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.references.base import FrozenReference
from lion_lightning.tools.pipeline.checks.disk import GIB, cached_reference_size, free_space, space_of
from lion_lightning.tools.pipeline.checks.evaluation import check_evaluation
from lion_lightning.tools.pipeline.checks.sources import check_data, check_rounds, planned_steps
from lion_lightning.tools.pipeline.checks.stage_warnings import StageWarnings
from lion_lightning.tools.pipeline.configs import Config, as_file, merged, with_available_model
from lion_lightning.tools.pipeline.plan import Plan, StagePlan, plan_from_yaml
from lion_lightning.tools.pipeline.stage import DONE, changes, require_same_work, require_start
from lion_lightning.tools.train.lightning_cli import LionCLI, build_cli

logger = logging.getLogger(__name__)


class Checks:
    """Checks every stage of a plan that is not done yet.

    Attributes:
        found: Errors, one line each.
        warnings: What was warned of.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.found: list[str] = []
        self.warnings = StageWarnings()
        self._chains = 1  # that are like the one that is looked at
        self._least = self._most = 0  # bytes
        self._caches: Counter[Path] = Counter()  # bytes of references' log-probs, by the folder of their cache
        self._rewards: dict[Path, Path | None] = {}  # stages that train reward models, and what they start from

    def run(self) -> list[str]:
        """Check everything; the result is :attr:`found`."""
        for chain in self.plan.chains:
            for stage in chain:
                self._check_same_work(stage)
        for alike, count in _different(self.plan.chains):
            self._chains = count
            self._check_chain(alike)
        free = free_space(self.plan.out)
        text = f"{self.plan.out}: {free / GIB:.1f} GiB are free, and the stages"
        if free < self._least:
            self.found.append(f"{text} write at least {self._least / GIB:.1f} GiB; make room, or give another `out`")
        elif free < self._most:
            logger.warning("%s may write up to %.1f GiB.", text, self._most / GIB)
        for folder, size in self._caches.items():
            if (free := free_space(folder)) < size:  # no error: an earlier run may have cached them
                logger.warning(
                    "%s: %.1f GiB are free, and log-probs of references may take %.1f GiB; make room, or set "
                    "model.reference.cache_dir.",
                    *(folder, free / GIB, size / GIB),
                )
        self.found = list(dict.fromkeys(self.found))  # stages of several seeds have the same faults
        return self.found

    def _check_same_work(self, stage: StagePlan) -> None:
        """Find a config that has changed since its stage trained; a mistyped key is said to be that."""
        known = len(self.found)
        if changes(stage):
            with self._collect_errors(f"stages.{stage.name}"):
                _build(stage.config)
        if len(self.found) == known:
            with self._collect_errors(""):
                require_same_work(stage)

    def _check_chain(self, chain: Sequence[StagePlan]) -> None:
        available: dict[Path, Config] = {}  # by folder, with a model that exists
        coming: set[Path] = set()  # exports that the stages before will have written
        for stage in chain:
            config, unmade = stage.config, stage.start is not None and not (stage.start / DONE).exists()
            if unmade and stage.start:
                if stage.start not in available:
                    self.found.append(
                        f"stages.{stage.name}: it starts from {stage.start}, which is no stage before it and not done; "
                        "run that one first"
                    )
                    continue
                config = with_available_model(config, available[stage.start])
            available[stage.folder] = config
            if not (stage.folder / DONE).exists():
                if stage.start and not unmade:
                    with self._collect_errors(f"stages.{stage.name}"):
                        require_start(stage.start)
                self._check_stage(stage, config, coming)
                coming.add((stage.folder / "export").absolute())

    def _check_stage(self, stage: StagePlan, config: Config, coming: set[Path]) -> None:
        """Check a stage with a config whose model exists; the exports ``coming`` will exist when it begins."""
        name = f"stages.{stage.name}"
        with self.warnings.of(name):
            cli = None
            with self._collect_errors(name):
                cli = _build(config)
            if cli is None:
                return
            if isinstance(cli.model.policy_spec, RewardModelSpec):
                self._rewards[stage.folder] = stage.start
            elif stage.start in self._rewards:
                policy = self._rewards[stage.start]
                self.found.append(
                    f"{name}: it would start from {stage.start.name}, a reward model, which writes no answers; set "
                    f"stages.{stage.name}.start: {'null' if policy is None else policy.name}"
                )
            with self._collect_errors(name):
                space = space_of(_readable_policy(cli), cli.trainer)
                self._least += self._chains * space.least
                self._most += self._chains * space.most
            with self._collect_errors(name):
                tokenizer: TokenizerSpec = cli.model.tokenizer_spec
                tokenizer.load()
                self._check_data(name, cli, coming)
                if stage.evaluate:
                    with self._collect_errors("evaluate"):
                        exports = {*coming, (stage.folder / "export").absolute()}
                        check_evaluation(stage, tokenizer, cli.model.policy_spec, exports)

    def _check_data(self, name: str, cli: LionCLI, coming: set[Path]) -> None:
        data = cli.datamodule
        if not isinstance(data, PackedDataModule):
            return
        with self._collect_errors(name):
            # Not the config's trainer: its devices and processes are not those of this check.
            trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[])
            trainer.strategy.connect(cli.model)
            data.trainer = trainer
            check_data(data)
            if text := few_steps(cli.trainer, planned_steps(cli.trainer, data)):
                self.warnings.add(text)
            if size := cached_reference_size(cli.model, data):
                self._caches[cache_folder("references", cli.model.reference.cache_dir)] += self._chains * size
            if isinstance(data, RoundDataModule):
                check_rounds(cli.trainer, cli.model, data, coming)

    @contextmanager
    def _collect_errors(self, where: str) -> Iterator[None]:
        """Keep an error as one line, and go on."""
        try:
            yield
        except Exception as error:
            if os.environ.get("LION_DEBUG"):
                raise
            text = explain(error) if str(error) else type(error).__name__
            self.found.append(f"{where}: {text}" if where else text)


def _different(chains: Sequence[Sequence[StagePlan]]) -> list[tuple[Sequence[StagePlan], int]]:
    """Chains that differ in more than the seed, the least done first, and how many there are of each."""
    kinds: dict[str, list[Sequence[StagePlan]]] = {}
    for chain in sorted(chains, key=lambda chain: sum((stage.folder / DONE).exists() for stage in chain)):
        key = ""
        for stage in chain:
            config = merged(stage.config, {"seed_everything": 0, "data": {"init_args": {"seed": 0}}})
            key += json.dumps([config, stage.evaluate], default=str).replace(str(stage.folder.parent), "")
        kinds.setdefault(key, []).append(chain)
    return [(alike[0], len(alike)) for alike in kinds.values()]


def _build(config: Config) -> LionCLI:
    """Build module, data module and trainer of a stage."""
    with as_file(config) as path:
        return build_cli(["-c", str(path)], run=False)


def _require_readable(spec: PolicySpec) -> None:
    from lion_lightning.tools.chat.conversation import require_model

    if spec.path is not None:
        require_model(spec.path)
    spec.load_config()


def _readable_policy(cli: LionCLI) -> PolicySpec:
    """The policy's spec, after a check that its files and those of all frozen models exist."""
    policy: PolicySpec = cli.model.policy_spec
    _require_readable(policy)
    for part in cli.model.children():
        if isinstance(part, FrozenReference) and part.spec is not None:  # one without is a copy of the policy
            with part.errors_at_place():
                _require_readable(part.spec)
    return policy


def main() -> None:
    """Read a plan from stdin, and write errors and warnings to stdout as JSON; everything else goes to stderr."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get into the answer
    logging.getLogger("lion_lightning").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    checks = Checks(plan_from_yaml(sys.stdin.read()))
    checks.run()
    with answer:
        json.dump({"errors": checks.found, "warnings": [text for _, text in checks.warnings.found]}, answer)
