"""TRL's side: its trainers on the same rows, which it tokenizes, masks and batches by its own code."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from trl import (  # type: ignore[attr-defined]
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from typing_extensions import override

from benchmarks.oracle.comparison import Settings, Step
from benchmarks.oracle.rows import GROUP, LONGEST, Prepared, Row, grade

KINDS: dict[str, tuple[Any, Any, str]] = {
    "SFTTrainer": (SFTTrainer, SFTConfig, "conversations"),
    "DPOTrainer": (DPOTrainer, DPOConfig, "pairs"),
    "KTOTrainer": (KTOTrainer, KTOConfig, "labeled"),
    "RewardTrainer": (RewardTrainer, RewardConfig, "pairs"),
    "CPOTrainer": (CPOTrainer, CPOConfig, "pairs"),
    "ORPOTrainer": (ORPOTrainer, ORPOConfig, "pairs"),
    "GRPOTrainer": (GRPOTrainer, GRPOConfig, "groups"),
    "RLOOTrainer": (RLOOTrainer, RLOOConfig, "groups"),
}
"""By name, with the settings' class and the rows that it trains on."""


class Record(TrainerCallback):
    """Keeps what the trainer logs of each step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @override
    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:  # type: ignore[override]
        if "grad_norm" in logs:  # not in the last call, which has the mean loss of all steps
            self.steps.append(Step(logs["loss"], logs["grad_norm"]))


def train(
    prepared: Prepared,
    settings: Settings,
    name: str,
    columns: dict[str, Any] | None = None,
    changed: Callable[[Any], Any] | None = None,
    attention: str = "",
    **own: Any,
) -> list[Step]:
    """Train with a trainer of TRL's.

    Args:
        prepared: Rows and models.
        settings: Settings of the training.
        name: Name of the trainer.
        columns: Columns to add to all rows.
        changed: Makes a class without a difference of the trainer's; None leaves it as it is.
        attention: Attention in place of that of the settings.
        **own: Settings of the objective.
    """
    kind, config, file = KINDS[name]
    rows = prepared.rows(file)[: settings.rows]
    model, tokenizer = _model(prepared, name, attention or settings.attention)
    record, arguments, more = Record(), _arguments(settings), dict[str, Any]()
    if file == "groups":
        kind, more = _answering(kind, rows, tokenizer), {"reward_funcs": _rewards}
        arguments |= _of_rounds(settings)
    elif name not in ("CPOTrainer", "ORPOTrainer"):
        arguments["max_length"] = None
    with tempfile.TemporaryDirectory() as out:
        made = (changed(kind) if changed else kind)(
            model,
            args=config(out, **arguments, **own),
            train_dataset=Dataset.from_list([row | (columns or {}) for row in rows]),
            processing_class=tokenizer,
            callbacks=[record],
            **more,
        )
        made.remove_callback(PrinterCallback)  # it prints every log
        made.train()
    return record.steps


def _model(prepared: Prepared, name: str, attention: str) -> tuple[Any, Any]:
    """The model that a trainer starts from, and its tokenizer."""
    is_reward = name == "RewardTrainer"
    folder = prepared.model("reward" if is_reward else "policy")
    models: Any = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
    model = models.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return model, AutoTokenizer.from_pretrained(folder)


def _arguments(settings: Settings) -> dict[str, Any]:
    """The settings by their names in ``transformers``."""
    schedule: dict[str, Any] = {"lr_scheduler_type": "constant"}
    if settings.warmup is not None:
        schedule = {"lr_scheduler_type": "linear", "warmup_steps": settings.warmup}
    return {
        **schedule,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulate,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "optim": {"adamw": "adamw_torch", "sgd": "sgd"}[settings.optimizer],
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _of_rounds(settings: Settings) -> dict[str, Any]:
    """Settings of the trainers that sample; there a micro-batch is counted in answers."""
    return {
        "per_device_train_batch_size": settings.micro_batch * GROUP,
        "steps_per_generation": settings.accumulate * settings.updates,
        "num_generations": GROUP,
        "max_completion_length": LONGEST,
        "shuffle_dataset": False,
    }


def _rewards(completions: Sequence[Any], **_: Any) -> list[float]:
    return [grade(turns[0]["content"]) for turns in completions]


def _answering(kind: Any, rows: list[Row], tokenizer: Any) -> Any:
    """A trainer whose policy gives the answers of the rows, and that trains on them in their order."""
    answers: dict[tuple[int, ...], Iterator[list[int]]] = {}
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        rendered = [tokenizer.apply_chat_template(row["prompt"] + one, return_dict=False) for one in row["answers"]]
        answers[tuple(prompt)] = cycle([ids[len(prompt) :] for ids in rendered])

    class Answering(kind):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            found = [next(answers[tuple(ids)]) for ids in prompt_ids]
            return (found, None) if issubclass(kind, GRPOTrainer) else found

        def _prepare_inputs(self, inputs: Any) -> Any:
            # TRL shuffles the answers of a round; both sides are to have the same micro-batches
            with patch(f"{kind.__module__}.shuffle_sequence_dict", lambda batch: batch):
                return super()._prepare_inputs(inputs)

    return Answering
