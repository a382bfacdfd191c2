"""The padding token of reward models: classifiers of transformers look for a text's end by it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lion_lightning.models.tokenizer import closing_tokens


def padding_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token that ends no text: the tokenizer's padding token, or another in its place.

    Classifiers read the score at the last token that is not padding. Where padding is EOS too, as in many tokenizers,
    that would be the token in front of a text's last one.

    Args:
        tokenizer: The policy's tokenizer.

    Raises:
        ValueError: Every special token of the tokenizer may end a text.
    """
    last = {*closing_tokens(tokenizer), tokenizer.eos_token}
    added = sorted(tokenizer.added_tokens_decoder.items())
    special = [str(token) for _, token in added if token.special]
    for token in (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, *special):
        if token is not None and str(token) not in last:
            return str(token)
    raise ValueError(
        f"model.tokenizer: a reward model needs a padding token that ends no text, and all special tokens of "
        f"{tokenizer.name_or_path} ({', '.join(special)}) may end one; add one: special_tokens: ['<|pad|>']"
    )


def set_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer :func:`padding_token`, on the right, where classifiers expect it."""
    tokenizer.pad_token = padding_token(tokenizer)
    tokenizer.padding_side = "right"
