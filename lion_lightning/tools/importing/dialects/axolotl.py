"""axolotl's configs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lion_lightning.tools.importing.dialect import HALF_WEIGHTS, Dialect
from lion_lightning.tools.importing.dialects.axolotl_datasets import Datasets
from lion_lightning.tools.importing.dialects.axolotl_keys import (
    STAGES,
    Shards,
    in_tokenizer,
    in_wandb,
    set_adapter,
    set_bf16,
    set_eos,
    set_evaluations,
    set_liger,
    set_losses,
    set_overlong,
    set_plugins,
    set_recompute,
    set_saves,
    set_special,
    set_stage,
    set_targets,
    set_template,
    set_warmup_steps,
)
from lion_lightning.tools.importing.hf_trainer.run_length import set_epochs, set_validation
from lion_lightning.tools.importing.hf_trainer.table import (
    ATTENTION,
    FSDP_CONFIG,
    HF_TRAINER,
    IN_PROCESS,
    SECRET,
    UPLOAD,
    all_of,
    set_optimizer,
    set_schedule,
)
from lion_lightning.tools.importing.recipe import Objective, Recipe
from lion_lightning.tools.importing.rules import (
    Do,
    Inside,
    NoEffect,
    NotSupported,
    Outcome,
    Rule,
    Switch,
    To,
    at_least,
    flag,
    number,
    numbers,
    positive,
    share,
    text,
    texts,
)


class Axolotl(Dialect):
    """Keys of axolotl 0.12 and of the years before."""

    name: ClassVar[str] = "axolotl"
    title: ClassVar[str] = "axolotl"
    model_key: ClassVar[str] = "base_model"

    @override
    def objective(self, config: Mapping[str, Any], path: Path) -> Objective:
        stage = config.get("rl")
        if stage not in (None, *STAGES):
            raise ValueError(f"rl is {stage!r}; of axolotl's trainers SFT, {', '.join(STAGES)} and reward are imported")
        for key in ("process_reward_model", "pretraining_dataset"):
            if config.get(key):
                raise ValueError(
                    f"{key} is set; of axolotl's trainers SFT, {', '.join(STAGES)} and reward are imported"
                )
        if config.get("reward_model"):
            return "reward"
        return "sft" if stage is None else STAGES[stage][0]

    @override
    def defaults(self, objective: Objective, config: Mapping[str, Any]) -> dict[str, Any]:
        shared = {
            "sequence_len": 512,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "optimizer": "adamw_torch_fused",
            "lr_scheduler": "cosine",
            **({} if config.get("warmup_steps") is not None else {"warmup_ratio": 0.03}),
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "bf16": "auto",
            "seed": 42,
        }
        beta = {} if {"dpo_beta", "orpo_alpha", "trl"} & config.keys() else {"rl_beta": 0.1}
        own: dict[Objective, dict[str, Any]] = {
            "sft": {"sample_packing": False, "train_on_inputs": False, "excess_length_strategy": "drop"},
            "dpo": {**beta, "max_prompt_len": 512},
            "kto": beta,
            "reward": {},
        }
        return shared | own[objective]

    @override
    def rules(self, objective: Objective, folder: Path) -> Mapping[str, Rule]:
        data = {"datasets": Datasets(objective), "test_datasets": Datasets(objective, validation=True)}
        return {"val_set_size": Do(set_validation), **data, **HF_TRAINER, **_RULES}

    @override
    def finish(self, recipe: Recipe, config: Mapping[str, Any]) -> list[Outcome]:
        outcomes = []
        if config.get("learning_rate") is None:
            reason = f"not given, and axolotl has no default: choose one in place of {recipe.optimization.lr:g}"
            outcomes.append(Outcome("learning_rate", "check", reason))
        if recipe.lora.four_bits and not recipe.uses_lora:
            recipe.lora.four_bits = False
            outcomes.append(Outcome("load_in_4bit", "not supported", "4 bits are for adapters: set `adapter: qlora`"))
        if recipe.bf16_weights and not recipe.uses_lora and config.get("bf16") is not None:
            outcomes.append(Outcome("bf16", "check", HALF_WEIGHTS))
        return outcomes


_SPECIAL_TOKENS: Mapping[str, Rule] = {
    "eos_token": Do(set_eos),
    "additional_special_tokens": Do(set_special),
    "pad_token": NoEffect("rows are not padded"),
    "bos_token": NotSupported("the tokenizer's own is used"),
    "unk_token": NotSupported("the tokenizer's own is used"),
}

_FP16 = Switch({"precision": "16-mixed", "bf16_weights": False})

_RULES: dict[str, Rule] = {
    "base_model": To("model", text),
    **all_of("revision_of_model model_revision", To("revision", text)),
    **all_of(
        "model_type tokenizer_type processor_type base_model_config tokenizer_use_fast", NoEffect("found by itself")
    ),
    "tokenizer_config": in_tokenizer("path"),
    "special_tokens": Inside(_SPECIAL_TOKENS),
    "tokens": Do(set_special),
    "chat_template": Do(set_template),
    "chat_template_jinja": in_tokenizer("chat_template"),
    "chat_template_kwargs": in_tokenizer("template_kwargs"),
    "default_system_message": To("system", text),
    "eot_tokens": NoEffect("what ends a turn is found in the template"),
    # objective
    "rl": Do(set_stage),
    **all_of("rl_beta dpo_beta orpo_alpha", To("losses.beta", at_least(0))),
    "trl": Inside({"beta": To("losses.beta", at_least(0))}),
    "dpo_loss_type": Do(set_losses),
    "dpo_loss_weights": To("losses.weights", numbers),
    "dpo_label_smoothing": To("losses.label_smoothing", at_least(0)),
    "dpo_use_weighting": To("losses.policy_weighted", flag),
    **all_of("rpo_alpha cpo_alpha", To("losses.likelihood", at_least(0))),
    "simpo_gamma": To("losses.gamma", number),
    "kto_desirable_weight": To("losses.desirable", at_least(0)),
    "kto_undesirable_weight": To("losses.undesirable", at_least(0)),
    "center_rewards_coefficient": To("losses.center_rewards", at_least(0)),
    **all_of("reward_model num_labels", NoEffect("RewardModule has one reward")),
    "precompute_ref_log_probs": NoEffect("CachedReference does that"),
    **all_of("dpo_use_liger_kernel dpo_padding_free", NoEffect("rows are packed, and logits never exist in full")),
    # data
    "sequence_len": To("max_length", positive),
    "max_prompt_len": To("max_prompt_length", positive),
    "excess_length_strategy": Do(set_overlong),
    "sample_packing": To("batches.packing", lambda value: "best fit" if flag(value) else "none"),
    "train_on_inputs": To("mask", lambda value: "none" if flag(value) else "assistant"),
    "min_sample_len": NotSupported("leave short rows out with a DocumentFilter: docs/data.md"),
    "shuffle_merged_datasets": NotSupported("rows are shuffled in each epoch", (True,)),
    "dataset_exact_deduplication": NoEffect("equal rows are always used once"),
    **all_of(
        """dataset_prepared_path dataset_processes dataset_keep_in_memory skip_prepare_dataset push_dataset_to_hub
        num_dataset_shards_to_save""",
        NoEffect(IN_PROCESS),
    ),
    **all_of(
        """pad_to_sequence_len eval_sample_packing sample_packing_group_size sample_packing_bin_size batch_flattening
        multipack_real_batches sample_packing_eff_est total_num_tokens sample_packing_seq_len_multiplier
        max_packed_sequence_len""",
        NoEffect("rows are packed best-fit, without padding"),
    ),
    # batches, optimizer
    "micro_batch_size": To("batches.size", positive),
    "num_epochs": Do(set_epochs),
    "warmup_steps": Do(set_warmup_steps),
    "batch_size": NotSupported("a step has batch_size times accumulate_grad_batches times devices"),
    "eval_batch_size": NoEffect("validation has the batch size of training, which changes no result"),
    "optimizer": Do(set_optimizer),
    "lr_scheduler": Do(set_schedule),
    "cosine_min_lr_ratio": To("optimization.minimum", at_least(0)),
    "cosine_constant_lr_ratio": NotSupported("the cosine ends with the run"),
    **all_of("adam_eps", To("optimization.eps", at_least(0))),
    **all_of("embedding_lr embedding_lr_scale lr_groups loraplus_lr_ratio", NotSupported("one rate for all weights")),
    "bf16": Do(set_bf16),
    "fp16": _FP16,
    "bfloat16": Do(set_bf16),
    "float16": _FP16,
    "gradient_checkpointing": Do(set_recompute),
    **all_of("activation_offloading layer_offloading", NotSupported("policy.recompute: full keeps the least")),
    # adapters
    "adapter": Do(set_adapter),
    "lora_r": To("lora.r", positive),
    "lora_alpha": To("lora.alpha", number),
    "lora_dropout": To("lora.dropout", share),
    "lora_target_modules": Do(set_targets),
    "lora_target_linear": Switch({"lora.targets": "all-linear"}),
    "lora_modules_to_save": To("lora.modules_to_save", texts),
    "peft_use_rslora": To("lora.rank_stabilized", flag),
    "load_in_4bit": To("lora.four_bits", flag),
    "load_in_8bit": NotSupported("weights are held in 4 bits (`load_in_4bit`) or in policy.dtype"),
    "lora_model_dir": NotSupported("merge those adapters into the model first, and name the folder"),
    "lora_fan_in_fan_out": NoEffect("found by itself"),
    **all_of(
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel", NoEffect("kernels change no result")
    ),
    **all_of(
        "peft_use_dora peft relora unfrozen_parameters", NotSupported("adapters are LoRA's, or all weights train")
    ),
    # devices
    "fsdp_config": Shards(FSDP_CONFIG),
    "fsdp_version": NoEffect("FSDP2Strategy is version 2"),
    **all_of("dp_shard_size dp_replicate_size", NotSupported("FSDP2Strategy shards over all GPUs: docs/scale.md")),
    **all_of("context_parallel_size sequence_parallel_degree expert_parallel_size", NotSupported("not here", (1,))),
    "tensor_parallel_size": NotSupported("see FSDP2Strategy's tensor_parallel_size", (1,)),
    # logs, checkpoints
    "evals_per_epoch": Do(set_evaluations),
    "saves_per_epoch": Do(set_saves),
    "wandb_project": in_wandb("project"),
    **all_of("wandb_name wandb_run_id", in_wandb("name")),
    "wandb_entity": NotSupported("set WANDB_ENTITY in the environment"),
    **all_of("wandb_watch wandb_log_model use_wandb", NoEffect("weights are not logged")),
    "use_tensorboard": NoEffect("TensorBoard's files are written anyway"),
    "hf_use_auth_token": NoEffect(SECRET),
    "hub_model_id": NoEffect(UPLOAD),
    "early_stopping_patience": NotSupported("add lightning.pytorch.callbacks.EarlyStopping to trainer.callbacks"),
    **all_of("loss_watchdog_threshold loss_watchdog_patience", NotSupported("no run is stopped for a high loss")),
    **all_of("auto_resume_from_checkpoints", NoEffect("`lion fit -c FILE --ckpt_path last` continues a run")),
    **all_of("strict debug low_cpu_mem_usage device_map local_rank ddp use_kernels", NoEffect("not needed here")),
    # kernels
    "plugins": Do(set_plugins),
    **all_of("liger_rope liger_rms_norm liger_glu_activation liger_swiglu liger_layer_norm", Do(set_liger)),
    **all_of(
        "liger_fused_linear_cross_entropy liger_cross_entropy cut_cross_entropy chunked_cross_entropy",
        NoEffect("log-probs are computed in chunks; logits never exist in full"),
    ),
    **all_of(
        """flash_attention sdp_attention xformers_attention flex_attention eager_attention sage_attention
        flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_rms_norm flash_optimum""",
        NoEffect(ATTENTION),
    ),
}
"""Rule of each key; data sets are read first, since the chat template of the config wins over theirs."""
