"""The transformers config of a model, from its folder or a mapping, checked before a model is built from it."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from lion_lightning.cache import read_object
from lion_lightning.errors import first_line
from lion_lightning.ops.chunked_logprobs import LogitTransform

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
"""Sizes of at least 1; from ``num_hidden_layers: -1`` transformers builds a model without layers."""


def stored_config(source: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """The config in a model's folder.

    Args:
        source: Folder or hub id.
        revision: Hub revision.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: It is missing or malformed, or the folder holds adapters instead of a model.
    """
    refuse_adapters(source, revision)
    try:
        require_sizes(PretrainedConfig.get_config_dict(source, revision=revision)[0], source)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (ModuleNotFoundError, SizeError):
        raise
    except Exception as error:  # a malformed config may raise anything in transformers
        raise ValueError(not_loadable(source, error)) from error
    require_sizes(config.get_text_config().to_dict(), source)
    _refuse_kernels(config, source)
    if not trust_remote_code:
        _forget_code(config)
    return config  # type: ignore[no-any-return]


def without_dropout(config: Any) -> Any:
    """Set every dropout probability of a config to zero, in place: with dropout, policy and equal reference differ."""
    settings: Mapping[str, Any] = config.to_dict()
    for name, value in settings.items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):  # text_config, say
            without_dropout(part)
    return config


def logit_transform(config: Any) -> LogitTransform:
    """Post-processing of the head's output: scale and soft cap."""
    config = config.get_text_config()
    multiply = getattr(config, "logit_scale", None)
    divide = getattr(config, "logits_scaling", None)
    scale = float(multiply if multiply is not None else 1.0) / float(divide if divide is not None else 1.0)
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM
    return LogitTransform(scale, next((cap for name in caps if (cap := getattr(config, name, None))), None))


def config_from(settings: Mapping[str, Any], where: str) -> PretrainedConfig:
    """A config from plain data.

    Args:
        settings: ``model_type``, and settings of that type of model.
        where: Their source, for messages.

    Raises:
        ValueError: The type is unknown, or it does not take these settings.
    """
    kind = settings.get("model_type")
    if kind is None:
        raise ValueError(f"{where}: a mapping needs `model_type`, e.g. {{model_type: llama, hidden_size: 64}}.")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(f"{where}: {_unknown(kind)}")
    require_sizes(settings, where)
    try:
        config = AutoConfig.for_model(**settings)
    except Exception as error:
        raise ValueError(f"{where}: cannot be used for a model of type {kind}: {first_line(error)}") from error
    require_sizes(config.get_text_config().to_dict(), where)
    _refuse_kernels(config, where)
    _forget_code(config)
    return config


def is_classifier(architectures: object) -> bool:
    """True for a sequence classifier, which a reward model is.

    Args:
        architectures: What a config names as its classes: a list, or None.
    """
    names = architectures if isinstance(architectures, list | tuple) else ()
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def require_known(config: PretrainedConfig, what: str, kinds: Container[str]) -> None:
    """Refuse a model that no export could be loaded as: its config is not that of such a model for transformers.

    Args:
        config: Of the model that was built, which may be a part of the config that was given (Mllama, Emu 3).
        what: What it is, in words.
        kinds: Types of models that transformers loads as one.

    Raises:
        ValueError: It is not.
    """
    try:
        kind = type(config_from(config.to_dict(), "policy.config")).model_type
    except ValueError as error:
        raise ValueError(f"{error}; so its export could not be loaded") from error
    if kind not in kinds:
        raise ValueError(f"policy.config: transformers loads no {what} of type {kind}, as its export would be")


def _forget_code(config: PretrainedConfig) -> None:
    """Drop names of custom code: exports would carry them, and users who trust an export would run it."""
    for name in ("auto_map", "custom_pipelines"):
        config.__dict__.pop(name, None)


def _refuse_kernels(config: PretrainedConfig, where: str) -> None:
    """Refuse a config that names kernels on the hub: transformers would download and run that code."""
    for part in (config, config.get_text_config()):
        for name in ("_attn_implementation", "_experts_implementation"):
            asked = getattr(part, name, None)
            if "/" in str(asked):
                raise ValueError(
                    f"{where}: the config asks for code from the hub ({name.removeprefix('_')}: {asked!r}), which a "
                    "file may not; take the entry out"
                )


class SizeError(ValueError):
    """A model size below 1."""


def require_sizes(settings: Mapping[str, Any], where: str) -> None:
    """Refuse sizes below 1: of layers, width, heads and vocabulary.

    Args:
        settings: A config as plain data.
        where: Its source, for the message.

    Raises:
        SizeError: A size is below 1.
    """
    for name in _SIZES:
        value = settings.get(name)
        if isinstance(value, int) and value < 1:
            raise SizeError(f"{where}: {name} is {value}, which no model has; give at least 1")


def refuse_adapters(source: str, revision: str | None) -> None:
    """Refuse a folder of adapters: transformers would load their base model instead.

    Args:
        source: Folder or hub id.
        revision: Hub revision.

    Raises:
        ValueError: It has an ``adapter_config.json``.
    """
    try:
        found = find_adapter_config_file(source, revision=revision)
    except (OSError, ValueError):  # a missing folder or hub id is reported when the config is read
        return
    if found is not None:
        raise ValueError(
            f"{source} holds adapters (adapter_config.json), not a full model; export the full model with "
            "`lion export` (without --adapter), or name the base model"
        )


def require_safetensors(folder: Path) -> None:
    """Require safetensors weights in a folder; anything else is taken for a hub id.

    Raises:
        ValueError: It has none, or its index names a file outside of it.
    """
    for index in folder.glob("*.safetensors.index.json"):
        weight_files(index)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"policy.path: {folder} has no safetensors weights; convert them, or use `policy.config` for random ones."
        )


def weight_files(index: Path) -> dict[str, str]:
    """File name of each tensor.

    Raises:
        ValueError: It is malformed, or names a file outside of its folder.
    """
    named = read_object(index, "an index of weights", "bring the file back").get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ValueError(f"{index}: not an index of weights, it has no `weight_map`; bring the file back")
    for file in named.values():
        if file == ".." or Path(file).name != file:
            raise ValueError(f"{index}: it names {file!r}, which is outside of the folder")
    return named


def not_loadable(source: str, error: Exception) -> str:
    """Why a model cannot be loaded, in one line.

    Args:
        source: Folder or hub id.
        error: What transformers said.
    """
    if not os.path.exists(source) and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        return f"policy: {source} does not exist; give the folder of a Hugging Face model or a hub id."
    if "trust_remote_code" in str(error):
        return f"policy: {source} comes with custom code; read it, then set `trust_remote_code` to run it."
    if unknown := re.search(r"has model type `(.*?)` but Transformers does not", str(error)):
        return f"policy: cannot load {source}: {_unknown(unknown[1])}"
    if os.path.isdir(source) and not Path(source, "config.json").exists():  # a Path complains of a name too long
        return f"policy: {source} holds no model (no config.json); give a folder such as `lion export` writes."
    if "Should have a `model_type` key" in str(error):
        return f"policy: cannot load {source}: its config.json has no `model_type` that transformers knows."
    return f"policy: cannot load {source}: {first_line(error)}"


def _unknown(kind: object) -> str:
    close = get_close_matches(str(kind), list(CONFIG_MAPPING), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; see transformers' list of models"
    return f"transformers knows no model_type {str(kind)[:60]!r}{hint}"
