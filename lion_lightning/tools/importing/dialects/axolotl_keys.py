"""Keys that axolotl's configs alone have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typing_extensions import override

from lion_lightning.tools.importing.dialects.axolotl_datasets import TEMPLATES
from lion_lightning.tools.importing.hf_trainer.table import set_wandb
from lion_lightning.tools.importing.losses import PAIR_LOSSES
from lion_lightning.tools.importing.recipe import Objective, Recipe
from lion_lightning.tools.importing.rules import Do, Inside, Kind, Outcome, at_least, flag, integer, number, text, texts

STAGES: dict[str, tuple[Objective, list[str]]] = {
    "dpo": ("dpo", ["sigmoid"]),
    "ipo": ("dpo", ["ipo"]),
    "orpo": ("dpo", ["orpo"]),
    "simpo": ("dpo", ["simpo"]),
    "kto": ("kto", ["kto"]),
}
"""Objective and losses of each value of ``rl``."""


def set_stage(value: Any, recipe: Recipe) -> None:
    """The trainer of preferences, and its loss."""
    recipe.losses.names = list(STAGES[value][1])
    if value == "simpo":
        recipe.losses.likelihood = 1.0  # the default of TRL's CPO trainer, which axolotl runs


def set_losses(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """DPO's losses, by TRL's names."""
    names = texts(value)
    unknown = [name for name in names if name not in PAIR_LOSSES]
    if unknown:
        return "not supported", f"{', '.join(unknown)}: docs/losses.md lists the losses"
    recipe.losses.names = names
    return None


def set_adapter(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """LoRA, or LoRA on 4 bits."""
    recipe.uses_lora = value in ("lora", "qlora")
    recipe.lora.four_bits = value == "qlora"
    return None if recipe.uses_lora else ("not supported", f"{value}: adapters are LoRA's")


def set_bf16(value: Any, recipe: Recipe) -> None:
    """Axolotl holds the weights in bf16 too."""
    if value == "full" or flag(value):
        recipe.precision, recipe.bf16_weights = "bf16-mixed", True


def set_recompute(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """True, or a place to keep activations in."""
    recipe.recompute = value in ("offload", "offload_disk", "unsloth") or flag(value)
    return ("check", "layers are recomputed; nothing is offloaded") if isinstance(value, str) else None


def set_overlong(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Truncate or drop rows that are too long."""
    if recipe.objective != "sft":
        return "no effect", "answers that are too long lose their end"
    recipe.overlong = "truncate" if value == "truncate" else "drop"
    return ("check", "rows that are too long are left out, and counted") if value == "raise" else None


def set_targets(value: Any, recipe: Recipe) -> None:
    """Names of layers, or an expression."""
    recipe.lora.targets = value if isinstance(value, str) else texts(value)


def set_template(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """A template by its name."""
    name = text(value)
    if name in TEMPLATES:
        recipe.tokenizer["chat_template"] = name
    elif name.startswith("tokenizer_default"):
        recipe.tokenizer.pop("chat_template", None)
        return ("check", f"if it has none, set it to {name[27:]}") if name[17:] else None
    elif name != "jinja":
        return "not supported", f"{name}: the model's own template is used; tokenizer.chat_template takes a jinja file"
    return None


def set_special(value: Any, recipe: Recipe) -> None:
    """Tokens to add, as a list or by their kinds."""
    tokens = list(value.values()) if isinstance(value, dict) else value
    recipe.tokenizer.setdefault("special_tokens", []).extend(texts(tokens))


def set_eos(value: Any, recipe: Recipe) -> None:
    """Another EOS token, which may be new."""
    recipe.tokenizer["eos_token"] = text(value)
    set_special([value], recipe)


def in_tokenizer(name: str) -> Do:
    """A rule for a setting of the tokenizer."""

    def set_one(value: Any, recipe: Recipe) -> None:
        recipe.tokenizer[name] = value

    return Do(set_one)


def set_warmup_steps(value: Any, recipe: Recipe) -> None:
    """Steps of warmup, which win over a share of the run also where they are 0."""
    recipe.optimization.warmup_steps, recipe.optimization.warmup_share = at_least(0)(value), None


def set_evaluations(value: Any, recipe: Recipe) -> None:
    """Evaluations of an epoch; 0 for none."""
    times = at_least(0, integer)(value)
    recipe.saving.evaluate = times > 0
    recipe.saving.evals_per_epoch = times or None


def set_saves(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Checkpoints of an epoch."""
    recipe.saving.save_steps = None
    return None if number(value) == 1 else ("check", "checkpoints are saved once an epoch; see every_n_train_steps")


def in_wandb(name: str) -> Do:
    """A rule for a setting of Weights & Biases."""
    return Do(lambda value, recipe: set_wandb(recipe, **{name: text(value)}))


def set_liger(value: Any, recipe: Recipe) -> None:
    """One of Liger's kernels; here it is all or none."""
    recipe.liger = recipe.liger or flag(value)


def set_plugins(value: Any, recipe: Recipe) -> tuple[Kind, str] | None:
    """Code of axolotl that is loaded."""
    others = [name for name in texts(value) if not name.endswith(("LigerPlugin", "CutCrossEntropyPlugin"))]
    return ("not supported", f"{', '.join(others)}: code of axolotl") if others else None


class Shards(Inside):
    """``fsdp_config``, which alone asks for FSDP too."""

    @override
    def apply(self, key: str, value: Any, recipe: Recipe) -> Iterator[Outcome]:
        yield from super().apply(key, value, recipe)
        recipe.shards = recipe.shards or bool(value)
