"""From examples to token ids with an exact mask of what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from lion_lightning.data.formats import Example
from lion_lightning.types import Piece

Mask = Literal["assistant", "completion", "none"]


class ChatEncoder:
    """Tokenises examples and marks the tokens to train.

    Args:
        tokenizer: A fast tokenizer, with a chat template where conversations are to be encoded.
        mask: ``assistant`` trains every assistant turn, ``completion`` the assistant turns after the prompt,
            ``none`` masks nothing: every token is trained.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask: Mask = "assistant") -> None:
        self.tokenizer = tokenizer
        self.mask = mask

    def encode(self, examples: Sequence[Example], where: Sequence[str]) -> list[Piece]:
        """Encode a batch, one piece an example.

        Args:
            examples: Examples of any form, mixed freely.
            where: Place of each example (``path:line``), named in errors.

        Raises:
            ValueError: An example cannot be rendered or masked exactly; the message starts with its place.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Hash of everything that decides what :meth:`encode` returns; a key for caches."""
        raise NotImplementedError
