"""A table of answers in the logger, as training goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from typing_extensions import override

from lion_lightning.callbacks.folders import require_writable_root, writes_files
from lion_lightning.models.generation.greedy import generate_answers
from lion_lightning.models.generation.trained import builds_early, find_policy, find_tokenizer
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.modules.checkpointing.averaging import run_first
from lion_lightning.one_lightning import LionCallback


class SampleTable(LionCallback):
    """Logs the policy's greedy answers to some prompts after each validation, the one before training included.

    They go to every logger that takes tables (Weights & Biases, by its ``log_text``) or texts (TensorBoard, as a
    Markdown table), and, a line a validation, to ``samples.jsonl`` under ``default_root_dir`` (not under
    ``fast_dev_run``). The weights that answer are those that were validated, averaged ones too. Asking changes nothing:
    random state and training mode stay as they were.

    Args:
        prompts: What a user says, one turn each.
        max_new_tokens: Length limit of an answer.
        every_n_validations: How often; 1 for every validation.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: Before training, if the file cannot be written, or the module has no policy or no
            tokenizer (:mod:`lion_lightning.models.generation.trained` says where they are looked for).
    """

    filename = "samples.jsonl"

    def __init__(self, prompts: list[str], max_new_tokens: int = 64, every_n_validations: int = 1) -> None:
        if not prompts:
            raise ValueError("SampleTable.prompts is empty; give something to ask")
        for name, value in (("max_new_tokens", max_new_tokens), ("every_n_validations", every_n_validations)):
            if value < 1:
                raise ValueError(f"SampleTable.{name} is {value}; give at least 1")
        self.prompts, self.max_new_tokens = list(prompts), max_new_tokens
        self.every_n_validations = every_n_validations
        self._validations = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        require_answers(self, trainer, pl_module)
        run_first(trainer, self)
        require_writable_root(trainer)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validations += 1
        if (self._validations - 1) % self.every_n_validations:
            return
        answers = greedy_answers(trainer, pl_module, self.prompts, self.max_new_tokens)
        if trainer.is_global_zero:
            if writes_files(trainer):
                line = {"step": trainer.global_step, "answers": answers}
                with (Path(trainer.default_root_dir) / self.filename).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            for logger in trainer.loggers:
                log_table = getattr(logger, "log_text", None)
                if callable(log_table):
                    log_table(key="samples", columns=["prompt", "answer"], data=[list(row) for row in answers.items()])
            log_text(trainer, "samples", as_table(list(answers.items())))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not isinstance(count := state_dict.get("validations"), int):
            raise ValueError(f"the checkpoint's state of SampleTable is odd (validations: {count!r}); take another one")
        self._validations = count


def require_answers(callback: Callback, trainer: Trainer, module: LightningModule) -> None:
    """Refuse a module that cannot answer prompts, as far as its models are built.

    Raises:
        MisconfigurationException: It trains a reward model, or has no policy or tokenizer.
    """
    if isinstance(getattr(module, "policy_spec", None), RewardModelSpec):
        raise MisconfigurationException(
            f"{type(callback).__name__}.prompts: {type(module).__name__} trains a reward model, which writes no "
            "answers; take the prompts out."
        )
    if builds_early(module):
        find_policy(module, type(callback).__name__)
    if not hasattr(module, "tokenizer_spec"):  # which takes a while to load
        find_tokenizer(module, getattr(trainer, "datamodule", None), type(callback).__name__)


def as_table(rows: Sequence[tuple[str, str]]) -> str:
    """A Markdown table of prompts and answers; what would end a cell or a line is escaped."""
    lines = ["| prompt | answer |", "|---|---|"]
    for row in rows:
        prompt, answer = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in row)
        lines.append(f"| {prompt} | {answer} |")
    return "\n".join(lines)


def greedy_answers(
    trainer: Trainer, module: LightningModule, prompts: Sequence[str], max_new_tokens: int
) -> dict[str, str]:
    """The policy's greedy answer to each prompt; nothing where another rank answers. Every rank calls this.

    On one device or under DDP, rank 0 alone generates; under any other strategy all ranks do, since each holds only a
    shard of the weights. Random state and training mode stay as they were.
    """
    # Subclasses may shard (DeepSpeed's does); that all ranks generate is right for every strategy, if wasteful.
    replicated = type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
    if replicated and not trainer.is_global_zero:
        return {}
    answers = generate_answers(module, prompts, max_new_tokens, getattr(trainer, "datamodule", None))
    return dict(zip(prompts, answers, strict=True))


def log_text(trainer: Trainer, tag: str, text: str) -> None:
    """Give a Markdown text, unless it is empty, to the loggers whose experiment is TensorBoard's writer, or like it."""
    for logger in trainer.loggers if text else ():
        add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
        if callable(add_text):
            add_text(tag, text, trainer.global_step)
