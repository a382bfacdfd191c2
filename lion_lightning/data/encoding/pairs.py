"""From preference pairs to token ids: one prompt, two answers, with an exact mask of what is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lion_lightning.cache import hash_json
from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.pairing import BestWorst, Pairing, Preference, PromptAnswer
from lion_lightning.data.formats.preference import recognize_preferences
from lion_lightning.data.formats.sft import Completion
from lion_lightning.types import SampleSegment

_VERSION = 3  # part of the fingerprint; raise it whenever the same input gives other pieces

Triple = tuple[SampleSegment, SampleSegment, SampleSegment]


class PairEncoder:
    """Reads preference rows and tokenizes them to a prompt and its two answers.

    Prompt and answer are tokenized as one text, by :class:`ChatEncoder` under the mask ``completion``, and cut at the
    first token of the answer; the prompt must come out the same on both sides, and is kept once. Of an answer only
    assistant turns are trained, with the token that ends them and not the white space after it; plain text ends in EOS.

    Args:
        tokenizer: A fast tokenizer, with a chat template where conversations are to be encoded.
        pairing: How ranked answers become pairs; by default the best against the worst.

    Raises:
        ValueError: The tokenizer is not a fast one.

    The encoder can be pickled and used by several threads at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pairing: Pairing | None = None) -> None:
        self.tokenizer = tokenizer
        self.pairing = pairing or BestWorst()
        self._chat = ChatEncoder(tokenizer, mask="completion")

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Preference]:
        """Pairs of a raw row; see :func:`recognize_preferences`."""
        return recognize_preferences(row, columns, self.pairing)

    def encode_samples(self, examples: Sequence[Preference], where: Sequence[str]) -> list[Triple]:
        """Prompt, chosen and rejected of each pair; the parent of both answers is piece 0, the prompt.

        Args:
            examples: The pairs.
            where: Place of each pair (``path:line``), named in errors.

        Raises:
            ValueError: A pair cannot be rendered or masked exactly, has no prompt, or its prompt comes out as other
                tokens on one side than on the other; the message starts with the pair's place.
        """
        sides = [side for example in examples for side in (example.chosen, example.rejected)]
        encoded = self._chat.encode_answers(sides, [place for place in where for _ in range(2)])
        triples = [self._triple(*pair) for pair in zip(encoded[::2], encoded[1::2], where, strict=True)]
        return [_without_blanks(triple, example) for triple, example in zip(triples, examples, strict=True)]

    def fingerprint(self) -> str:
        """Hash of everything that decides what :meth:`read` and :meth:`pieces` return; a key for caches."""
        return hash_json([_VERSION, self._chat.fingerprint(), self.pairing.identity()])

    def _triple(self, better: tuple[SampleSegment, int], worse: tuple[SampleSegment, int], where: str) -> Triple:
        (chosen, first), (rejected, second) = better, worse
        if not (first and second):
            raise ValueError(
                f"{where}: the prompt is empty, so nothing stands before the first token of the answers; give the row "
                "a prompt (with a `transform`), or use a tokenizer that puts BOS before a text"
            )
        prompt = chosen.input_ids[:first]
        if not np.array_equal(prompt, rejected.input_ids[:second]):
            raise ValueError(
                f"{where}: the prompt gives other tokens before chosen than before rejected, since the chat template "
                "renders it by what follows; set a tokenizer.chat_template that does not"
            )
        return SampleSegment(prompt, np.zeros(first, dtype=np.bool_)), _answer(chosen, first), _answer(rejected, second)


def _answer(piece: SampleSegment, start: int) -> SampleSegment:
    return SampleSegment(piece.input_ids[start:], piece.supervised[start:], parent=0)


def _without_blanks(triple: Triple, example: Preference) -> Triple:
    """Nothing is to be learnt from an answer without text, so none of it is a target; such pairs are left out later."""
    prompt, chosen, rejected = triple
    return prompt, _unless_blank(chosen, example.chosen), _unless_blank(rejected, example.rejected)


def _unless_blank(answer: SampleSegment, whole: PromptAnswer) -> SampleSegment:
    return answer if any(_said(whole)) else answer._replace(supervised=np.zeros_like(answer.supervised))


def _said(whole: PromptAnswer) -> list[Any]:
    """Texts of an answer, and the tool calls of turns that say nothing else."""
    if isinstance(whole, Completion):
        return [whole.completion.strip()]
    return [turn.content.strip() or turn.extra for turn in whole.messages[whole.prompt_turns or 0 :]]
