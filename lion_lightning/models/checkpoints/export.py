"""Export of a checkpoint to a Hugging Face folder."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Container, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lion_lightning.models.checkpoints.export_files import new_export
from lion_lightning.models.checkpoints.files import read_checkpoint
from lion_lightning.models.checkpoints.lion_entry import LionEntry, other_weights, policy_weights, read_entry
from lion_lightning.models.embeddings import vocabulary_rows
from lion_lightning.models.generation.settings import (
    agree_with,
    generation_config,
    plain_settings,
    within_vocabulary,
    write_settings,
)
from lion_lightning.models.lora import write_adapter
from lion_lightning.models.model_configs import config_from
from lion_lightning.models.rewards.padding import set_padding
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.models.weights.base_model import require_base_model, trained_names
from lion_lightning.models.weights.checks import require_finite, require_matching
from lion_lightning.printing import redacted

log = logging.getLogger(__name__)


REWARD_MODEL = """This is a reward model: it gives a conversation that ends in an answer one number, the higher the
better. `AutoModelForSequenceClassification` loads it, and so does `RewardModelJudge(model=FOLDER)` of lion_lightning.
Render conversations with `apply_chat_template`; an answer to a plain text is to end with the EOS token."""
"""Text of a reward model's card."""


def export_policy(
    checkpoint: Mapping[str, Any], out: str | Path, adapter: bool = False, trust_remote_code: bool = False
) -> Path:
    """Write weights, tokenizer, chat template, generation config and a model card. Adapters are merged.

    The merge is done in fp32 and rounded once, to the policy's dtype. A base model that the checkpoint does not hold is
    loaded from ``policy.path``, unquantized even if it was trained in 4 bits. The base model's generation settings
    stay, and the tokens that end a turn are added to its stop tokens. An earlier export in the folder is replaced.
    ``lion_export.json``, the list of the files with their checksums, is written last: without it an export is
    incomplete.

    Args:
        checkpoint: A loaded Lightning checkpoint of an ``AlignmentModule``: its ``state_dict`` and its ``lion`` entry.
        out: Folder to write; made if needed.
        adapter: Write the adapters alone, in PEFT's format, instead of the merged model.
        trust_remote_code: Run code that comes with the model or its tokenizer, whatever the checkpoint says.

    Returns:
        The folder.

    Raises:
        ValueError: The checkpoint was not written by this package, the folder cannot be written, the base model has
            changed or is gone, there are no adapters to write alone, or a weight is not finite.
    """
    folder = Path(out)
    entry = read_entry(checkpoint, trust_remote_code)
    refuse_own_base(entry, folder)
    if reason := obstacle(folder):
        raise ValueError(f"cannot write to {folder}: {reason}; give another output folder.")
    weights = policy_weights(checkpoint)
    if left_out := other_weights(checkpoint["state_dict"]):
        log.warning("The export holds the policy alone; not in it: %s.", ", ".join(left_out[:3]))
    tokenizer = entry.tokenizer.load()
    rewards = isinstance(entry.policy, RewardModelSpec)
    if rewards:
        set_padding(tokenizer)
    with new_export(folder) as temporary:
        write = _write_adapter if adapter else _write_model
        write(entry, weights, temporary, tokenizer)
        if not rewards:  # which generate nothing
            size = _config(entry).get_text_config().vocab_size
            # Settings outside of the vocabulary are dropped: checkpoints of earlier versions have them.
            own = within_vocabulary(plain_settings(entry.generation), size, "the checkpoint")
            write_settings(generation_config(tokenizer, own), temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(model_card(entry), encoding="utf-8")
    return folder


def export_checkpoint(
    path: str | Path,
    out: str | Path,
    adapter: bool = False,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Export a checkpoint; see :func:`export_policy`.

    Args:
        path: A ``.ckpt`` file or folder.
        out: As for :func:`export_policy`.
        adapter: As for :func:`export_policy`.
        base: New path of the adapters' base model; None if it has not moved.
        trust_remote_code: As for :func:`export_policy`.

    Raises:
        ValueError: It cannot be read as plain tensors and data, or :func:`export_policy` refuses it.
    """
    checkpoint = read_checkpoint(Path(path))
    try:
        if base is not None:
            entry = checkpoint.get("lion")
            policy = entry.get("policy") if isinstance(entry, Mapping) else None
            if isinstance(policy, Mapping):  # anything else is refused when the entry is read
                checkpoint["lion"] = {**entry, "policy": {**policy, "path": str(base)}}  # type: ignore[dict-item]
        return export_policy(checkpoint, out, adapter, trust_remote_code)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def model_card(entry: LionEntry) -> str:
    """Text of the model card."""
    base = entry.policy.path
    rewards = isinstance(entry.policy, RewardModelSpec)
    header = ["---", "library_name: transformers", f"tags: [lion-lightning{', reward-model' * rewards}]"]
    header += ["pipeline_tag: text-classification"] if rewards else []
    header += [f"base_model: {json.dumps(base, ensure_ascii=False)}"] if base else []
    sections = {"Policy": asdict(entry.policy), "Tokenizer": asdict(entry.tokenizer), "Data": entry.data}
    whose, module = _in_line(base or "A model"), _in_line(entry.module)
    objective = f"Objective: {_in_line(entry.objective)}. " if entry.objective else ""
    body = [f"# {whose}, trained with {module}", "", f"{objective}Optimizer steps: {entry.steps}."]
    body += ["", REWARD_MODEL] if rewards else []
    for title, content in sections.items():
        shown = json.dumps(content, indent=2, default=str, ensure_ascii=False)
        body += ["", f"## {title}", "", "```json", shown, "```"]
    return redacted("\n".join([*header, "---", "", *body, ""]))


def _in_line(name: str) -> str:
    """A name from a checkpoint, which may come from anybody: on one line, with its Markdown escaped."""
    return re.sub(r"[\[\]<>!`\\]", r"\\\g<0>", " ".join(name.split()))


def refuse_own_base(entry: LionEntry, folder: Path) -> None:
    """Refuse to write over the model that training started from: resuming and exporting may need it.

    Raises:
        ValueError: It is that model's folder.
    """
    base = entry.policy.path
    if base is not None and Path(base).is_dir() and Path(base).resolve() == folder.resolve():
        raise ValueError(f"{folder} is the model that training started from; give another output folder.")


def _write_model(
    entry: LionEntry, weights: Mapping[str, Tensor], folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    spec = entry.policy
    model = _rebuild(entry, weights)
    # Merged in fp32, then rounded once.
    plain = (model.merge_and_unload() if spec.lora is not None else model).to(getattr(torch, spec.dtype))
    require_finite("the policy", plain.state_dict())
    for config in {id(one): one for one in (plain.config, plain.config.get_text_config())}.values():
        agree_with(config, tokenizer)
    plain.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # its own file is written apart
    plain.save_pretrained(folder)


def _write_adapter(entry: LionEntry, weights: Mapping[str, Tensor], folder: Path, _: PreTrainedTokenizerBase) -> None:
    spec = entry.policy
    if spec.lora is None or spec.path is None:
        raise ValueError("it has no adapters on a model with a path; export the full model instead.")
    model = _rebuild(entry, weights)
    grown = vocabulary_rows(model.get_base_model())
    rows = spec.load_config().get_text_config().vocab_size
    if grown > rows:  # peft loads adapters onto the stored base model, which has fewer rows
        raise ValueError(
            f"its adapters cannot stand alone: the base model has {rows} rows of embeddings and needs {grown}, for new "
            "tokens; export the full model instead."
        )
    require_finite("the policy", model.state_dict())
    write_adapter(model, folder)


def _rebuild(entry: LionEntry, weights: Mapping[str, Tensor]) -> Any:
    """The trained model in fp32, adapters on."""
    load_base = entry.base is not None or entry.policy.quantization is not None
    if not load_base and not entry.policy.trust_remote_code:
        # Compare shapes on the meta device, before the model of a wrong config takes memory and time.
        layers = _config(entry).get_text_config().num_hidden_layers
        if layers > len(weights):
            raise ValueError(f"its weights do not fit the model: {len(weights)} tensors for {layers} layers")
        with torch.device("meta"):
            empty = _random(entry)
        empty = _with_adapters(entry, empty)
        _require_all(empty, weights, empty.state_dict().keys())
    model = _with_adapters(entry, _load_base(entry) if load_base else _random(entry))
    # With a loaded base model, only what was trained is taken from the checkpoint.
    wanted = trained_names(model) if load_base else model.state_dict().keys() | weights.keys()
    given = {name: tensor for name, tensor in weights.items() if name in wanted}
    _require_all(model, given, wanted)
    model.load_state_dict(given, strict=False)
    return model


def _require_all(model: Any, given: Mapping[str, Tensor], wanted: Container[str]) -> None:
    state = model.state_dict()
    missing = [name for name in state if name not in given and name in wanted]
    shapes = [(n, given[n].shape, state[n].shape) for n in given if n in state and given[n].shape != state[n].shape]
    require_matching("its", missing, given.keys() - state.keys(), shapes)


def _with_adapters(entry: LionEntry, model: PreTrainedModel) -> Any:
    return entry.policy.with_adapters(model, entry.new_ids)


def _random(entry: LionEntry) -> PreTrainedModel:
    """The model with random weights, for a checkpoint that holds all of them."""
    made: PreTrainedModel = entry.policy.auto_class.from_config(
        _config(entry), trust_remote_code=entry.policy.trust_remote_code
    )
    return made


def _load_base(entry: LionEntry) -> PreTrainedModel:
    """The adapters' base model as it was built for training, but unquantized."""
    spec = entry.policy
    if entry.base is not None:
        require_base_model(spec, entry.base)
    if spec.quantization is not None:
        log.warning(
            "The adapters were trained on %s in 4 bits; here they are merged into its unquantized weights (%s).",
            spec.path,
            spec.dtype,
        )
    vocabulary = _config(entry).get_text_config().vocab_size
    model: Any = replace(spec, lora=None, quantization=None, liger=False).build_base(vocabulary, entry.new_ids)
    return cast(PreTrainedModel, model.float())


def _config(entry: LionEntry) -> PretrainedConfig:
    """The trained model's config; only a model with custom code needs its source for that."""
    if entry.policy.trust_remote_code:
        return entry.policy.load_config()
    try:
        return config_from(entry.config, "its `lion` entry: config")
    except ValueError as error:
        hint = "; if the model comes with custom code, read it, then give --trust-remote-code"
        raise ValueError(f"{error}{hint if entry.asked_for_code else ''}") from error


def obstacle(folder: Path) -> str | None:
    """Why files cannot be written to a folder, which is made if needed; None if they can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
