"""A tokenizer of bytes, and stand-ins for encoders: one token a letter, and capitals are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import Completion, Example, Text, recognize
from lion_lightning.types import Sample, SampleSegment
from tests.unit.data.pairs import pair_of

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ChatML markers, pad == eos."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def piece(text: str, parent: int = -1) -> SampleSegment:
    """A token a letter."""
    mask = np.array([letter.isupper() for letter in text], bool)
    return SampleSegment(np.frombuffer(text.encode(), np.uint8).astype(np.int32), mask, parent)


def letters(sample: Sample) -> tuple[str, ...]:
    """The pieces of a sample as text again."""
    return tuple(bytes(part.input_ids.tolist()).decode() for part in sample.segments)


class Letters:
    """Rows with a text."""

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Example]:
        return [recognize(row, columns)]

    def encode_samples(self, examples: Sequence[Text], where: Sequence[str]) -> list[tuple[SampleSegment]]:
        return [(piece(example.text),) for example in examples]

    def fingerprint(self) -> str:
        return "letters"


class LetterPairs:
    """Rows with ``pairs``, each prompt, chosen and rejected, and the margin where it is known."""

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[PromptAnswers]:
        pairs = []
        for prompt, chosen, rejected, *margin in (pair.split(" ") for pair in row["pairs"]):
            scores = (float(margin[0]), 0.0) if margin else ()
            pairs.append(pair_of(Completion(prompt, chosen), Completion(prompt, rejected), *scores))
        return pairs

    def encode_samples(
        self, examples: Sequence[PromptAnswers], where: Sequence[str]
    ) -> list[tuple[SampleSegment, SampleSegment, SampleSegment]]:
        return [self._triple(*example.answers) for example in examples]

    def fingerprint(self) -> str:
        return "pairs of letters"

    def _triple(self, chosen: Any, rejected: Any) -> tuple[SampleSegment, SampleSegment, SampleSegment]:
        return piece(chosen.prompt), piece(chosen.completion, 0), piece(rejected.completion, 0)


class LetterTrees:
    """Rows with a ``tree``: a prompt and its answers, with ``values`` and ``pairs``."""

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[PromptAnswers]:
        prompt, *answers = row["tree"].split(" ")
        values = tuple(map(float, row.get("values") or ["nan"] * len(answers)))
        pairs = tuple((chosen, rejected) for chosen, rejected in row.get("pairs", []))
        return [PromptAnswers(tuple(Completion(prompt, answer) for answer in answers), values, pairs)]

    def encode_samples(
        self, examples: Sequence[PromptAnswers], where: Sequence[str]
    ) -> list[tuple[SampleSegment, ...]]:
        return [self._tree(example.answers) for example in examples]

    def fingerprint(self) -> str:
        return "trees of letters"

    def _tree(self, answers: Sequence[Any]) -> tuple[SampleSegment, ...]:
        return piece(answers[0].prompt), *(piece(answer.completion, 0) for answer in answers)
