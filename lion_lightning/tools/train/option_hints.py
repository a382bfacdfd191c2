"""Options under the names that they have elsewhere, and what they are called here."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

_TRAINER = (
    *("max_epochs", "max_steps", "max_time", "precision", "accelerator", "devices", "num_nodes", "strategy"),
    *("accumulate_grad_batches", "gradient_clip_val", "default_root_dir", "callbacks", "logger", "log_every_n_steps"),
    *("limit_train_batches", "limit_val_batches", "val_check_interval", "check_val_every_n_epoch", "fast_dev_run"),
)
OPTIONS = {
    **{name: f"trainer.{name}" for name in _TRAINER},
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "warmup": "model.lr_scheduler.warmup",
    "warmup_ratio": "model.lr_scheduler.warmup",
    "warmup_steps": "model.lr_scheduler.warmup",
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "model.optimizer.betas"),
    **dict.fromkeys(("beta", "dpo_beta", "kto_beta", "pref_beta", "rl_beta"), "model.loss.beta"),
    **dict.fromkeys(("model_name_or_path", "model_name", "base_model"), "model.policy.path"),
    **dict.fromkeys(("lora_r", "lora_rank"), "model.policy.lora.r"),
    "lora_alpha": "model.policy.lora.alpha",
    "lora_dropout": "model.policy.lora.dropout",
    "chat_template": "model.tokenizer.chat_template",
    "gradient_checkpointing": "model.policy.recompute full",
    "sources": "data.sources",
    "dataset": "data.sources",
    "dataset_name": "data.sources",
    "train_file": "data.sources",
    **dict.fromkeys(("batch_size", "micro_batch_size", "per_device_train_batch_size"), "data.batch_size"),
    **dict.fromkeys(("max_length", "max_seq_length", "sequence_len", "cutoff_len"), "data.max_length"),
    "max_prompt_length": "data.max_prompt_length",
    **dict.fromkeys(("validation_share", "val_set_size", "val_size"), "data.validation_share"),
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "logging_steps": "trainer.log_every_n_steps",
    "bf16": "trainer.precision bf16-mixed",
    "out": "trainer.default_root_dir",
    "output_dir": "trainer.default_root_dir",
    "seed": "seed_everything",
    "resume": "ckpt_path last",
    "resume_from_checkpoint": "ckpt_path last",
}
"""Last parts of options as other trainers have them, or without the part of a config that they belong to."""


def meant_option(name: str) -> str | None:
    """The option that somebody means, of ``lion fit``; None if that is not known.

    Args:
        name: Without the dashes before it, e.g. ``lr`` or ``optimizer.lr``.
    """
    last = name.rpartition(".")[2].replace("-", "_")
    close = get_close_matches(last, OPTIONS, n=1, cutoff=0.85)
    option = OPTIONS[close[0]] if close else None
    return None if option == name else option


def hint(refused: str, arguments: Sequence[str]) -> str | None:
    """One line on the option of a command line that a parser refused, and the one that is meant.

    Args:
        refused: The parser's message.
        arguments: The command line.
    """
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0]
        is_refused = f"arguments: --{name}" in refused or f"Option '{name.rpartition('.')[2]}' is not" in refused
        if argument.startswith("--") and is_refused and (option := meant_option(name)):
            return f"--{name}: there is no such option; did you mean --{option}?"
    return None
