"""Keys of transformers' TrainingArguments, which TRL, alignment-handbook and LLaMA-Factory have."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lion_lightning.tools.importing.hf_trainer.run_length import (
    set_epochs,
    set_eval_strategy,
    set_logging,
    set_max_steps,
    set_save_steps,
    set_save_strategy,
)
from lion_lightning.tools.importing.recipe import Recipe
from lion_lightning.tools.importing.rules import (
    Do,
    Inside,
    Kind,
    NoEffect,
    NotSupported,
    Rule,
    Switch,
    To,
    at_least,
    flag,
    integer,
    positive,
    share,
    text,
    texts,
)

OPTIMIZERS: dict[str, str] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "adamw_apex_fused"), "torch.optim.AdamW"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit"), "bitsandbytes.optim.AdamW8bit"),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw"), "bitsandbytes.optim.PagedAdamW"),
    "paged_adamw_8bit": "bitsandbytes.optim.PagedAdamW8bit",
    **dict.fromkeys(("lion_8bit", "lion_bnb_8bit"), "bitsandbytes.optim.Lion8bit"),
    "paged_lion_8bit": "bitsandbytes.optim.PagedLion8bit",
    "sgd": "torch.optim.SGD",
}
"""Classes of optimizers, by the names that transformers has for them."""

SCHEDULES: dict[str, str] = {
    "linear": "LinearWithWarmup",
    "cosine": "CosineWithWarmup",
    "cosine_with_min_lr": "CosineWithWarmup",
    "constant": "ConstantWithWarmup",
    "constant_with_warmup": "ConstantWithWarmup",
}
"""The same of schedules."""

SECRET = "a secret belongs in the environment or in `hf auth login`, not in a config"
DECIDE = "code that comes with a model runs with your rights: set policy.trust_remote_code: true yourself, if need be"
UPLOAD = "nothing is uploaded: the folder `export` in trainer.default_root_dir is a Hugging Face model, for `hf upload`"
ATTENTION = "policy.attention: lion chooses the fastest path for packed rows itself"
IN_PROCESS = "rows are tokenized once and kept in a cache"
_NO_PADDING = "rows are laid end to end, without padding"
_LOADER = "the loader needs no such setting"
_REPORTS = "the console and logs have other settings"


def set_optimizer(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Take an optimizer that is here, else AdamW."""
    name = text(value).lower().removeprefix("optimizernames.")
    path = OPTIMIZERS.get(name)
    recipe.optimization.optimizer = name if path else "adamw_torch"
    if path is None:
        return "not supported", f"{name}: AdamW is in its place; any class of torch can be model.optimizer"
    if path.startswith("bitsandbytes") and find_spec("bitsandbytes") is None:
        recipe.optimization.optimizer = "adamw_torch"
        return "check", (
            f"AdamW in full precision is in its place: bitsandbytes is not installed. With it (pip install "
            f"'lion-lightning[qlora]') set optimizer.class_path: {path}, which needs less memory"
        )
    return None


