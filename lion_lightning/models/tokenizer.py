"""The tokenizer section of a config: tokenizer, chat template and special tokens."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template  # by which transformers renders

from lion_lightning.errors import first_line
from lion_lightning.models.chat_template import ChatTemplate, require_free

logger = logging.getLogger(__name__)

CHAT_TEMPLATES = ("chatml", "gemma", "llama3", "zephyr")
"""Names of the chat templates that come with the package."""


@dataclass
class TokenizerSpec:
    """A tokenizer, its chat template and special tokens; :meth:`load` loads it.

    Attributes:
        path: Folder or hub id.
        chat_template: None for the tokenizer's own, a built-in name (one of :data:`CHAT_TEMPLATES`), the path of a
            Jinja file, or Jinja text.
        special_tokens: Special tokens to add if the tokenizer lacks them; the model's embeddings grow with them.
        eos_token: EOS token instead of the tokenizer's own; it must be in the vocabulary or in ``special_tokens``.
        template_kwargs: Variables of the chat template, as ``{"enable_thinking": False}``, for training, sampling and
            whoever uses an export: they are written into the template as its defaults. A row's ``chat_template_kwargs``
            win over them.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the tokenizer.
    """

    path: str
    chat_template: str | None = None
    special_tokens: tuple[str, ...] = ()
    eos_token: str | None = None
    template_kwargs: dict[str, Any] | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def load(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer and apply the template and the tokens.

        Raises:
            ValueError: The tokenizer, template or token does not exist.
        """
        tokenizer = self._pretrained()
        if self.special_tokens:
            tokenizer.add_tokens(list(self.special_tokens), special_tokens=True)
        if self.eos_token is not None:
            if self.eos_token not in tokenizer.get_vocab():
                raise ValueError(
                    f"tokenizer.eos_token: {self.eos_token!r} is not in the vocabulary of {self.path!r}; add it to "
                    "tokenizer.special_tokens as well"
                )
            tokenizer.eos_token = self.eos_token
        if self.chat_template is not None:
            tokenizer.chat_template = read_template(self.chat_template)
            self._warn_of_split_marker(tokenizer)
        if self.template_kwargs:
            self._set_template_kwargs(tokenizer, self.template_kwargs)
        return tokenizer

    def _set_template_kwargs(self, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> None:
        templates: Any = tokenizer.chat_template  # a text, or texts by name
        if not templates:
            raise ValueError(
                f"tokenizer.template_kwargs: {self.path!r} has no chat template to give them to; set "
                f"tokenizer.chat_template: {' | '.join(CHAT_TEMPLATES)} or a jinja file"
            )
        named = templates if isinstance(templates, dict) else {"": templates}
        for name in variables:
            if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in named.values()):
                logger.warning(
                    "Not used: tokenizer.template_kwargs sets %s, which the chat template does not read.", name
                )
        set_ones = {name: with_defaults(text, variables, "tokenizer.template_kwargs") for name, text in named.items()}
        tokenizer.chat_template = set_ones if isinstance(templates, dict) else set_ones[""]

    def _pretrained(self) -> PreTrainedTokenizerBase:
        if self.path.startswith((".", "/", "~")) and not os.path.exists(os.path.expanduser(self.path)):
            raise ValueError(f"tokenizer.path: there is no folder {self.path[:300]!r}; give a folder or a hub id")
        options = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(os.path.expanduser(self.path), **options)
        except Exception as error:  # the tokenizers library raises bare exceptions over a file that it cannot read
            reason = first_line(error)
            raise ValueError(
                f"tokenizer.path: cannot load a tokenizer from {self.path[:300]!r} ({reason}); give a folder that "
                "holds tokenizer files or a hub id"
            ) from error
        _require_plain(tokenizer, self.path)
        if not self.trust_remote_code:  # an export would carry it on, and may be trusted
            tokenizer.init_kwargs.pop("auto_map", None)
        return tokenizer

    def _warn_of_split_marker(self, tokenizer: PreTrainedTokenizerBase) -> None:
        marker = ChatTemplate(tokenizer, str(tokenizer.chat_template)).answer_suffix
        if marker and not _added_ids(tokenizer, marker):
            logger.warning(
                "Chat template %s ends a turn with %r, which is not a token of %s and gets split; add its markers with "
                "tokenizer.special_tokens.",
                self.chat_template,
                marker,
                self.path,
            )


def _require_plain(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Refuse malformed settings that transformers accepts from a file, and that fail later."""
    template: object = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else [template or ""]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"tokenizer.path: the chat_template of {path!r} is not text; fix its tokenizer_config.json")
    longest: object = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        raise ValueError(f"tokenizer.path: model_max_length of {path!r} is {longest!r}; give a number")


def with_defaults(template: str, variables: Mapping[str, Any], setting: str) -> str:
    """A template in which variables have values unless they are given others.

    Args:
        template: Its text.
        variables: The values: text, numbers, booleans, None, or lists and objects of these.
        setting: Name of the setting, for errors.

    Raises:
        ValueError: A name cannot be a variable, or a value cannot be written in jinja.
    """
    require_free(variables, setting)
    if wrong := [name for name in variables if not str(name).isidentifier()]:
        raise ValueError(f"{setting} sets {wrong[0]!r}, which cannot be the name of a variable; give another one")
    # Jinja drops the line break behind each statement, so that the template itself stays as it is.
    defaults = [
        f"{{% set {name} = {name} | default({_literal(value, setting)}) %}}\n" for name, value in variables.items()
    ]
    return "".join(defaults) + template


def _literal(value: Any, setting: str) -> str:
    """A value as jinja writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return ascii(value)
    if isinstance(value, Mapping):
        parts = (f"{_literal(key, setting)}: {_literal(inner, setting)}" for key, inner in value.items())
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(inner, setting) for inner in value)}]"
    raise ValueError(
        f"{setting} holds a {type(value).__name__}; give text, numbers, true, false, null or lists of them"
    )


