"""Check the evaluation of a stage's export before anything trains."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.models.policy import position_limit
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.tools.chat.conversation import require_model
from lion_lightning.tools.evaluate.main import parse
from lion_lightning.tools.evaluate.run import Evaluation
from lion_lightning.tools.evaluate.scores import categories
from lion_lightning.tools.pipeline.checks.sources import check_data, check_prompts
from lion_lightning.tools.pipeline.configs import as_file
from lion_lightning.tools.pipeline.plan import StagePlan


def check_evaluation(stage: StagePlan, tokenizer: TokenizerSpec, policy: PolicySpec, exports: Collection[Path]) -> None:
    """Find errors of a stage's evaluation that would otherwise show after training.

    Args:
        stage: The stage.
        tokenizer: Its tokenizer.
        policy: Its policy: the number of positions, and whether it is a reward model.
        exports: Folders that will have a model by then.

    Raises:
        ValueError: The config or a source is wrong, or a model or a judge does not exist.
    """
    evaluation = _parse(stage)
    evaluation.validate(isinstance(policy, RewardModelSpec))
    for model in filter(None, (evaluation.reference, evaluation.against)):
        if Path(model).absolute() not in exports:
            require_model(model)
    positions: Any = position_limit(policy.load_config())
    longest = evaluation.max_length
    if (evaluation.conversations or evaluation.preferences) and positions is not None and longest > positions:
        raise ValueError(
            f"max_length is {longest}, but the model has positions for {positions} tokens; set max_length to "
            f"{positions} or less"
        )
    loaded = tokenizer.load()
    if evaluation.conversations:
        check_data(SFTDataModule(list(evaluation.conversations), loaded, max_length=evaluation.max_length))
    if evaluation.preferences:
        options: dict[str, Any] = {"max_length": evaluation.max_length, "pairing": evaluation.pairing}
        check_data(PreferenceDataModule(list(evaluation.preferences), loaded, **options))
    if evaluation.prompts:
        parts = [evaluation.sampler, evaluation.judge, evaluation.against_judge]
        prompts = check_prompts(PromptPool(evaluation.prompts, loaded), parts, exports)
        if evaluation.by:
            categories(prompts, evaluation.by)


def _parse(stage: StagePlan) -> Evaluation:
    model, out = str(stage.folder / "export"), str(stage.folder / "evaluation")
    with as_file(stage.evaluate or {}) as path:
        return parse(["-c", str(path), "--model", model, "--out", out])
