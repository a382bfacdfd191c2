"""From a checkpoint to a Hugging Face folder that any other tool loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lion_lightning.models.checkpoints import PREFIX, read_checkpoint
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec, end_of_turn_ids


def export_policy(checkpoint: Mapping[str, Any], out: str | Path) -> Path:
    """Write weights, tokenizer, chat template, generation config and a model card. Adapters are merged.

    Args:
        checkpoint: A loaded Lightning checkpoint of an ``AlignmentModule``: its ``state_dict`` and its ``lion`` entry.
        out: Folder to write; made if needed.

    Returns:
        The folder.

    Raises:
        ValueError: If the checkpoint is not one of ours, or the folder cannot be written.
    """
    folder = Path(out)
    if reason := obstacle(folder):
        raise ValueError(f"cannot write to {folder}: {reason}; give another output folder.")
    provenance = checkpoint.get("lion") if isinstance(checkpoint, Mapping) else None
    if provenance is None:
        raise ValueError("this checkpoint was not written by lion_lightning: it has no `lion` entry.")
    tokenizer = TokenizerSpec(**provenance["tokenizer"]).load()
    model = _rebuild(provenance, checkpoint["state_dict"])
    model.generation_config = generation_config(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(provenance), encoding="utf-8")
    return folder


def export_checkpoint(path: str | Path, out: str | Path) -> Path:
    """Export a checkpoint; see :func:`export_policy`.

    Args:
        path: A ``.ckpt`` file, or a folder of that name that ranks wrote together.
        out: Folder to write.

    Raises:
        ValueError: If it is missing, cannot be read as plain tensors and data, or is not one of ours.
    """
    checkpoint = read_checkpoint(Path(path))
    try:
        return export_policy(checkpoint, out)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Generation config that stops where an assistant's turn ends.

    Args:
        tokenizer: The policy's tokenizer, with its chat template.
    """
    stops = list(end_of_turn_ids(tokenizer))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops[0] if stops else None)
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stops or None, pad_token_id=padding
    )


def model_card(provenance: Mapping[str, Any]) -> str:
    """Text of the model card: what was trained, from what, on what.

    Args:
        provenance: The ``lion`` entry of a checkpoint.
    """
    policy = provenance["policy"]
    base = policy.get("path")
    header = ["---", "library_name: transformers", "tags: [lion-lightning]"]
    header += [f"base_model: {base}"] if base else []
    sections = {"Policy": policy, "Tokenizer": provenance["tokenizer"], "Data": provenance["data"]}
    body = [
        f"# {base or 'A model'}, trained with {provenance['module']}",
        "",
        f"Optimizer steps: {provenance['steps']}.",
    ]
    for title, content in sections.items():
        body += [
            "",
            f"## {title}",
            "",
            "```json",
            json.dumps(content, indent=2, default=str, ensure_ascii=False),
            "```",
        ]
    return "\n".join([*header, "---", "", *body, ""])


def _rebuild(provenance: Mapping[str, Any], state: Mapping[str, Tensor]) -> PreTrainedModel:
    spec = PolicySpec(**provenance["policy"])
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(_config(spec, provenance["config"]), trust_remote_code=spec.trust_remote_code)
    if spec.lora is not None:
        model = spec.lora.apply(model, provenance["new_ids"])
    weights = {key.removeprefix(PREFIX): tensor for key, tensor in state.items() if key.startswith(PREFIX)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(f"its weights do not fit the model: missing {missing[:3]}, unexpected {unexpected[:3]}.")
    plain: PreTrainedModel = (model.merge_and_unload() if spec.lora is not None else model).to(
        getattr(torch, spec.dtype)
    )
    return plain


def _config(spec: PolicySpec, settings: Mapping[str, Any]) -> PretrainedConfig:
    """The trained model's config; only a model with code of its own needs its source again."""
    if spec.trust_remote_code:
        return spec.load_config()
    rest = {key: value for key, value in settings.items() if key != "model_type"}
    config: PretrainedConfig = AutoConfig.for_model(settings["model_type"], **rest)
    return config


def obstacle(folder: Path) -> str | None:
    """What stands in the way of writing files to a folder, which is made if needed; None for nothing.

    Args:
        folder: The folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
