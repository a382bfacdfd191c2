"""LLaMA-Factory's configs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lion_lightning.tools.importing.dialect import HALF_WEIGHTS, Dialect, Imported
from lion_lightning.tools.importing.dialects.axolotl_datasets import TEMPLATES
from lion_lightning.tools.importing.dialects.llama_factory_datasets import NamedDatasets
from lion_lightning.tools.importing.hf_trainer.run_length import lengths, set_validation
from lion_lightning.tools.importing.hf_trainer.table import ATTENTION, DECIDE, HF_TRAINER, IN_PROCESS, all_of
from lion_lightning.tools.importing.recipe import Objective, Recipe
from lion_lightning.tools.importing.rules import (
    Do,
    Kind,
    NoEffect,
    NotSupported,
    Outcome,
    Rule,
    Switch,
    To,
    at_least,
    flag,
    number,
    positive,
    share,
    text,
    texts,
)

_STAGES: dict[str, Objective] = {"sft": "sft", "dpo": "dpo", "kto": "kto", "rm": "reward"}
_TEXT_ALONE = "text alone is trained"
_OTHER_OPTIMIZER = "AdamW is in its place; any class of torch can be model.optimizer"


class LlamaFactory(Dialect):
    """Keys of LLaMA-Factory 0.9 and of the years before.

    Data sets are named in a file ``dataset_info.json``, which is looked for where the config says, and next to it.
    """

    name: ClassVar[str] = "llama-factory"
    title: ClassVar[str] = "LLaMA-Factory"

    @override
    def objective(self, config: Mapping[str, Any], path: Path) -> Objective:
        stage = config.get("stage", "sft")
        if stage not in tuple(_STAGES):  # a list has no hash
            raise ValueError(f"stage is {stage!r}; of LLaMA-Factory's stages {', '.join(_STAGES)} are imported")
        return _STAGES[stage]

    @override
    def defaults(self, objective: Objective, config: Mapping[str, Any]) -> dict[str, Any]:
        shared = {
            "finetuning_type": "lora",
            "cutoff_len": 2048,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "learning_rate": 5e-5,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1.0,
            "disable_gradient_checkpointing": False,
            **lengths(config),
            "seed": 42,
        }
        beta = {} if config.get("dpo_beta") or config.get("kto_beta") else {"pref_beta": 0.1}
        own: dict[Objective, dict[str, Any]] = {"sft": {}, "dpo": {**beta, "pref_loss": "sigmoid"}, "kto": beta}
        adapters = {"lora_rank": 8, "lora_target": "all"}
        is_lora = config.get("finetuning_type", "lora") == "lora"
        return shared | own.get(objective, {}) | (adapters if is_lora else {})

    @override
    def rules(self, objective: Objective, folder: Path) -> Mapping[str, Rule]:
        return {
            **_RULES,
            "dataset": NamedDatasets(folder),
            "eval_dataset": NamedDatasets(folder, validation=True),
            "max_samples": Do(_set_most),
        }

    @override
    def read(self, config: Mapping[str, Any], path: Path, objective: Objective | None = None) -> Imported:
        """Read a config; its data sets are found through another key."""
        folder = config.get("dataset_dir")
        named = {"dataset", "eval_dataset"} & config.keys()
        placed = {key: {"names": config[key], "folder": folder} for key in named if config[key] is not None}
        return super().read({**config, **placed}, path, objective)

    @override
    def finish(self, recipe: Recipe, config: Mapping[str, Any]) -> list[Outcome]:
        if recipe.objective == "kto":
            recipe.losses.names = ["kto"]
        if recipe.uses_lora and recipe.precision == "bf16-mixed":
            recipe.bf16_weights = True  # those under the adapters, which are in fp32
        if not recipe.uses_lora:
            recipe.lora.four_bits = False
        if recipe.bf16_weights and not recipe.uses_lora:
            return [Outcome("pure_bf16", "check", HALF_WEIGHTS)]
        return []


def _set_kind(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    recipe.uses_lora = value == "lora"
    return None if value in ("lora", "full") else ("not supported", f"{value}: all weights train, or LoRA's adapters")


def _set_bits(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    recipe.lora.four_bits = value == 4
    return None if value == 4 else ("not supported", f"{value} bits: weights are held in 4 bits, or in policy.dtype")


def _set_template(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    if text(value) in TEMPLATES:
        recipe.tokenizer["chat_template"] = value
        return None
    return "check", f"{value}: the model's own chat template is used; a model without one needs tokenizer.chat_template"


def _set_loss(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    known = ("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo")
    recipe.losses.names = [value if value in known else "sigmoid"]
    return None if value in known else ("not supported", f"{value}: docs/losses.md lists the losses")


def _set_thinking(value: Any, recipe: Recipe) -> tuple[Kind, str]:
    recipe.tokenizer["template_kwargs"] = {"enable_thinking": flag(value)}
    return "check", "a variable of the chat template; no empty reasoning is added to answers"


def _set_most(value: Any, recipe: Recipe) -> tuple[Kind, str]:
    most = positive(value)
    for source in recipe.sources:
        source["split"] = f"{source.get('split', 'train')}[:{most}]"
    return "check", "a data set with fewer rows is an error: take the brackets off its split"


_RULES: dict[str, Rule] = {
    "val_size": Do(set_validation),
    **HF_TRAINER,
    "model_name_or_path": To("model", text),
    "model_revision": To("revision", text),
    "stage": Do(lambda value, recipe: None),
    "finetuning_type": Do(_set_kind),
    "template": Do(_set_template),
    "trust_remote_code": NotSupported(DECIDE),
    **all_of(
        "add_tokens add_special_tokens",
        Do(lambda value, recipe: recipe.tokenizer.setdefault("special_tokens", []).extend(texts(value))),
    ),
    "resize_vocab": NoEffect("the embedding grows with new tokens"),
    # data
    "dataset_dir": Do(lambda value, recipe: None),
    "cutoff_len": To("max_length", positive),
    "train_on_prompt": To("mask", lambda value: "none" if flag(value) else "assistant"),
    "mask_history": Switch({"mask": "last_turn"}),
    **all_of("packing neat_packing", Switch({"batches.packing": "best fit"})),
    "default_system": To("system", text),
    "enable_thinking": Do(_set_thinking),
    "streaming": NotSupported("set `streaming: true` on a source: docs/data.md"),
    "mix_strategy": NotSupported("give each source its `fraction`", ("concat",)),
    "interleave_probs": NotSupported("give each source its `fraction`"),
    "disable_shuffling": NotSupported("rows are shuffled in each epoch"),
    **all_of("overwrite_cache preprocessing_batch_size tokenized_path data_shared_file_system", NoEffect(IN_PROCESS)),
    # adapters
    "lora_rank": To("lora.r", positive),
    "lora_alpha": To("lora.alpha", number),
    "lora_dropout": To("lora.dropout", share),
    "lora_target": To("lora.targets", lambda value: "all-linear" if texts(value) == ["all"] else texts(value)),
    "additional_target": To("lora.modules_to_save", texts),
    "use_rslora": To("lora.rank_stabilized", flag),
    "quantization_bit": Do(_set_bits),
    "double_quantization": To("lora.double_quant", flag),
    "quantization_method": NotSupported("4 bits are bitsandbytes' NF4", ("bnb", "bitsandbytes")),
    "quantization_type": NotSupported("4 bits are NF4's", ("nf4",)),
    **all_of("use_dora pissa_init loraplus_lr_ratio", NotSupported("adapters are plain LoRA's")),
    "adapter_name_or_path": NotSupported("merge those adapters into the model first, and name the folder"),
    **all_of("freeze_trainable_layers freeze_trainable_modules use_llama_pro", NotSupported("all weights train")),
    # loss
    **all_of("pref_beta dpo_beta kto_beta", To("losses.beta", at_least(0))),
    **all_of("pref_loss dpo_loss", Do(_set_loss)),
    **all_of("pref_ftx dpo_ftx", To("losses.likelihood", at_least(0))),
    "pref_bco_weight": To("losses.bco", at_least(0)),
    "dpo_label_smoothing": To("losses.label_smoothing", at_least(0)),
    "simpo_gamma": To("losses.gamma", number),
    "ld_alpha": To("losses.shared_length", at_least(0)),
    "kto_chosen_weight": To("losses.desirable", at_least(0)),
    "kto_rejected_weight": To("losses.undesirable", at_least(0)),
    "ref_model": To("losses.reference", text),
    "ref_model_adapters": NotSupported("merge those adapters into the reference first, and name the folder"),
    "use_dft_loss": To("losses.names", lambda value: ["dft"] if flag(value) else []),
    **all_of("use_asft_loss use_eaft_loss", NotSupported("write a TokenLoss of your own: docs/losses.md")),
    "moe_aux_loss_coef": To("router_aux", at_least(0)),
    # model and devices
    "pure_bf16": Switch({"precision": "bf16-mixed", "bf16_weights": True}),
    "disable_gradient_checkpointing": To("recompute", lambda value: not flag(value)),
    **all_of("flash_attn shift_attn", NoEffect(ATTENTION)),
    "enable_liger_kernel": To("liger", flag),
    **all_of("use_unsloth use_unsloth_gc use_reentrant_gc upcast_layernorm", NoEffect("speed and memory alone")),
    "rope_scaling": NotSupported("set it in the model's own config"),
    **all_of(
        "use_galore use_apollo use_badam use_adam_mini use_muon mixture_of_depths fp8", NotSupported(_OTHER_OPTIMIZER)
    ),
    **all_of(
        "image_max_pixels video_max_pixels freeze_vision_tower freeze_multi_modal_projector", NoEffect(_TEXT_ALONE)
    ),
    **all_of("image_min_pixels video_min_pixels freeze_language_model media_dir", NoEffect(_TEXT_ALONE)),
    # logs
    "plot_loss": NoEffect("`lion report` draws it"),
    "compute_accuracy": NoEffect("accuracy is always logged"),
    "early_stopping_steps": NotSupported("add lightning.pytorch.callbacks.EarlyStopping to trainer.callbacks"),
    **all_of("do_predict predict_with_generate", NotSupported("`lion evaluate` lets a trained model answer")),
    **all_of("include_effective_tokens_per_second use_fast_tokenizer low_cpu_mem_usage", NoEffect("always so")),
}
"""Rule of each key; data sets and how many of their rows come last."""
