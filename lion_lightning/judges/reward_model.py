"""Scores by a reward model: a sequence classifier with a single logit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from lion_lightning.errors import first_line
from lion_lightning.judges.model import Dtype, ModelJudge, pad_right, special_tokens
from lion_lightning.judges.text import broken
from lion_lightning.models.chat_template import ChatTemplate
from lion_lightning.models.model_configs import stored_config
from lion_lightning.models.tokenizer import TokenizerSpec, read_template
from lion_lightning.types import Prompt

logger = logging.getLogger(__name__)


class RewardModelJudge(ModelJudge):
    """The logit of any of transformers' sequence classifiers that has just one.

    The model reads a conversation under its own tokenizer's chat template, and a plain text as prompt and answer in one
    piece. Special tokens that an answer or a turn spells out are text to it: no answer adds turns of its own. Each text
    is scored as it would be alone; equal texts are computed once and tie exactly.

    Args:
        model: Hugging Face folder, or a name on the hub; safetensors only.
        revision: Branch, tag or commit on the hub.
        dtype: What it computes in.
        batch_tokens: Most tokens of a batch, padding included.
        max_length: Most tokens of a text. A longer one loses its beginning, never its answer, and there is a warning.
            None for the longest that the model takes.
        chat_template: In place of the tokenizer's: what ``tokenizer.chat_template`` takes, so a built-in name, the path
            of a jinja file, or jinja itself.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: The template is none; from ``open``: the model has not exactly one logit, its weights are not
            complete, or the template leaves answers out.
    """

    def __init__(
        self,
        model: str,
        revision: str = "main",
        dtype: Dtype = "auto",
        batch_tokens: int = 16384,
        max_length: int | None = None,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(model, revision, dtype, batch_tokens)
        if max_length is not None and max_length < 2:
            raise ValueError(f"RewardModelJudge: max_length is {max_length}; give at least 2")
        self.max_length, self.trust_remote_code = max_length, trust_remote_code
        setting = "RewardModelJudge.chat_template"
        self.chat_template = None if chat_template is None else read_template(chat_template, setting)
        self.tokenizer: Any = None

    @override
    def identity(self) -> dict[str, Any]:
        """What decides the scores."""
        return {**super().identity(), "max_length": self.max_length, "chat_template": self.chat_template}

    @override
    def load(self) -> nn.Module:
        from transformers import AutoModelForSequenceClassification

        options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        config = stored_config(self.path, **options)
        if config.num_labels != 1:
            raise ValueError(
                f"{self.path}: the model has {config.num_labels} logits, so it is no reward model; name one that was "
                "trained with num_labels=1"
            )
        self.tokenizer = TokenizerSpec(self.path, **options).load()
        auto: Any = AutoModelForSequenceClassification
        code = {"trust_remote_code": self.trust_remote_code}
        model = self.weights_of(auto, partial(auto.from_config, config, **code), config, **code)
        self._require_answers()
        return model

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """See :class:`~lion_lightning.judges.base.Judge`."""
        rows = [
            [self._cut(self._tokens(prompt, answer)) for answer in given]
            for prompt, given in zip(prompts, answers, strict=True)
        ]
        long = sum(cut for row in rows for _, cut in row)
        if long:
            total = sum(map(len, rows))
            logger.warning("RewardModelJudge: %d of %d texts were too long and lost their beginning", long, total)
        unique = list(dict.fromkeys(ids for row in rows for ids, _ in row))
        pad = self._pad_id(unique)
        values = self.run([*map(len, unique)], lambda places: self._forward([unique[p] for p in places], pad))
        value_of = dict(zip(unique, values, strict=True))
        return [[value_of[ids] for ids, _ in row] for row in rows]

    def _forward(self, rows: Sequence[Sequence[int]], pad: int) -> Tensor:
        model = self.model
        ids, mask = pad_right(rows, pad, model.device)
        return model(input_ids=ids, attention_mask=mask).logits[:, 0]  # type: ignore[no-any-return]

    def _tokens(self, prompt: Prompt, answer: str) -> list[int]:
        if not prompt.messages:
            text, bos = prompt.text + broken(answer, special_tokens(self.tokenizer)), self.tokenizer.bos_token
            once = not (bos and text.startswith(bos))
            return self.tokenizer(text, add_special_tokens=once, verbose=False).input_ids  # type: ignore[no-any-return]
        # The template writes whatever special tokens the model was trained with: adding them would double the BOS.
        text = self._rendered(prompt, answer)
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids  # type: ignore[no-any-return]

    def _rendered(self, prompt: Prompt, answer: str) -> str:
        special = special_tokens(self.tokenizer)
        turns = [{**turn, "content": broken(str(turn["content"]), special)} for turn in prompt.messages]
        turns.append({"role": "assistant", "content": broken(answer, special)})
        try:
            return self._template.render(turns)
        except ValueError as error:
            raise ValueError(
                f"{prompt.where or self.path}: the chat template of {self.path} cannot write this conversation "
                f"({first_line(error)}); give RewardModelJudge a chat_template that can"
            ) from error

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.chat_template or str(self.tokenizer.get_chat_template()))

    def _require_answers(self) -> None:
        """Refuse a template that leaves answers out: all of them would tie, and nobody would hear of it."""
        if self.chat_template is None and self.tokenizer.chat_template is None:
            return  # plain texts need none
        prompt = Prompt("", (), ({"role": "user", "content": "?"},))
        try:
            text = self._rendered(prompt, "one")
            same = text == self._rendered(prompt, "another")
        except ValueError:  # it wants other turns, and says so when it gets none
            return
        if same:
            raise ValueError(
                f"{self.path}: its chat template leaves the assistant's answer out, so all answers would score the "
                "same; give RewardModelJudge another chat_template"
            )
        bos = self.tokenizer.bos_token
        if bos and text.startswith(2 * bos):
            logger.warning(
                "%s: its chat template begins with %s twice; give RewardModelJudge a chat_template that writes it once",
                self.path,
                bos,
            )

    def _cut(self, ids: list[int]) -> tuple[tuple[int, ...], bool]:
        limit = self.max_length or self._longest()
        if len(ids) <= limit:
            return tuple(ids), False
        keeps_first = ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        first = ids[:1] if keeps_first else []
        return (*first, *ids[len(ids) - limit + len(first) :]), True

    def _longest(self) -> int:
        config = self.model.config.get_text_config()
        positions: int | None = getattr(config, "max_position_embeddings", None)
        return min(int(self.tokenizer.model_max_length), positions or 2**31)

    def _pad_id(self, rows: Sequence[Sequence[int]]) -> int:
        """What to pad with.

        A head of transformers scores the last token that is not the pad id. Where the model names none, alone it scores
        the last token: an id that ends none of the texts makes it do so in a batch.
        """
        config: Any = self.model.config.get_text_config()
        if not hasattr(self, "_named_pad"):
            self._named_pad: int | None = config.pad_token_id
        if self._named_pad is None:
            last = {row[-1] for row in rows}
            config.pad_token_id = next(token for token in range(config.vocab_size) if token not in last)
        return int(config.pad_token_id)
