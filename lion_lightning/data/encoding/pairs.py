"""From preference pairs to token ids: one prompt, two answers, with an exact mask of what is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from lion_lightning.cache import hash_json
from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.pairing import BestWorst, Pairing, Preference, PromptAnswer
from lion_lightning.data.formats.preference import recognize_preferences
from lion_lightning.data.formats.sft import Completion
from lion_lightning.types import SampleSegment

_VERSION = 3  # part of the fingerprint; raise it whenever the same input gives other tokens

Triple = tuple[SampleSegment, SampleSegment, SampleSegment]


class PairEncoder:
    """Reads preference rows and tokenizes them to a prompt and its two answers.

    Prompt and answer are tokenized as one text, by :class:`ChatEncoder` under the mask ``completion``, and cut at the
    first token of the answer; the prompt must have the same tokens before both, and is kept once. Of an answer only
    assistant turns are trained, with the token that ends them and not the white space after it; plain text ends in EOS.

    Args:
        tokenizer: A fast tokenizer, with a chat template where conversations are to be encoded.
        pairing: How ranked answers become pairs; by default the best against the worst.
        train_reasoning: Whether the reasoning of an answer is trained, too; see :class:`ChatEncoder`.

    Raises:
        ValueError: The tokenizer is not a fast one.

    The encoder can be pickled and used by several threads at once.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, pairing: Pairing | None = None, train_reasoning: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.pairing = pairing or BestWorst()
        self._chat = ChatEncoder(tokenizer, "completion", train_reasoning)

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Preference]:
        """Pairs of a raw row; see :func:`recognize_preferences`."""
        return recognize_preferences(row, columns, self.pairing)

    def encode_samples(self, examples: Sequence[Preference], where: Sequence[str]) -> list[Triple]:
        """Prompt, chosen and rejected of each pair; the parent of both answers is segment 0, the prompt.

        Args:
            examples: The pairs.
            where: File and line of each pair, named in errors.

        Raises:
            ValueError: A pair cannot be rendered or masked exactly, has no prompt, or its prompt has other tokens
                before chosen than before rejected; the message starts with the pair's file and line.
        """
        answers: list[PromptAnswer] = []
        places: list[str] = []
        for example, place in zip(examples, where, strict=True):
            answers += [example.chosen, example.rejected]
            places += [place, place]
        encoded = self._chat.encode_answers(answers, places)
        triples = []
        for example, place, chosen, rejected in zip(examples, where, encoded[::2], encoded[1::2], strict=True):
            if not (chosen[0].weights is None and rejected[0].weights is None):
                raise ValueError(
                    f"{place}: a message of an answer has a weight other than 0 and 1, and answers of pairs are "
                    "compared by the log-probs of all their tokens alike; set it to 0 or 1 (with a `transform`)"
                )
            prompt = _shared_prompt(chosen, rejected, place)
            triples.append(
                (
                    SampleSegment(prompt, np.zeros(len(prompt), dtype=np.bool_)),
                    _answer(chosen[0], len(prompt), example.chosen),
                    _answer(rejected[0], len(prompt), example.rejected),
                )
            )
        return triples

    def fingerprint(self) -> str:
        """Hash of everything that decides what :meth:`read` and :meth:`encode_samples` return; a key for caches."""
        return hash_json([_VERSION, self._chat.fingerprint(), self.pairing.identity()])


def _shared_prompt(
    chosen: tuple[SampleSegment, int], rejected: tuple[SampleSegment, int], where: str
) -> npt.NDArray[np.int32]:
    """Tokens of the prompt, which must be the same before both answers."""
    prompt, other = (segment.input_ids[:count] for segment, count in (chosen, rejected))
    if not (len(prompt) and len(other)):
        raise ValueError(
            f"{where}: the prompt is empty, so nothing stands before the first token of the answers; give the row "
            "a prompt (with a `transform`), or use a tokenizer that puts BOS before a text"
        )
    if not np.array_equal(prompt, other):
        raise ValueError(
            f"{where}: the prompt gives other tokens before chosen than before rejected, since the chat template "
            "renders it by what follows; set a tokenizer.chat_template that does not"
        )
    return prompt


def _answer(segment: SampleSegment, start: int, example: PromptAnswer) -> SampleSegment:
    """The answer alone. One without text or tool calls has no targets, and the pair is left out later."""
    answer = segment.part(start, len(segment.input_ids))._replace(parent=0)
    if isinstance(example, Completion):
        has_content = bool(example.completion.strip())
    else:
        has_content = any(turn.content.strip() or turn.extra for turn in example.messages[example.prompt_turns or 0 :])
    return answer if has_content else answer._replace(supervised=np.zeros_like(answer.supervised))
