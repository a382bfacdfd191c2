"""From examples to token ids with an exact mask of what is trained.

All text of an example is tokenized once; a token is trained if it begins in a span of characters that is to be
trained. That a model which is given the prompt alone sees the same tokens is checked, not assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from transformers import PreTrainedTokenizerBase

from lion_lightning.cache import hash_json
from lion_lightning.data.encoding.rendering import ChatRenderer
from lion_lightning.data.encoding.supervision import Draft, Mask, Supervision, texts
from lion_lightning.data.encoding.token_boundaries import TokenBoundaries, Tokens, first_token
from lion_lightning.data.formats.columns import Row
from lion_lightning.data.formats.sft import Completion, Conversation, Example, recognize
from lion_lightning.data.reports.row_messages import add_warning
from lion_lightning.types import SampleSegment

_MAX_BOS_OFFSET = 100  # characters of white space that BOS is looked for behind
_MEET_IN_TEMPLATE = (
    "strip the white space where they meet (with a `transform`), choose another chat template, or set mask: none"
)
_MEET_IN_TEXT = (
    "give the source `format: chat` if it asks and the answer replies, or let the answer begin with the white space "
    "between them (with a `transform`)"
)
_VERSION = 4  # part of the fingerprint; raise it whenever the same input gives other tokens


class ChatEncoder:
    """Tokenizes examples and marks the tokens to train.

    Conversations go through the chat template, which alone decides about BOS and end-of-turn tokens. A completion or a
    text has no template: it gets BOS if the tokenizer puts one, and EOS. The token that ends an assistant turn is
    trained, white space that the template puts after it is not. All of a text is trained under every mask.

    Args:
        tokenizer: A fast tokenizer, with a chat template where conversations are to be encoded.
        mask: ``assistant`` trains every assistant turn, ``completion`` the assistant turns after the prompt,
            ``last_turn`` the last assistant turn, ``none`` masks nothing: every token is trained.
        train_reasoning: Whether the reasoning of an answer is trained, too. Else it is context up to the mark that ends
            it, with the white space there.

    Raises:
        ValueError: The tokenizer is not a fast one, the mask is unknown, or ``none`` is to leave out the reasoning.

    The encoder can be pickled and used by several threads at once.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, mask: Mask = "assistant", train_reasoning: bool = True
    ) -> None:
        if mask == "none" and not train_reasoning:
            raise ValueError("train_reasoning: false leaves something out, and mask: none trains all; change one")
        self.tokenizer, self.train_reasoning = tokenizer, train_reasoning
        self._tokens = TokenBoundaries(tokenizer)
        # [bos] if the tokenizer puts BOS before a text, else nothing
        self._bos = [token for token in tokenizer.encode("")[:1] if token == tokenizer.bos_token_id]
        self._renderer = ChatRenderer(tokenizer, needs_reasoning=train_reasoning)
        self._supervision = Supervision(self._renderer, mask)

    def encode(self, examples: Sequence[Example], where: Sequence[str]) -> list[SampleSegment]:
        """Encode a batch, one segment per example.

        Args:
            examples: Examples of any form, mixed freely.
            where: File and line of each example, named in errors.

        Raises:
            ValueError: An example cannot be rendered or masked exactly; the message starts with its file and line.
        """
        return [segment for segment, _ in self.encode_answers(examples, where)]

    def encode_answers(self, examples: Sequence[Example], where: Sequence[str]) -> list[tuple[SampleSegment, int]]:
        """:meth:`encode`, with the number of tokens that stand before each example's answer."""
        drafts = []
        for example, place in zip(examples, where, strict=True):
            with _errors_at(place):
                drafts.append(self._supervision.draft(example))
        encodings = self._tokenize(drafts, where)
        answers = []
        for draft, encoding, place in zip(drafts, encodings, where, strict=True):
            with _errors_at(place):
                answers.append(self._mask(draft, encoding))
        return answers

    def prompt(self, prompt: Conversation | Completion) -> tuple[str, list[int]]:
        """Text and tokens of a prompt, as a model is given them: the tokens that stand before a trained answer.

        Args:
            prompt: A conversation that ends before the answer, or an empty completion.

        Raises:
            ValueError: The prompt cannot be rendered.
        """
        templated = isinstance(prompt, Conversation)
        text = self._renderer.prompt(prompt) if isinstance(prompt, Conversation) else prompt.prompt
        draft = Draft(text, (), (), 0, templated, texts(prompt), (0,)).checked()
        ids = self._tokens.encode([text])[0].ids
        self._check_bos(draft, ids)
        return text, ids if templated or ids[: len(self._bos)] == self._bos else [*self._bos, *ids]

    def read(self, row: Row, columns: Mapping[str, str]) -> list[Example]:
        """The example of a raw row; see :func:`~lion_lightning.data.formats.sft.recognize`."""
        return [recognize(row, columns)]

    def encode_samples(self, examples: Sequence[Example], where: Sequence[str]) -> list[tuple[SampleSegment]]:
        """:meth:`encode`, as samples of one segment each."""
        return [(segment,) for segment in self.encode(examples, where)]

    def fingerprint(self) -> str:
        """Hash of everything that decides what :meth:`encode` returns; a key for caches."""
        parts = {
            "version": _VERSION,
            "mask": self._supervision.mask,
            "train_reasoning": self.train_reasoning,
            "backend": self._tokens.backend.to_str(),
            "bos": self._bos,
            "chat_template": self.tokenizer.chat_template,
            "special_tokens": {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
        }
        return hash_json(parts)

    # --- from characters to tokens

    def _tokenize(self, drafts: Sequence[Draft], where: Sequence[str]) -> list[Tokens]:
        """Tokens of each text; a model that is given the prompt alone sees the same before the answer.

        Some templates end a prompt with a space that would be joined to the answer's first word, or with the first of
        two line breaks. Nothing in the row can be done about it, and a model sees the two apart; so they are tokenized
        apart.
        """
        texts = [draft.text for draft in drafts]
        encodings: list[Tokens] = [*self._tokens.encode(texts)]
        starts = [draft.starts for draft in drafts]
        for number, boundary in self._tokens.differing(texts, encodings, starts):
            text, start = texts[number], boundary.start
            by_template = drafts[number].templated and not drafts[number].brings_space(start)
            apart = self._tokens.encode_parts(text, starts[number]) if by_template else None
            if apart is None or self._tokens.differing([text], [apart], [starts[number]]):
                raise ValueError(
                    f"{where[number]}: the end of the prompt ({boundary.text[-20:]!r}) gives other tokens before the "
                    "answer than alone, so a model would be asked with tokens it was not trained on; "
                    f"{_MEET_IN_TEMPLATE if drafts[number].templated else _MEET_IN_TEXT}"
                )
            encodings[number] = apart
        return encodings

    def _mask(self, draft: Draft, encoding: Tokens) -> tuple[SampleSegment, int]:
        """Tokens with their mask, and the number of those before the answer."""
        ids, length = encoding.ids, len(draft.text)
        weights, reasoning = np.zeros(len(ids), dtype=np.float32), np.zeros(len(ids), dtype=np.bool_)
        for start, end, weight in draft.targets:
            weights[first_token(encoding, start, length) : first_token(encoding, end, length)] = weight
        for start, end in draft.reasoning:
            reasoning[first_token(encoding, start, length) : first_token(encoding, end, length)] = True
        if not self.train_reasoning:
            weights[reasoning] = 0.0
        before = first_token(encoding, draft.start, length)
        if not draft.templated:
            bos, eos = self._missing_bos_eos(ids)
            full = weights.all()  # BOS is trained where all of the text is
            weights = np.concatenate([np.full(len(bos), full, np.float32), weights, np.ones(len(eos), np.float32)])
            reasoning = np.pad(reasoning, (len(bos), len(eos)))
            ids = [*bos, *ids, *eos]
            before += len(bos)
        self._check_bos(draft, ids)
        supervised = weights > 0
        segment = SampleSegment(
            np.array(ids, dtype=np.int32),
            supervised,
            weights=None if (weights[supervised] == 1.0).all() else weights,
            reasoning=reasoning if reasoning.any() else None,
        )
        return segment, before

    def _missing_bos_eos(self, ids: list[int]) -> tuple[list[int], list[int]]:
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ValueError(
                f"tokenizer {self.tokenizer.name_or_path} has no EOS token to end a text with; set tokenizer.eos_token"
            )
        return [] if ids[: len(self._bos)] == self._bos else self._bos, [] if ids[-1:] == [eos] else [eos]

    def _check_bos(self, draft: Draft, ids: Sequence[int]) -> None:
        """Warn of a text that begins without BOS, or with two."""
        bos = self.tokenizer.bos_token
        if draft.templated and ids[: len(self._bos)] != self._bos:
            add_warning(
                f"the tokenizer starts texts with {bos} and the chat template does not write it: use a "
                "tokenizer.chat_template that begins with bos_token, as configs/recipes/chatml_with_bos.jinja"
            )
        elif bos is not None and self._repeats_bos(draft, str(bos)):
            add_warning(
                f"texts of the rows begin with {bos}, which stands once more before them: take it out of the rows "
                "(with a `transform`)"
            )
        elif bos is not None and list(ids[:2]) == [self.tokenizer.bos_token_id] * 2:
            if draft.templated:
                add_warning(
                    f"the chat template begins with {bos} twice: use a tokenizer.chat_template that writes it once, or "
                    "take it out of the rows (with a `transform`)"
                )
            else:
                add_warning(
                    f"a text of the rows begins with {bos} twice: take one out of the rows (with a `transform`)"
                )

    def _repeats_bos(self, draft: Draft, bos: str) -> bool:
        """True if a text of the row begins with BOS in addition to the BOS that all of it begins with."""
        is_added = not draft.templated and bool(self._bos) and not draft.text.startswith(bos)
        if not (is_added or draft.text.startswith(bos)):
            return False
        beginnings = [text[:_MAX_BOS_OFFSET].lstrip() for text in draft.parts]
        return any(text.startswith(bos) and (is_added or not draft.text.startswith(text)) for text in beginnings)


@contextmanager
def _errors_at(where: str) -> Iterator[None]:
    """Put the row's file and line before errors about it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
