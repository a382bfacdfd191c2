"""From a checkpoint to a Hugging Face folder that any other tool loads."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, cast

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

from lion_lightning.models.bases import require_base, trained_names
from lion_lightning.models.checkpoints import PREFIX, read_checkpoint
from lion_lightning.models.embeddings import vocabulary_rows
from lion_lightning.models.lora import write_adapter
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec, end_of_turn_ids

log = logging.getLogger(__name__)


def export_policy(checkpoint: Mapping[str, Any], out: str | Path, adapter: bool = False) -> Path:
    """Write weights, tokenizer, chat template, generation config and a model card. Adapters are merged.

    The merge is done in fp32 and rounded once, to the policy's dtype. Where the checkpoint does not hold the base model
    of the adapters, that is loaded again from ``policy.path``, and whole where it was trained on in 4 bits.

    Args:
        checkpoint: A loaded Lightning checkpoint of an ``AlignmentModule``: its ``state_dict`` and its ``lion`` entry.
        out: Folder to write; made if needed.
        adapter: Write the adapters as they are, in PEFT's format, in place of the whole model.

    Returns:
        The folder.

    Raises:
        ValueError: If the checkpoint is not one of ours, the folder cannot be written, the base model has changed or is
            gone, or there are no adapters that could be written apart from it.
    """
    folder = Path(out)
    if reason := obstacle(folder):
        raise ValueError(f"cannot write to {folder}: {reason}; give another output folder.")
    provenance = checkpoint.get("lion") if isinstance(checkpoint, Mapping) else None
    if provenance is None:
        raise ValueError("this checkpoint was not written by lion_lightning: it has no `lion` entry.")
    tokenizer = TokenizerSpec(**provenance["tokenizer"]).load()
    write = _write_adapter if adapter else _write_model
    write(provenance, checkpoint["state_dict"], folder, generation_config(tokenizer))
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(provenance), encoding="utf-8")
    return folder


def export_checkpoint(path: str | Path, out: str | Path, adapter: bool = False, base: str | Path | None = None) -> Path:
    """Export a checkpoint; see :func:`export_policy`.

    Args:
        path: A ``.ckpt`` file, or a folder of that name that ranks wrote together.
        out: Folder to write.
        adapter: See there.
        base: Where the base model of the adapters is now; None for where it was.

    Raises:
        ValueError: If it is missing, cannot be read as plain tensors and data, or is not one of ours.
    """
    checkpoint = read_checkpoint(Path(path))
    if base is not None and isinstance(checkpoint, dict) and checkpoint.get("lion"):
        checkpoint["lion"]["policy"]["path"] = str(base)
    try:
        return export_policy(checkpoint, out, adapter)
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


def _write_model(
    provenance: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path, stops: GenerationConfig
) -> None:
    spec = PolicySpec(**provenance["policy"])
    model = _rebuild(spec, provenance, state)
    plain = (model.merge_and_unload() if spec.lora is not None else model).to(getattr(torch, spec.dtype))
    plain.generation_config = stops
    plain.save_pretrained(folder)


def _write_adapter(
    provenance: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path, _: GenerationConfig
) -> None:
    spec = PolicySpec(**provenance["policy"])
    if spec.lora is None or spec.path is None:
        raise ValueError("it has no adapters on a model of its own folder or hub id; export the whole model instead.")
    model = _rebuild(spec, provenance, state)
    grown = vocabulary_rows(model.get_base_model())
    rows = spec.load_config().get_text_config().vocab_size
    if grown > rows:
        raise ValueError(
            f"its adapters cannot stand alone: the base model has {rows} rows of embeddings and needs {grown}, for new "
            "tokens; export the whole model instead."
        )
    write_adapter(model, folder)


def _rebuild(spec: PolicySpec, provenance: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    """The trained model in fp32, adapters on."""
    again = "base" in provenance or spec.quantization is not None
    model: Any = _load_base(spec, provenance) if again else _hollow(spec, provenance)
    if spec.lora is not None:
        model = spec.lora.apply(model, provenance["new_ids"])
    wanted = trained_names(model) if again else None
    names = {key.removeprefix(PREFIX): key for key in state if key.startswith(PREFIX)}
    weights = {name: state[key] for name, key in names.items() if wanted is None or name in wanted}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if wanted is None or name in wanted]
    if missing or unexpected:
        raise ValueError(f"its weights do not fit the model: missing {missing[:3]}, unexpected {unexpected[:3]}.")
    return model


def _hollow(spec: PolicySpec, provenance: Mapping[str, Any]) -> Any:
    """The model, all of whose weights are in the checkpoint."""
    auto: Any = AutoModelForCausalLM
    return auto.from_config(_config(spec, provenance["config"]), trust_remote_code=spec.trust_remote_code)


def _load_base(spec: PolicySpec, provenance: Mapping[str, Any]) -> PreTrainedModel:
    """The model that the adapters were put on, as it was built for training, but for its quantisation."""
    if "base" in provenance:
        require_base(spec, provenance["base"])
    if spec.quantization is not None:
        log.warning(
            "The adapters were trained on %s in 4 bits; they go onto its whole weights (%s) here.",
            spec.path,
            spec.dtype,
        )
    vocabulary = _config(spec, provenance["config"]).get_text_config().vocab_size
    plain = replace(spec, lora=None, quantization=None, liger=False)
    model: Any = plain.build_base(vocabulary, provenance["new_ids"])
    return cast(PreTrainedModel, model.float())


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
