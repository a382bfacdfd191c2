"""The table of TRL's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import override

from lion_lightning.tools.importing.dialects.datasets import Dataset
from lion_lightning.tools.importing.hf_trainer.run_length import hold_out
from lion_lightning.tools.importing.hf_trainer.table import DECIDE, HF_TRAINER, UPLOAD, all_of
from lion_lightning.tools.importing.losses import ANSWER_LOSSES, DIVERGENCES, PAIR_LOSSES
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
    apply_all,
    at_least,
    flag,
    number,
    numbers,
    positive,
    share,
    text,
    texts,
)

OBJECTIVE_KEYS: dict[Objective, set[str]] = {
    "sft": {"packing", "packing_strategy", "assistant_only_loss", "completion_only_loss", "dataset_text_field"},
    "dpo": {
        *("label_smoothing", "ld_alpha", "f_divergence_type", "loss_weights", "rpo_alpha", "use_weighting"),
        *("discopop_tau", "cpo_alpha", "simpo_gamma"),
    },
    "kto": {"desirable_weight", "undesirable_weight"},
    "reward": {"center_rewards_coefficient"},
}
"""Keys that the trainer of one objective has alone."""


def set_losses(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """A loss, or several that are added up."""
    names = texts(value)
    known = {"dpo": PAIR_LOSSES.keys(), "kto": ANSWER_LOSSES.keys(), "sft": {"nll", "chunked_nll", "dft"}}
    unknown = [name for name in names if name not in known.get(recipe.objective, names)]
    if unknown:
        return "not supported", f"{', '.join(unknown)}: docs/losses.md lists the losses"
    recipe.losses.names = names
    return None


def set_divergence(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """DPO's divergence."""
    name = text(value).lower().removeprefix("fdivergencetype.")
    if name not in DIVERGENCES:
        return "not supported", f"{name}: there are {', '.join(DIVERGENCES)}"
    recipe.losses.divergence = name
    return None


