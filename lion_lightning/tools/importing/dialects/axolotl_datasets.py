"""The data sets of axolotl's configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import override

from lion_lightning.tools.importing.dialects.datasets import Dataset, unknown_roles
from lion_lightning.tools.importing.hf_trainer.table import DECIDE, IN_PROCESS
from lion_lightning.tools.importing.recipe import Objective, Recipe
from lion_lightning.tools.importing.rules import (
    Do,
    Kind,
    NoEffect,
    NotSupported,
    Outcome,
    Rule,
    To,
    apply_all,
    positive,
    text,
    texts,
)

TEMPLATES = ("chatml", "gemma", "llama3", "zephyr")
"""Chat templates that come with the package."""

_TURNS = "texts are a user's and an assistant's turn of the chat template, without axolotl's own text around them"
SFT_TYPES: dict[str, dict[str, str]] = {
    "chat_template": {},
    "sharegpt": {},
    "alpaca": {},
    "alpaca_chat": {},
    "alpaca_w_system": {},
    "alpaca_instruct": {},
    "gpteacher": {},
    "context_qa": {"input": "context"},
    "completion": {},
}
"""Columns of kinds of rows, by the first part of ``type``; rows whose columns are known need none."""

PAIR_TYPES: dict[str, dict[str, str]] = {
    **{known: {} for known in ("default", "argilla_chat", "argilla", "intel", "prompt_pairs", "ultra", "nectar")},
    "icr": {"question": "input"},
}
"""The same of pairs, by the last part."""

ANSWER_TYPES: dict[str, dict[str, str]] = {
    "argilla": {"output": "completion"},
    "argilla_chat": {"messages": "completion"},
    "intel": {"answer": "completion"},
    "prompt_pairs": {},
    "ultra": {},
}
"""The same of answers with a label."""

_FIELDS = {
    "field_system": "system",
    "field_prompt": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_completion": "completion",
    "field_label": "label",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
}
"""Known columns, by the keys of a ``type`` that is a mapping."""

_ROLES = {"role": {"role", "from"}, "content": {"content", "value", "text"}}
_UNKNOWN_TYPE = "say with `columns` of the source which columns matter, or rewrite the rows with a `transform`"
_FLAGS = {"train", "training", "trainable", "weight", "loss", "loss_mask", "masked"}


class Datasets(Rule):
    """A list of data sets, to train on or to validate on."""

    def __init__(self, objective: Objective, validation: bool = False) -> None:
        self.objective, self.validation = objective, validation

    @override
    def apply(self, key: str, value: Any, recipe: Recipe) -> Iterator[Outcome]:
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            raise ValueError("not a list of mappings, each with a path")
        for entry in value:
            dataset = Dataset(self.objective, format=None if self.objective == "sft" else "chat")
            if self.objective == "reward":
                dataset.columns["question"] = "input"
            yield from apply_all(RULES, entry, dataset, f"{key}.")
            if not dataset.path:
                raise ValueError("an entry without a path")
            self._add(dataset, recipe)

    def _add(self, dataset: Dataset, recipe: Recipe) -> None:
        if self.validation:
            recipe.validation += dataset.sources()
            recipe.saving.evaluate = True
            return
        recipe.sources += dataset.sources()
        if dataset.template:
            recipe.tokenizer["chat_template"] = dataset.template
        if dataset.mask == "none":
            recipe.mask = "none"


def _set_type(value: Any, dataset: Dataset) -> tuple[Kind, str] | None:
    """The kind of the rows: a name in parts, or the columns and how they are put together."""
    if isinstance(value, Mapping):
        return _set_columns(value, dataset)
    first, *rest = text(value).split(".")
    if first in TEMPLATES and dataset.objective != "sft":  # chatml.intel
        dataset.template = first
    if dataset.objective == "sft":
        return _set_sft_type(first, dataset)
    if dataset.objective == "reward":
        return None
    known = PAIR_TYPES if dataset.objective == "dpo" else ANSWER_TYPES
    last = rest[0] if rest else "default"
    dataset.columns |= known.get(last, {})
    return None if last in known else ("not supported", f"{value}: {_UNKNOWN_TYPE}")


def _set_sft_type(first: str, dataset: Dataset) -> tuple[Kind, str] | None:
    if first not in SFT_TYPES:
        return "not supported", f"{first}: {_UNKNOWN_TYPE}"
    dataset.columns |= SFT_TYPES[first]
    if first == "completion":
        dataset.mask = "none"
        return None
    if first in ("chat_template", "sharegpt"):
        return None
    dataset.template = "zephyr"  # which needs no new token
    return "check", f"{_TURNS}; without a chat_template in the config it is zephyr, which needs no new tokens"


def _set_columns(value: Mapping[Any, Any], dataset: Dataset) -> tuple[Kind, str] | None:
    for key, name in _FIELDS.items():
        if value.get(key) is not None:
            dataset.columns[name] = text(value[key])
    if "prompt" in dataset.columns and dataset.format == "chat":
        dataset.columns["question"] = dataset.columns.pop("prompt")
    if any("format" in str(key) for key in value):
        return "check", _TURNS
    return None


def _set_mapping(value: Any, dataset: Dataset) -> tuple[Kind, str] | None:
    """Keys of a message."""
    if not isinstance(value, Mapping):
        raise ValueError("not a mapping of keys of messages")
    unknown = [
        str(own) for key, own in value.items() if own is not None and str(own) not in _ROLES.get(str(key), {str(key)})
    ]
    if not unknown:
        return None
    return "not supported", f"{', '.join(unknown)}: call them role and content, with a `transform` of the source"


def _set_roles(value: Any, dataset: Dataset) -> tuple[Kind, str]:
    """Names of roles."""
    if not isinstance(value, Mapping):
        raise ValueError("not a mapping of roles to their names")
    if unknown := unknown_roles(name for names in value.values() for name in texts(names)):
        return (
            "not supported",
            f"{', '.join(unknown)}: call these roles user and assistant, with a `transform`",
        )
    return "no effect", "these names of roles are read by themselves"


def _set_key(key: str) -> Do:
    return Do(lambda value, dataset: _set_mapping({key: value}, dataset))


def _set_roles_to_train(value: Any, dataset: Dataset) -> tuple[Kind, str] | None:
    roles = set(texts(value)) if value else set()
    if roles <= {"assistant", "gpt"}:
        return None
    return "not supported", f"{', '.join(sorted(roles))}: assistant turns train (mask: none trains every token)"


def _set_flag(value: Any, dataset: Dataset) -> tuple[Kind, str] | None:
    if text(value) in _FLAGS:
        return None
    return "not supported", f"{value}: call the key `train`, with a `transform` of the source"


def _set_fraction(value: Any, dataset: Dataset) -> tuple[Kind, str]:
    dataset.fraction = 1 / positive(value)
    return "check", "a share of the rows, drawn by `seed`, in place of one of so many parts"


def _set_column(name: str) -> Do:
    def set_one(value: Any, dataset: Dataset) -> None:
        dataset.columns[name] = text(value)

    return Do(set_one)


def _set_messages(value: Any, dataset: Dataset) -> None:
    if text(value) not in ("messages", "conversations"):
        dataset.columns["messages"] = value


def _set_path(value: Any, dataset: Dataset) -> tuple[Kind, str] | None:
    dataset.path = text(value)
    if "://" in dataset.path:
        return "not supported", "download the files, and give sources.path their folder"
    return None


RULES: Mapping[str, Rule] = {
    "path": Do(_set_path),
    "type": Do(_set_type),
    "name": To("subset", text),
    "split": To("split", text),
    "revision": To("revision", text),
    "data_files": To("files", texts),
    "shards": Do(_set_fraction),
    "field": _set_column("text"),
    "field_messages": Do(_set_messages),
    "field_tools": _set_column("tools"),
    "field_system": _set_column("system"),
    "field_chosen": _set_column("chosen"),
    "field_rejected": _set_column("rejected"),
    "field_human": NotSupported(_UNKNOWN_TYPE),
    "field_model": NotSupported(_UNKNOWN_TYPE),
    "message_property_mappings": Do(_set_mapping),
    "message_field_role": _set_key("role"),
    "message_field_content": _set_key("content"),
    "message_field_training": Do(_set_flag),
    "message_field_training_detail": NotSupported("a message is trained as a whole, or not at all"),
    "roles": Do(_set_roles),
    "roles_to_train": Do(_set_roles_to_train),
    "train_on_eos": NotSupported("the token that ends a trained turn is trained", ("turn",)),
    "train_on_eot": NotSupported("the token that ends a trained turn is trained", ("turn",)),
    "drop_system_message": NotSupported("leave it out with a `transform` of the source"),
    "split_thinking": NotSupported("data.train_reasoning: false makes reasoning context"),
    "field_thinking": NoEffect("reasoning is found in the messages under its usual names"),
    "template_thinking_key": NoEffect("reasoning is given to the template under the name that it reads"),
    "chat_template": NotSupported("one template for all data: model.tokenizer.chat_template"),
    "conversation": NoEffect("the chat template renders conversations"),
    "ds_type": NoEffect("files are told by their names and what they begin with"),
    "preprocess_shards": NoEffect(IN_PROCESS),
    "trust_remote_code": NotSupported(DECIDE),
}
"""Rule of each key of a data set."""
