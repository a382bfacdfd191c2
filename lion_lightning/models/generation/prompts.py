"""Prompts as another model than the policy is given them: by its own chat template, in its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from lion_lightning.models.chat_template import ChatTemplate
from lion_lightning.types import Prompt


def with_tokenizer(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Render prompts again, for the model of a tokenizer; plain text stays as it is.

    Args:
        prompts: Prompts in the tokens of any model.
        tokenizer: The model's tokenizer.

    Raises:
        ValueError: The tokenizer has no chat template, or one that cannot render a prompt; the message names its row.
    """
    rendered = []
    for prompt in prompts:
        try:
            text = _text(prompt, tokenizer)
        except ValueError as error:
            raise ValueError(f"{prompt.where}: {error}") from error
        # A template writes the BOS itself, and a plain prompt may begin with it.
        bos = tokenizer.bos_token
        adds_bos = not prompt.messages and not (bos and text.startswith(str(bos)))
        ids = tokenizer.encode(text, add_special_tokens=adds_bos)
        rendered.append(replace(prompt, text=text, input_ids=tuple(ids)))
    return rendered


def _text(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    if not prompt.messages:
        return prompt.text
    tools = list(prompt.tools) or None
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{tokenizer.name_or_path} has no chat template, and the prompt has turns; give the sampler a `tokenizer` "
            "with a chat_template"
        )
    template = ChatTemplate(tokenizer, str(tokenizer.get_chat_template(tools=tools)))
    return template.render(prompt.messages, tools, prompt.template_kwargs, prompt=True)