def set_dtype(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Dtype of the weights."""
    name = text(value).removeprefix("torch.")
    recipe.bf16_weights = name in ("bfloat16", "auto")
    if name == "auto":
        return "check", "bf16, as most models are stored"
    return None if name in ("bfloat16", "float32") else ("not supported", f"{name}: weights are in float32")


def set_mask(value: Any, recipe: Recipe) -> None:
    """Answers alone, or all tokens."""
    recipe.mask = "assistant" if flag(value) else "none"


def set_packing_strategy(value: Any, recipe: Recipe) -> None:
    """How rows are filled, where they are."""
    if value == "wrapped" and recipe.batches.packing != "none":
        recipe.batches.packing = "wrapped"


def set_targets(value: Any, recipe: Recipe) -> None:
    """Names of layers, one of which may stand for all."""
    names = texts(value)
    recipe.lora.targets = "all-linear" if names == ["all-linear"] else names


def set_eos(value: Any, recipe: Recipe) -> None:
    """Another EOS token, which may be new."""
    recipe.tokenizer |= {"eos_token": text(value), "special_tokens": [value]}


def set_template(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """A jinja file, or jinja itself."""
    if str(value).endswith((".jinja", ".jinja2")) or "{" in str(value):
        recipe.tokenizer["chat_template"] = text(value)
        return None
    return "not supported", f"{value}: tokenizer.chat_template takes a jinja file, so copy that tokenizer's into one"


class DatasetList(Rule):
    """TRL's and alignment-handbook's lists of data sets.

    Args:
        rules: What becomes of the keys of an entry.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self.rules = rules

    @override
    def apply(self, key: str, value: Any, recipe: Recipe) -> Iterator[Outcome]:
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            raise ValueError("not a list of mappings, each with a data set")
        for entry in value:
            dataset = Dataset(recipe.objective)
            yield from apply_all(self.rules, entry, dataset, f"{key}.")
            if not dataset.path:
                raise ValueError("an entry without a data set")
            recipe.sources += dataset.sources()


DATASET_LIST = DatasetList(
    {
        "path": To("path", text),
        "name": To("subset", text),
        "data_files": To("files", texts),
        "split": To("split", text),
        "fraction": To("fraction", at_least(0)),
        "columns": NoEffect("columns that are not read are named; `ignore` of a source leaves some out"),
        "data_dir": NotSupported("give sources.path the folder"),
    }
)

CARRIED = Do(lambda value, recipe: None)
"""Keys that are read together with others."""

RULES: dict[str, Rule] = {
    **HF_TRAINER,
    "model_name_or_path": To("model", text),
    "model_revision": To("revision", text),
    **all_of("dtype torch_dtype", Do(set_dtype)),
    "model_init_kwargs": NotSupported("write the settings into model.init_args.policy"),
    "tokenizer_name_or_path": Do(lambda value, recipe: recipe.tokenizer.update(path=text(value))),
    **all_of("chat_template_path chat_template", Do(set_template)),
    "eos_token": Do(set_eos),
    # data
    **all_of("dataset_name dataset_config dataset_train_split dataset_test_split", CARRIED),
    "test_split_size": Do(hold_out),
    **all_of("dataset_streaming streaming", NotSupported("set `streaming: true` on a source: docs/data.md")),
    "dataset_text_field": CARRIED,
    "dataset_kwargs": NoEffect("special tokens are the chat template's"),
    **all_of("max_length max_seq_length", To("max_length", positive)),
    "max_prompt_length": To("max_prompt_length", positive),
    "max_completion_length": NotSupported("data.max_length is of a prompt with its answer"),
    "truncation_mode": NotSupported("the end of what is too long is cut", ("keep_start",)),
    "packing": To("batches.packing", lambda value: "best fit" if flag(value) else "none"),
    "packing_strategy": Do(set_packing_strategy),
    "eval_packing": NoEffect("validation is packed as training is, which changes no result"),
    "assistant_only_loss": Do(set_mask),
    "completion_only_loss": Switch({"mask": "completion"}),
    "shuffle_dataset": NoEffect("rows are shuffled in each epoch"),
    # loss
    "loss_type": Do(set_losses),
    "loss_weights": To("losses.weights", numbers),
    "beta": To("losses.beta", at_least(0)),
    "label_smoothing": To("losses.label_smoothing", at_least(0)),
    "ld_alpha": To("losses.shared_length", at_least(0)),
    "f_divergence_type": Do(set_divergence),
    "f_alpha_divergence_coef": To("losses.divergence_alpha", number),
    "discopop_tau": To("losses.discopop_tau", number),
    "use_weighting": To("losses.policy_weighted", flag),
    **all_of("rpo_alpha cpo_alpha", To("losses.likelihood", at_least(0))),
    "simpo_gamma": To("losses.gamma", number),
    "desirable_weight": To("losses.desirable", at_least(0)),
    "undesirable_weight": To("losses.undesirable", at_least(0)),
    "center_rewards_coefficient": To("losses.center_rewards", at_least(0)),
    **all_of("sync_ref_model ref_model_mixup_alpha ref_model_sync_steps", CARRIED),
    **all_of("precompute_ref_log_probs precompute_ref_batch_size", NoEffect("CachedReference does that")),
    "reference_free": NotSupported("name a loss without a reference: docs/losses.md"),
    "router_aux_loss_coef": To("router_aux", at_least(0)),
    "disable_dropout": NoEffect("the model's own dropout is always off"),
    "generate_during_eval": NotSupported("add lion_lightning.callbacks.SampleTable to trainer.callbacks"),
    "activation_offloading": NotSupported("gradient_checkpointing keeps the least"),
    # adapters
    "use_peft": To("uses_lora", flag),
    "lora_r": To("lora.r", positive),
    "lora_alpha": To("lora.alpha", number),
    "lora_dropout": To("lora.dropout", share),
    "lora_target_modules": Do(set_targets),
    "lora_modules_to_save": To("lora.modules_to_save", texts),
    "use_rslora": To("lora.rank_stabilized", flag),
    "lora_task_type": NoEffect("the module knows"),
    **all_of("use_dora lora_target_parameters", NotSupported("adapters are LoRA's, on layers")),
    "load_in_4bit": To("lora.four_bits", flag),
    "use_bnb_nested_quant": To("lora.double_quant", flag),
    "load_in_8bit": NotSupported("weights are held in 4 bits (`load_in_4bit`) or in policy.dtype"),
    "bnb_4bit_quant_type": NotSupported("4 bits are NF4's", ("nf4",)),
    "num_processes": To("batches.devices", positive),
    **all_of("trackio_space_id project", NoEffect(UPLOAD)),
    "trust_remote_code": NotSupported(DECIDE),
    "ignore_bias_buffers": NoEffect("buffers need no such setting"),
    "use_liger_kernel": To("liger", flag),
}
"""Rule of each key."""
