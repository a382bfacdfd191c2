"""TRL's configs: of its scripts and of ``trl sft``, ``dpo``, ``kto`` and ``reward``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lion_lightning.tools.importing.dialect import HALF_WEIGHTS, Dialect
from lion_lightning.tools.importing.dialects.trl_keys import DATASET_LIST, OBJECTIVE_KEYS, RULES
from lion_lightning.tools.importing.hf_trainer.run_length import lengths
from lion_lightning.tools.importing.losses import ANSWER_LOSSES, PAIR_LOSSES
from lion_lightning.tools.importing.recipe import OBJECTIVES, Objective, Recipe
from lion_lightning.tools.importing.rules import Outcome, Rule, at_least, positive, text, texts

_WORDS: dict[str, Objective] = {
    "sft": "sft",
    "dpo": "dpo",
    "orpo": "dpo",
    "cpo": "dpo",
    "simpo": "dpo",
    "kto": "kto",
    "reward": "reward",
    "rm": "reward",
}
"""Words in names of files and folders that say what is trained."""


class TRL(Dialect):
    """Keys of TRL 1.16 and, where names have changed, of the versions before.

    Which trainer runs is no key: it is told by keys that only one of them has, else by a word in the names of the file,
    its folder and the output.
    """

    name: ClassVar[str] = "trl"
    title: ClassVar[str] = "TRL"

    @override
    def objective(self, config: Mapping[str, Any], path: Path) -> Objective:
        given = {key for key, value in config.items() if value is not None}
        if foreign := given & {"num_generations", "reward_funcs", "reward_model_path"}:
            raise ValueError(
                f"{min(foreign)} is set; of TRL's trainers SFT, DPO, CPO, ORPO, KTO and reward are imported"
            )
        losses = set(texts(config.get("loss_type") or []))
        by_keys: dict[Objective, set[str]] = {kind: given & OBJECTIVE_KEYS[kind] for kind in OBJECTIVES}
        by_keys["kto"] |= losses & ANSWER_LOSSES.keys()
        by_keys["dpo"] |= losses & PAIR_LOSSES.keys()
        by_keys["sft"] |= losses & {"nll", "dft", "chunked_nll"}
        found = [kind for kind in OBJECTIVES if by_keys[kind]] or sorted(
            {_WORDS[word] for word in _words(config, path)}
        )
        if len(found) != 1:
            raise ValueError(f"the config does not say what is trained; add --stage {'|'.join(found or OBJECTIVES)}")
        return found[0]

    @override
    def defaults(self, objective: Objective, config: Mapping[str, Any]) -> dict[str, Any]:
        rates = {"sft": 2e-5, "dpo": 1e-6, "kto": 1e-6, "reward": 1e-4}
        shared = {
            "learning_rate": rates[objective],
            "lr_scheduler_type": "linear",
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "max_grad_norm": 1.0,
            "gradient_checkpointing": True,
            **({} if config.get("fp16") else {"bf16": True}),
            **({} if config.get("max_seq_length") else {"max_length": 1024}),
            **lengths(config),
            "logging_steps": 10,
            "seed": 42,
        }
        own: dict[Objective, dict[str, Any]] = {
            "sft": {"packing": False, "assistant_only_loss": False},
            "dpo": {"beta": 0.1},
            "kto": {"beta": 0.1, "loss_type": "kto"},
            "reward": {},
        }
        adapters = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": ["q_proj", "v_proj"]}
        if config.get("load_in_4bit"):
            adapters["use_bnb_nested_quant"] = False
        return shared | own[objective] | (adapters if config.get("use_peft") else {})

    @override
    def rules(self, objective: Objective, folder: Path) -> Mapping[str, Rule]:
        return {**RULES, "datasets": DATASET_LIST}

    @override
    def finish(self, recipe: Recipe, config: Mapping[str, Any]) -> list[Outcome]:
        self.name_data(recipe, config)
        column = config.get("dataset_text_field")
        for source in [*recipe.sources, *recipe.validation]:
            source.setdefault("format", "text")  # a text is trained as it stands, as there
            if column not in (None, "text"):
                source["columns"] = {"text": text(column)}
        _name_losses(recipe, config)
        if not recipe.saving.evaluate:  # TRL evaluates only where eval_strategy says when
            recipe.validation, recipe.validation_share = [], 0.0
        if recipe.uses_lora:
            return []
        recipe.lora.four_bits = False
        key = "torch_dtype" if config.get("torch_dtype") else "dtype"
        return [Outcome(key, "check", HALF_WEIGHTS)] if recipe.bf16_weights and config.get(key) else []

    def name_data(self, recipe: Recipe, config: Mapping[str, Any]) -> None:
        """Fill in the sources, as far as no key did alone."""
        if config.get("dataset_name") is None:
            return
        shared = {"path": text(config["dataset_name"])}
        if config.get("dataset_config") is not None:
            shared["subset"] = config["dataset_config"]
        recipe.sources.append({**shared, "split": config.get("dataset_train_split") or "train"})
        recipe.validation.append({**shared, "split": config.get("dataset_test_split") or "test"})

    @override
    def notes(self, recipe: Recipe, config: Mapping[str, Any]) -> list[str]:
        found = []
        if recipe.objective == "sft" and recipe.mask == "none":
            found.append(
                "mask: none trains every token, those of the user too, as TRL does for `messages` and `text`; for rows "
                "of `prompt` and `completion` set mask: completion, for answers alone mask: assistant"
            )
        if "max_length" in config and config["max_length"] is None:
            found.append(f"max_length: null cuts no row in TRL; here data.max_length is {recipe.max_length}: set it")
        return found


def _words(config: Mapping[str, Any], path: Path) -> set[str]:
    """Words of names that say what is trained: of the file's, else of its folder's, else of the output's."""
    outputs = " ".join(str(config.get(key) or "") for key in ("output_dir", "hub_model_id", "run_name"))
    for name in (path.stem, path.absolute().parent.name, outputs):
        if found := set(re.findall(r"[a-z]+", name.lower())) & _WORDS.keys():
            return found
    return set()


def _name_losses(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Choose the loss of trainers with another one than DPO's, and the reference that follows the policy."""
    losses = recipe.losses
    if recipe.objective == "dpo" and not losses.names:
        is_orpo = any("orpo" in str(config.get(key)).lower() for key in ("output_dir", "hub_model_id", "run_name"))
        losses.names = ["orpo" if is_orpo else "cpo" if config.get("cpo_alpha") is not None else "sigmoid"]
    if losses.names == ["simpo"] and config.get("cpo_alpha") is None:
        losses.likelihood = 1.0  # TRL's default of cpo_alpha
    if config.get("sync_ref_model"):  # with TRL's defaults
        losses.reference_mixing = (
            at_least(0)(config.get("ref_model_mixup_alpha") or 0.6),
            positive(config.get("ref_model_sync_steps") or 512),
        )