def set_schedule(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Take a schedule that is here, else half a cosine."""
    name = text(value).lower()
    recipe.optimization.schedule = name if name in SCHEDULES else "cosine"
    if name in SCHEDULES:
        return None
    return "not supported", f"{name}: half a cosine is in its place; there are linear, cosine and constant schedules"


def set_warmup(value: Any, recipe: Recipe) -> None:
    """Steps of warmup; below 1 a share of the run."""
    recipe.optimization.warmup_steps = at_least(0)(value)


def set_beta(position: int) -> Do:
    """A rule for one of AdamW's betas."""

    def set_one(value: Any, recipe: Recipe) -> None:
        betas = list(recipe.optimization.betas)
        betas[position] = share(value)
        recipe.optimization.betas = (betas[0], betas[1])

    return Do(set_one)


def set_reports(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Where to log to."""
    names = {name.lower() for name in texts(value)}
    if others := names - {"wandb", "all", "tensorboard", "none"}:
        return "not supported", f"{', '.join(sorted(others))}: name a logger of Lightning in trainer.logger"
    return set_wandb(recipe) if "wandb" in names else None


def set_wandb(recipe: Recipe, **settings: str) -> tuple[Kind, str] | None:
    """Log to Weights & Biases, if it is installed."""
    if find_spec("wandb") is None:
        return "check", "Weights & Biases is not installed (pip install 'lion-lightning[wandb]'): left out"
    recipe.saving.wandb = {**(recipe.saving.wandb or {}), **settings}
    return None


def set_run_name(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Name of the run for Weights & Biases."""
    return None if recipe.saving.wandb is None else set_wandb(recipe, name=text(value))


def set_deepspeed(value: Any, recipe: Recipe) -> tuple[Kind, str]:
    """ZeRO, which FSDP2 is in the place of."""
    if not value:
        return "no effect", "off there too"
    recipe.shards = True
    return "check", "FSDP2Strategy shards weights, gradients and optimizer over the GPUs, as ZeRO-3 does"


def set_fsdp(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """FSDP, as words or as a list of words."""
    words = {word for part in texts(value) for word in part.split()} if value else set()
    if not words:
        return None
    recipe.shards = True
    recipe.cpu_offload = recipe.cpu_offload or "offload" in words
    return "check", "FSDP2Strategy finds the layers to wrap itself, and shards everything over all GPUs"


def all_of(names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several keys, with spaces between them."""
    return dict.fromkeys(names.split(), rule)


_FSDP: Mapping[str, Rule] = {
    "offload_params": To("cpu_offload", flag),
    "activation_checkpointing": Switch({"recompute": True}),
    **all_of(
        """auto_wrap_policy transformer_layer_cls_to_wrap backward_prefetch forward_prefetch cpu_ram_efficient_loading
        limit_all_gathers sync_module_states use_orig_params state_dict_type sharding_strategy reshard_after_forward
        version min_num_params xla""",
        NoEffect("FSDP2Strategy needs no such setting"),
    ),
}
FSDP_CONFIG: Mapping[str, Rule] = {**_FSDP, **{f"fsdp_{name}": rule for name, rule in _FSDP.items()}}
"""Keys of ``fsdp_config``."""

HF_TRAINER: dict[str, Rule] = {
    # optimizer and schedule
    "learning_rate": To("optimization.lr", at_least(0)),
    "lr_scheduler_type": Do(set_schedule),
    "lr_scheduler_kwargs": Inside(
        {
            "min_lr_rate": To("optimization.minimum", at_least(0)),
            "min_lr": To("optimization.minimum_rate", at_least(0)),
            "num_cycles": NotSupported("a cosine goes down once", (0.5,)),
        }
    ),
    "warmup_ratio": To("optimization.warmup_share", share),
    "warmup_steps": Do(set_warmup),
    "optim": Do(set_optimizer),
    "optim_args": NotSupported("write them into optimizer.init_args"),
    "adam_beta1": set_beta(0),
    "adam_beta2": set_beta(1),
    "adam_epsilon": To("optimization.eps", at_least(0)),
    "weight_decay": To("optimization.weight_decay", at_least(0)),
    "max_grad_norm": To("optimization.clip", at_least(0)),
    # batches, and how long to train
    "per_device_train_batch_size": To("batches.size", positive),
    "gradient_accumulation_steps": To("batches.accumulation", positive),
    "max_steps": Do(set_max_steps),
    "num_train_epochs": Do(set_epochs),
    # precision and memory
    "bf16": Switch({"precision": "bf16-mixed"}),
    "fp16": Switch({"precision": "16-mixed"}),
    "gradient_checkpointing": To("recompute", flag),
    "gradient_checkpointing_kwargs": NoEffect("recomputation has one kind here"),
    "use_liger_kernel": To("liger", flag),
    # folders, seeds, logs and checkpoints
    "output_dir": To("out", text),
    "seed": To("seed", at_least(0, integer)),
    "data_seed": To("data_seed", at_least(0, integer)),
    "logging_steps": Do(set_logging),
    "eval_steps": To("saving.eval_steps", at_least(0)),
    **all_of("eval_strategy evaluation_strategy", Do(set_eval_strategy)),
    "save_steps": Do(set_save_steps),
    "save_strategy": Do(set_save_strategy),
    "save_total_limit": To("saving.save_limit", positive),
    "report_to": Do(set_reports),
    "run_name": Do(set_run_name),
    # workers and devices
    "dataloader_num_workers": To("num_workers", at_least(0, integer)),
    "deepspeed": Do(set_deepspeed),
    "fsdp": Do(set_fsdp),
    "fsdp_config": Inside(FSDP_CONFIG),
    # what is done in another way, or not at all
    "neftune_noise_alpha": NotSupported("noise on the embeddings is not here"),
    "label_smoothing_factor": NotSupported("write a TokenLoss of your own: docs/losses.md"),
    "torch_compile": NotSupported("models run uncompiled"),
    "auto_find_batch_size": NotSupported("`lion plan -c FILE` estimates the memory of a batch"),
    "load_best_model_at_end": NotSupported(
        "the export is of the last step; ModelCheckpoint with `monitor` keeps others"
    ),
    "train_sampling_strategy": NotSupported("rows are shuffled in each epoch", ("random",)),
    "resume_from_checkpoint": NotSupported("run `lion fit -c FILE --ckpt_path last` to continue a run"),
    "trust_remote_code": NotSupported(DECIDE),
    "push_to_hub": NotSupported(UPLOAD),
    **all_of(
        "hub_model_id hub_strategy hub_private_repo hub_model_revision hub_always_push", NoEffect("a name on the hub")
    ),
    **all_of("hub_token hf_hub_token ms_hub_token om_hub_token", NotSupported(SECRET)),
    # what needs no setting
    "attn_implementation": NoEffect(ATTENTION),
    "per_device_eval_batch_size": NoEffect("validation has the batch size of training, which changes no result"),
    "group_by_length": NoEffect(_NO_PADDING),
    "do_train": NoEffect("`lion fit` trains"),
    "do_eval": NoEffect("validation follows eval_strategy"),
    "average_tokens_across_devices": NoEffect("a step is always divided by the tokens of all devices"),
    "overwrite_output_dir": NoEffect("a run is numbered in its folder, and nothing is overwritten"),
    "tf32": NoEffect("precision is set by trainer.precision"),
    "ddp_find_unused_parameters": NoEffect("all weights are used"),
    "remove_unused_columns": NoEffect("columns that are not read are named"),
    "save_only_model": NoEffect("checkpoints can always be resumed; the export is the model alone"),
    **all_of(
        """eval_on_start metric_for_best_model greater_is_better include_num_input_tokens_seen log_level
        logging_strategy logging_first_step logging_dir disable_tqdm""",
        NoEffect(_REPORTS),
    ),
    **all_of("save_safetensors ddp_timeout ddp_backend local_rank use_cpu debug", NoEffect(_LOADER)),
    **all_of("dataloader_drop_last dataloader_pin_memory dataloader_prefetch_factor", NoEffect(_LOADER)),
    **all_of("dataloader_persistent_workers eval_accumulation_steps", NoEffect(_LOADER)),
    **all_of("dataset_num_proc preprocessing_num_workers dataset_batch_size", NoEffect(IN_PROCESS)),
    **all_of("pad_to_multiple_of padding_free pad_token", NoEffect(_NO_PADDING)),
}
"""Rules of the keys that the programs share."""
