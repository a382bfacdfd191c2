"""Tokenizer of the demo task, and config of a model small enough to learn it in a minute."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lion_lightning.tools.demo.task import FAMILIES

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, PreTrainedTokenizerFast


TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Few tokens around a turn, since the turns of this task are short."""


def make_tokenizer(more: str = "") -> PreTrainedTokenizerFast:
    """Make a tokenizer with a token per word of the instructions; everything else is split into bytes.

    Args:
        more: A text whose words have a token each, too.
    """
    from transformers import PreTrainedTokenizerFast

    words = set(re.findall(r"\w+", more))
    for family in FAMILIES.values():
        words.update(re.findall(r"\w+", " ".join(family.wordings)))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_word_tokenizer(sorted(words)),
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def _word_tokenizer(known: list[str]) -> Tokenizer:
    """A byte-level tokenizer with a token for each of these words, with and without a space before it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    # A leading space belongs to the word, and byte-level vocabularies write it as this letter.
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + known + [f"\u0120{name}" for name in known]
    model = models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf" ?\b(?:{'|'.join(known)})\b|[\s\S]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Make the config of the tiny Llama: 0.8M parameters, 4 layers, hidden size 128 in 4 heads of 32, a tied head."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.08,  # about 1/sqrt(hidden size); with the usual 0.02 it learns to copy far too late
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 30.0},  # texts are short: places differ more, and sooner
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