def read_template(given: Any, setting: str = "tokenizer.chat_template") -> str:
    """Text of a chat template.

    Args:
        given: A built-in name, the path of a Jinja file, or Jinja text.
        setting: Name of the setting, for messages.

    Raises:
        ValueError: It is something else, or the Jinja does not parse.
    """
    if not isinstance(given, str):
        raise ValueError(
            f"{setting} is {type(given).__name__}, not text; give a built-in template ({', '.join(CHAT_TEMPLATES)}), a "
            "jinja file, or jinja itself"
        )
    text = given if _is_jinja(given) else _stored_template(given, setting)
    try:
        _compile_jinja_template(text)
    except TemplateError as error:
        raise ValueError(f"{setting}: {given[:60]!r} does not parse as jinja: {error}") from error
    return text


def _stored_template(name_or_path: str, setting: str) -> str:
    if name_or_path in CHAT_TEMPLATES:
        return (resources.files("lion_lightning.models") / "templates" / f"{name_or_path}.jinja").read_text("utf-8")
    path = Path(name_or_path).expanduser()
    if not os.path.isfile(path):  # unlike Path.is_file, false for a name that is too long
        raise ValueError(
            f"{setting}: {name_or_path[:60]!r} is neither a built-in template ({', '.join(CHAT_TEMPLATES)}) "
            "nor a jinja file, nor jinja itself"
        )
    text = path.read_text("utf-8")
    if not _is_jinja(text):
        raise ValueError(f"{setting}: {name_or_path} holds no jinja, so all conversations would be the same text")
    return text


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens that end an assistant turn, for the generation config; empty if there are none.

    The tokenizer's EOS; the token that the chat template puts after an assistant's answer, another one for e.g. Llama-3
    (``<|eot_id|>``) and Gemma (``<end_of_turn>``); and its last one after a tool call, which may be a third (GPT-OSS's
    ``<|call|>``). Where the template puts nothing there but the header of the next turn, that header's token (GLM's
    ``<|user|>``).
    """
    template = _template(tokenizer)
    ids = [tokenizer.eos_token_id]
    if template is not None and ends_turns(tokenizer):
        call_suffix = template.call_suffix
        last = tokenizer.encode(call_suffix, add_special_tokens=False)[-1:]
        ids += _added_ids(tokenizer, template.answer_suffix)[:1]
        ids += [token for token in last if (end := _content(tokenizer, token)) and call_suffix.endswith(end)]
    elif template is not None:
        next_turn = template.inner_call_suffix.removeprefix(template.call_suffix)
        ids += [*_first_of_header(tokenizer, template.inner_answer_suffix), *_first_of_header(tokenizer, next_turn)]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template puts after an assistant's answer, otherwise EOS, if there is one."""
    return next(iter(_ends_of_answer(tokenizer)), tokenizer.eos_token_id)


def ends_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if the chat template puts a stop token right after an assistant's last answer."""
    template, eos = _template(tokenizer), tokenizer.eos_token
    eos_follows = template is not None and eos is not None and template.answer_suffix.startswith(str(eos))
    return eos_follows or bool(_ends_of_answer(tokenizer))


def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """All tokens that can close an assistant turn.

    Stop tokens, those that the template puts after them, and the one that it puts after an answer that is not the last
    (GPT-OSS's ``<|end|>``).
    """
    template = _template(tokenizer)
    inner = "" if template is None else template.inner_answer_suffix
    ids = [*end_of_turn_ids(tokenizer), *_ends_of_answer(tokenizer), *_first_of_header(tokenizer, inner)]
    return tuple(map(str, tokenizer.convert_ids_to_tokens(list(dict.fromkeys(ids)))))


def _ends_of_answer(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The added tokens right after an answer that is the last turn."""
    template = _template(tokenizer)
    return [] if template is None else _added_ids(tokenizer, template.answer_suffix)


def _template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    if tokenizer.chat_template is None:
        return None
    return ChatTemplate(tokenizer, str(tokenizer.get_chat_template()))


def _added_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The added tokens at the start of a text; an unknown marker that becomes ``<unk>`` does not count."""
    ids = []
    while text:
        first = tokenizer.encode(text, add_special_tokens=False)[0]
        content = _content(tokenizer, first)
        if not (content and text.startswith(content)):
            break
        ids.append(first)
        text = text.removeprefix(content).lstrip()
    return ids


def _first_of_header(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The added token at the start of what stands between two turns; BOS there begins the next one."""
    return [token for token in _added_ids(tokenizer, text)[:1] if token != tokenizer.bos_token_id]


def _content(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Text of an added token; empty for any other token."""
    added = tokenizer.added_tokens_decoder.get(token)
    return added.content if added is not None else ""
