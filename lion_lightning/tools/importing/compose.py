"""A config of ``lion fit`` from a recipe."""

from __future__ import annotations

import math
from typing import Any

from lion_lightning.tools.importing.hf_trainer.table import OPTIMIZERS, SCHEDULES
from lion_lightning.tools.importing.losses import loss_section, reference_section
from lion_lightning.tools.importing.recipe import Objective, Recipe, Saving

Section = dict[str, Any]

_MODULES: dict[Objective, tuple[str, str]] = {
    "sft": ("SFTModule", "SFTDataModule"),
    "dpo": ("DPOModule", "PreferenceDataModule"),
    "kto": ("KTOModule", "UnpairedDataModule"),
    "reward": ("RewardModule", "PreferenceDataModule"),
}
"""Module and data module of each objective."""

_PACKINGS = {"none": "Unpacked", "wrapped": "Wrapped"}


def compose(recipe: Recipe) -> Section:
    """The config, as plain data in the order of a file."""
    module, data_module = _MODULES[recipe.objective]
    return {
        "seed_everything": recipe.seed,
        "model": {"class_path": f"lion_lightning.{module}", "init_args": _model(recipe)},
        "data": {"class_path": f"lion_lightning.{data_module}", "init_args": _data(recipe)},
        "trainer": _trainer(recipe),
    }


def instance(path: str, arguments: Section | None = None) -> Section:
    """A class and its arguments."""
    return {"class_path": path, **({"init_args": arguments} if arguments else {})}


# --- model


def _model(recipe: Recipe) -> Section:
    section: Section = {"policy": _policy(recipe)}
    if recipe.tokenizer:
        section["tokenizer"] = {"path": recipe.model, **recipe.tokenizer}
    section |= loss_section(recipe) | reference_section(recipe)
    if recipe.router_aux:
        section["router_aux_loss_coef"] = recipe.router_aux
    return section | {"optimizer": _optimizer(recipe), "lr_scheduler": _schedule(recipe)}


def _policy(recipe: Recipe) -> Section:
    policy: Section = {"path": recipe.model}
    if recipe.revision not in (None, "main"):
        policy["revision"] = recipe.revision
    if recipe.bf16_weights and not recipe.lora.four_bits and recipe.precision == "bf16-mixed":
        policy["dtype"] = "bfloat16"
    policy["recompute"] = "full" if recipe.recompute else "none"
    if recipe.liger:
        policy["liger"] = True
    return policy | (_adapters(recipe) if recipe.uses_lora else {})


def _adapters(recipe: Recipe) -> Section:
    lora = recipe.lora
    alpha = 2.0 * lora.r if lora.alpha is None else lora.alpha
    if lora.rank_stabilized:
        alpha *= math.sqrt(lora.r)  # alpha / r here is alpha / sqrt(r) there
    section: Section = {"r": lora.r, "alpha": alpha, "dropout": lora.dropout, "target_modules": lora.targets}
    if lora.modules_to_save:
        section["modules_to_save"] = lora.modules_to_save
    if not lora.four_bits:
        return {"lora": section}
    quantization: Section = {"double_quant": lora.double_quant}
    if recipe.precision == "bf16-mixed":
        quantization["compute_dtype"] = "bfloat16"
    return {"lora": section, "quantization": quantization}


def _optimizer(recipe: Recipe) -> Section:
    settings = recipe.optimization
    path = OPTIMIZERS[settings.optimizer]
    arguments: Section = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if "Adam" in path:
        arguments |= {"betas": list(settings.betas), "eps": settings.eps}
    return instance(path, arguments)


def _schedule(recipe: Recipe) -> Section:
    settings = recipe.optimization
    warmup = settings.warmup_steps or settings.warmup_share or 0.0
    warmup = int(warmup) if warmup >= 1 else warmup
    arguments: Section = {"warmup": 0.0 if settings.schedule == "constant" else warmup}
    minimum = settings.minimum if settings.minimum_rate is None else settings.minimum_rate / (settings.lr or 1.0)
    if minimum and SCHEDULES[settings.schedule] == "CosineWithWarmup":
        arguments["minimum"] = minimum
    return instance(f"lion_lightning.modules.{SCHEDULES[settings.schedule]}", arguments)


# --- data


