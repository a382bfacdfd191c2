"""The evaluation of a stage's export, looked at before anything trains."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.models.policy import position_limit
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.tools.chat.conversation import require_model
from lion_lightning.tools.evaluate.main import asked_for
from lion_lightning.tools.evaluate.run import Evaluation
from lion_lightning.tools.evaluate.verdicts import kinds
from lion_lightning.tools.pipeline.checks.sources import check_data, fixed_prompts
from lion_lightning.tools.pipeline.plan import StagePlan


def check_evaluation(stage: StagePlan, tokenizer: TokenizerSpec, policy: PolicySpec, exports: Collection[Path]) -> None:
    """Find out what would fail after the stage has trained.

    Args:
        stage: With an evaluation.
        tokenizer: The stage's.
        policy: The stage's, for the number of its positions.
        exports: Folders that will hold a model by then.

    Raises:
        ValueError: The config or a source is wrong, or a model or a judge is not there.
    """
    asked = _asked(stage)
    asked.require_sense()
    for model in filter(None, (asked.reference, asked.against)):
        if Path(model).absolute() not in exports:
            require_model(model)
    _require_positions(asked, policy)
    loaded = tokenizer.load()
    if asked.conversations:
        check_data(SFTDataModule(list(asked.conversations), loaded, max_length=asked.max_length))
    if asked.preferences:
        check_data(PreferenceDataModule(list(asked.preferences), loaded, max_length=asked.max_length))
    if asked.prompts:
        prompts = fixed_prompts(asked.prompts, loaded, [asked.sampler, asked.judge, asked.against_judge])
        if asked.by:
            kinds(prompts, asked.by)


def _asked(stage: StagePlan) -> Evaluation:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluate.yaml"
        path.write_text(yaml.safe_dump(stage.evaluate, sort_keys=False), encoding="utf-8")
        arguments = [
            "-c",
            str(path),
            "--model",
            str(stage.folder / "export"),
            "--out",
            str(stage.folder / "evaluation"),
        ]
        try:
            return asked_for(arguments)
        except Exception as error:
            if str(path) not in str(error):
                raise
            raise ValueError(str(error).replace(f"{path}: ", "")) from error


def _require_positions(asked: Evaluation, policy: PolicySpec) -> None:
    positions: Any = position_limit(policy.load_config())
    if (asked.conversations or asked.preferences) and positions is not None and asked.max_length > positions:
        raise ValueError(
            f"max_length is {asked.max_length}, but the model has positions for {positions} tokens; set max_length to "
            f"{positions} or less"
        )
