"""Generation settings: the base model's stay when it is trained, and the tokens that end a turn are added as stops."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME
from transformers.utils.hub import cached_file

from lion_lightning.errors import first_line
from lion_lightning.models.tokenizer import end_of_turn_id, end_of_turn_ids

logger = logging.getLogger(__name__)

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def stored_settings(source: str, revision: str | None = None) -> GenerationConfig:
    """Settings in a model's ``generation_config.json``, otherwise the token ids in its ``config.json``.

    Raises:
        ValueError: The file holds something else.
    """
    for name, kept in ((GENERATION_CONFIG_NAME, None), (CONFIG_NAME, _IDS)):
        file = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            return _read(Path(file), kept)
    return plain_settings({})


def settings_of_model(source: object, revision: str | None, config: PretrainedConfig) -> GenerationConfig:
    """Stored settings without ids that the model has no row for; a config given as a mapping comes with none.

    Args:
        source: Folder or hub id; a mapping has no settings.
        revision: Hub revision.
        config: The model's config, with the size of the stored vocabulary.

    Raises:
        ValueError: The file holds something else.
    """
    if not isinstance(source, str):
        return GenerationConfig()  # type: ignore[no-untyped-call]
    return within_vocabulary(stored_settings(source, revision), config.get_text_config().vocab_size, source)


def plain_settings(settings: Mapping[str, Any]) -> GenerationConfig:
    """Settings from plain data, without those that transformers does not know.

    Raises:
        ValueError: A stop is not a token id, or transformers refuses a value.
    """
    stops = settings.get("eos_token_id")
    if not all(isinstance(token, int) for token in (stops if isinstance(stops, list) else [stops or 0])):
        raise ValueError(f"eos_token_id is {stops!r}; it must be a token id, or a list of them")
    known = GenerationConfig().to_dict().keys()  # type: ignore[no-untyped-call]
    try:
        return GenerationConfig(**{name: settings[name] for name in known & settings.keys()})  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"these generation settings are refused: {first_line(error)}") from error


def within_vocabulary(settings: GenerationConfig, size: int, source: str) -> GenerationConfig:
    """Remove ids of special tokens that the model has no row for, with a warning.

    A token that is added later could get such an id, and would then be an unintended stop token.

    Args:
        settings: Changed in place.
        size: Rows of the model's embeddings.
        source: Model, for the warning.
    """
    for name in _IDS:
        given = getattr(settings, name)
        ids = given if isinstance(given, list) else [] if given is None else [given]
        wrong = [token for token in ids if not 0 <= token < size]
        if wrong:
            logger.warning(
                "%s: its generation settings have the %s %s, and its vocabulary the ids 0 to %d: left out",
                source,
                name,
                ", ".join(map(str, wrong)),
                size - 1,
            )
            kept = [token for token in ids if token not in wrong]
            setattr(settings, name, kept if isinstance(given, list) and kept else None)
    return settings


def stop_ids(tokenizer: PreTrainedTokenizerBase, base: GenerationConfig | None = None) -> tuple[int, ...]:
    """Stop tokens: those of the base model, and those that end an assistant's turn.

    The pad token is added only where it is the token that an answer is trained to end with.

    Args:
        tokenizer: The policy's tokenizer, with its chat template.
        base: Settings of the model that training started from.
    """
    own = base.eos_token_id if base is not None else None
    stops = [token for token in (own if isinstance(own, list) else [own]) if token is not None]
    for token in end_of_turn_ids(tokenizer):
        if token != tokenizer.pad_token_id or token == end_of_turn_id(tokenizer):
            stops.append(token)
    return tuple(dict.fromkeys(stops))


def generation_config(tokenizer: PreTrainedTokenizerBase, base: GenerationConfig | None = None) -> GenerationConfig:
    """The base model's generation config, with the stop tokens of :func:`stop_ids`.

    Its pad token stays, or is the tokenizer's. It is a stop token only if it was one of the base model: some programs
    ignore a pad token wherever it stands, also where it ends an answer.

    Args:
        tokenizer: The policy's tokenizer, with its chat template.
        base: Settings of the model that training started from; None for none.
    """
    settings = plain_settings(base.to_dict() if base is not None else {})
    stops = list(stop_ids(tokenizer, base))
    agree_with(settings, tokenizer, ("bos_token_id", "pad_token_id"))
    own = settings.eos_token_id
    if settings.pad_token_id in stops and settings.pad_token_id not in (own if isinstance(own, list) else [own]):
        settings.pad_token_id = None
    settings.eos_token_id = stops or None
    return settings


def agree_with(config: Any, tokenizer: PreTrainedTokenizerBase, names: tuple[str, ...] = _IDS) -> None:
    """Set a config's ids of special tokens to the tokenizer's, where it has them; the config's own pad token stays.

    Args:
        config: Config of a model or of generation; changed in place. A list that holds the tokenizer's id stays.
        tokenizer: The policy's tokenizer.
        names: Names of the ids.
    """
    for name in names:
        own, theirs = getattr(config, name, None), getattr(tokenizer, name)
        stays = theirs in own if isinstance(own, list) else name == "pad_token_id" and own is not None
        if theirs is not None and not stays:
            setattr(config, name, theirs)


def write_settings(settings: GenerationConfig, folder: Path) -> None:
    """Write ``generation_config.json`` without transformers' validation, which some base models' settings fail.

    Args:
        settings: From :func:`generation_config`.
        folder: Where to.
    """
    settings.to_json_file(folder / GENERATION_CONFIG_NAME)


@contextmanager
def without_settings(model: Any) -> Iterator[None]:
    """Generate by explicit settings only: transformers would fill in missing ones from the model's own."""
    kept, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = kept


def _read(file: Path, kept: tuple[str, ...] | None) -> GenerationConfig:
    try:
        content = json.loads(file.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return plain_settings(content if kept is None else {name: content.get(name) for name in kept})
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {error}; put the model's own file there, or remove it") from error
