"""From a prompt with its answers to token ids: one prompt, each answer once, with an exact mask of what is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.cache import hash_json
from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.answers.groups import recognize_groups
from lion_lightning.data.formats.answers.labeled import recognize_labeled
from lion_lightning.data.formats.answers.preference import recognize_preferences
from lion_lightning.data.formats.pairing import BestWorst, Pairing, PromptAnswer, PromptAnswers
from lion_lightning.data.formats.sft import Completion
from lion_lightning.types import SampleSegment

_VERSION = 5  # part of the fingerprint; raise it whenever the same input gives other tokens

Tree = tuple[SampleSegment, ...]
"""A prompt, then its answers."""


class TreeEncoder(ABC):
    """Tokenizes a prompt and its answers; a subclass says how rows are read.

    Prompt and answer are tokenized as one text, by :class:`ChatEncoder` under the mask ``completion``, and cut at the
    first token of the answer; the prompt must have the same tokens before all answers, and is kept once. Of an answer
    only assistant turns are trained, with the token that ends them and not the white space after it; plain text ends in
    EOS.

    Args:
        tokenizer: A fast tokenizer, with a chat template where conversations are to be encoded.
        train_reasoning: Whether the reasoning of an answer is trained, too; see :class:`ChatEncoder`.

    Raises:
        ValueError: The tokenizer is not a fast one.

    The encoder can be pickled and used by several threads at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_reasoning: bool = True) -> None:
        self.tokenizer = tokenizer
        self._chat = ChatEncoder(tokenizer, "completion", train_reasoning)

    @abstractmethod
    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[PromptAnswers]:
        """Examples of a raw row, under the names that ``columns`` maps known columns to."""

    def encode_samples(self, examples: Sequence[PromptAnswers], where: Sequence[str]) -> list[Tree]:
        """Prompt and answers of each example; the parent of all answers is segment 0, the prompt.

        Args:
            examples: The prompts with their answers.
            where: File and line of each example, named in errors.

        Raises:
            ValueError: An answer cannot be rendered or masked exactly, has no prompt, or its prompt has other tokens
                than before the first answer; the message starts with the example's file and line.
        """
        answers: list[PromptAnswer] = []
        places: list[str] = []
        for example, place in zip(examples, where, strict=True):
            answers += example.answers
            places += [place] * len(example.answers)
        encoded = iter(self._chat.encode_answers(answers, places))  # all answers of all examples at once
        trees = []
        for example, place in zip(examples, where, strict=True):
            trees.append(_tree(example, list(islice(encoded, len(example.answers))), place))
        return trees

    def fingerprint(self) -> str:
        """Hash of everything that decides what :meth:`read` and :meth:`encode_samples` return; a key for caches."""
        return hash_json([_VERSION, type(self).__name__, self._chat.fingerprint()])


class PairEncoder(TreeEncoder):
    """Preference pairs: chosen and rejected answers, or those of ranked answers that are in a pair.

    Args:
        tokenizer: A fast tokenizer, with a chat template where conversations are to be encoded.
        pairing: How ranked answers become pairs; by default the best against the worst.
        train_reasoning: Whether the reasoning of an answer is trained, too.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, pairing: Pairing | None = None, train_reasoning: bool = True
    ) -> None:
        super().__init__(tokenizer, train_reasoning)
        self.pairing = pairing or BestWorst()

    @override
    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[PromptAnswers]:
        return recognize_preferences(row, columns, self.pairing)

    @override
    def fingerprint(self) -> str:
        return hash_json([super().fingerprint(), self.pairing.identity()])


class LabeledEncoder(TreeEncoder):
    """Single answers with a label; chosen and rejected answers of preference rows are labeled 1 and 0."""

    @override
    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[PromptAnswers]:
        return recognize_labeled(row, columns)


class GroupEncoder(TreeEncoder):
    """All answers of a prompt with their scores, and no pairs."""

    @override
    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[PromptAnswers]:
        return recognize_groups(row, columns)


def _tree(example: PromptAnswers, encoded: Sequence[tuple[SampleSegment, int]], where: str) -> Tree:
    """The prompt once, and each answer behind it."""
    if any(segment.weights is not None for segment, _ in encoded):
        raise ValueError(
            f"{where}: a message of an answer has a weight other than 0 and 1, and answers are "
            "compared by the log-probs of all their tokens alike; set it to 0 or 1 (with a `transform`)"
        )
    prompt = _shared_prompt([segment.input_ids[:count] for segment, count in encoded], where)
    answers = zip(encoded, example.answers, strict=True)
    return (
        SampleSegment(prompt, np.zeros(len(prompt), dtype=np.bool_)),
        *(_answer(segment, len(prompt), answer) for (segment, _), answer in answers),
    )


def _shared_prompt(prompts: Sequence[npt.NDArray[np.int32]], where: str) -> npt.NDArray[np.int32]:
    """Tokens of the prompt, which must be the same before all answers."""
    if not all(map(len, prompts)):
        raise ValueError(
            f"{where}: the prompt is empty, so nothing stands before the first token of the answers; give the row "
            "a prompt (with a `transform`), or use a tokenizer that puts BOS before a text"
        )
    for number, prompt in enumerate(prompts):
        if not np.array_equal(prompt, prompts[0]):
            raise ValueError(
                f"{where}: the prompt gives other tokens before answer {number + 1} than before the first, since the "
                "chat template renders it by what follows; set a tokenizer.chat_template that does not"
            )
    return prompts[0]


def _answer(segment: SampleSegment, start: int, example: PromptAnswer) -> SampleSegment:
    """The answer alone. One without text or tool calls has no targets, and is left out later."""
    answer = segment.part(start, len(segment.input_ids))._replace(parent=0)
    if isinstance(example, Completion):
        has_content = bool(example.completion.strip())
    else:
        has_content = any(turn.content.strip() or turn.extra for turn in example.messages[example.prompt_turns or 0 :])
    return answer if has_content else answer._replace(supervised=np.zeros_like(answer.supervised))