def _data(recipe: Recipe) -> Section:
    section: Section = {"sources": [_with_system(source, recipe.system) for source in recipe.sources]}
    if recipe.validation:
        section["validation"] = [_with_system(source, recipe.system) for source in recipe.validation]
    elif recipe.validation_share:
        section["validation_share"] = recipe.validation_share
    if recipe.objective == "sft":
        section |= {"mask": recipe.mask, "overlong": recipe.overlong}
    if recipe.objective == "kto":
        section["mismatched"] = recipe.losses.names == ["kto"]
    section["max_length"] = recipe.max_length
    if recipe.objective != "sft" and 0 < (recipe.max_prompt_length or 0) < recipe.max_length:
        section["max_prompt_length"] = recipe.max_prompt_length
    if packing := _PACKINGS.get(recipe.batches.packing):
        section["packing"] = instance(f"lion_lightning.data.packing.best_fit.{packing}")
    section["batch_size"] = recipe.batches.size
    if recipe.data_seed is not None:
        section["seed"] = recipe.data_seed
    if recipe.num_workers:
        section["num_workers"] = recipe.num_workers
    return section


def _with_system(source: Section, system: str | None) -> Section:
    return source if system is None else {**source, "system": system}


# --- trainer


def _trainer(recipe: Recipe) -> Section:
    saving, out = recipe.saving, recipe.out or "runs/imported"
    section: Section = {"default_root_dir": out, "precision": _precision(recipe), **_devices(recipe), **_length(recipe)}
    section["accumulate_grad_batches"] = recipe.batches.accumulation
    if recipe.optimization.clip:
        section["gradient_clip_val"] = recipe.optimization.clip
    section |= {**_logging(saving, out), **_evaluation(recipe)}
    if not saving.save:
        section["enable_checkpointing"] = False
    section["callbacks"] = [
        *_checkpoints(saving, out),
        instance("lion_lightning.callbacks.TokenThroughput"),
        instance("lion_lightning.callbacks.HuggingFaceExport"),
    ]
    return section


def _precision(recipe: Recipe) -> str:
    if recipe.precision == "bf16-mixed" and recipe.bf16_weights and not recipe.uses_lora:
        return "bf16-true"  # weights and optimizer in bf16
    return recipe.precision


def _devices(recipe: Recipe) -> Section:
    section: Section = {}
    if recipe.shards:
        options = {"cpu_offload": True} if recipe.cpu_offload else None
        section |= {"accelerator": "gpu", "strategy": instance("lion_lightning.strategies.FSDP2Strategy", options)}
    if recipe.batches.devices:
        section["devices"] = recipe.batches.devices
    return section


def _length(recipe: Recipe) -> Section:
    batches = recipe.batches
    if batches.max_steps:
        return {"max_steps": batches.max_steps}
    epochs = max(1, math.ceil(batches.epochs))
    if epochs == batches.epochs:
        return {"max_epochs": epochs}
    return {"max_epochs": epochs, "limit_train_batches": batches.epochs / epochs}  # as many steps


def _logging(saving: Saving, out: str) -> Section:
    section: Section = {"log_every_n_steps": saving.log_every} if saving.log_every else {}
    if saving.wandb is not None:
        section["logger"] = [
            instance("lightning.pytorch.loggers.CSVLogger", {"save_dir": out}),  # which `lion report` reads
            instance("lightning.pytorch.loggers.WandbLogger", {**saving.wandb, "save_dir": out, "log_model": False}),
        ]
    return section


def _evaluation(recipe: Recipe) -> Section:
    saving, batches = recipe.saving, recipe.batches
    if not (recipe.validation or recipe.validation_share):
        return {}
    if not saving.evaluate:
        return {"limit_val_batches": 0}
    if saving.evals_per_epoch:
        return {"val_check_interval": 1.0 / saving.evals_per_epoch}
    steps = saving.eval_steps
    if not steps:
        return {}
    if steps < 1 and batches.max_steps:  # a share of the run
        steps = math.ceil(steps * batches.max_steps)
    if steps >= 1:  # Lightning counts micro-batches, over epochs where the last key is null
        return {"val_check_interval": int(steps) * batches.accumulation, "check_val_every_n_epoch": None}
    return {"val_check_interval": min(1.0, steps * max(1, math.ceil(batches.epochs)))}  # a share of an epoch


def _checkpoints(saving: Saving, out: str) -> list[Section]:
    if not saving.save:
        return []
    steps = saving.save_steps
    every: Section = {"every_n_train_steps": int(steps)} if steps and steps >= 1 else {"every_n_epochs": 1}
    newest: Section = {"save_top_k": -1}
    if saving.save_limit:
        newest = {"monitor": "step", "mode": "max", "save_top_k": saving.save_limit}
    arguments = {"dirpath": f"{out}/checkpoints", **every, **newest, "save_last": "link"}
    return [instance("lightning.pytorch.callbacks.ModelCheckpoint", arguments)]
