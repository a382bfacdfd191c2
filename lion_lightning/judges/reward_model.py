"""Reward models: sequence classifiers with a single logit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any

from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from typing_extensions import override

from lion_lightning.errors import first_line
from lion_lightning.judges.model import ModelJudge, pad_right, special_tokens
from lion_lightning.judges.text import escape_special_tokens
from lion_lightning.models.chat_template import ChatTemplate
from lion_lightning.models.model_configs import stored_config
from lion_lightning.models.tokenizer import TokenizerSpec, read_template
from lion_lightning.types import Prompt

logger = logging.getLogger(__name__)


class RewardModelJudge(ModelJudge):
    """The logit of a sequence classifier of transformers with ``num_labels=1``.

    Conversations are rendered with the chat template of the model's tokenizer; for plain text, prompt and answer are
    concatenated and end with EOS, as reward models are trained here and in TRL. Special tokens in answers are escaped,
    so that no answer adds turns. Scores do not depend on the batch. Equal texts are computed once and tie exactly.

    Args:
        model: Hugging Face folder or hub id; safetensors only.
        max_length: Maximum tokens of a text; longer ones lose their beginning, with a warning. None for the model's
            limit.
        chat_template: Replaces the tokenizer's: a built-in name, the path of a jinja file, or a jinja template, as for
            ``tokenizer.chat_template``.
        trust_remote_code: Run code that comes with the model.
        **kwargs: Further arguments of :class:`~lion_lightning.judges.model.ModelJudge`.

    Raises:
        ValueError: The template is invalid. From ``open``: the model has several logits, its weights are incomplete, or
            the template ignores the answer.
    """

    def __init__(
        self,
        model: str,
        max_length: int | None = None,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if max_length is not None and max_length < 2:
            raise ValueError(f"RewardModelJudge: max_length is {max_length}; give at least 2")
        self.max_length, self.trust_remote_code = max_length, trust_remote_code
        setting = "RewardModelJudge.chat_template"
        self.chat_template = None if chat_template is None else read_template(chat_template, setting)
        self.tokenizer: Any = None

    @override
    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "max_length": self.max_length, "chat_template": self.chat_template}

    @override
    def load(self) -> nn.Module:
        from transformers import AutoModelForSequenceClassification

        options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        config = stored_config(self.path, **options)
        names = config.architectures or ()
        if names and all(name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in names):
            raise ValueError(
                f"{self.path}: a language model ({names[0]}), not a reward model; give a folder that RewardModule "
                "exported (configs/reward.yaml), or another sequence classifier with num_labels=1"
            )
        if config.num_labels != 1:
            raise ValueError(
                f"{self.path}: the model has {config.num_labels} logits, so it is not a reward model; give one that "
                "was trained with num_labels=1"
            )
        self._named_pad: int | None = config.get_text_config().pad_token_id
        self.tokenizer = TokenizerSpec(self.path, **options).load()
        auto: Any = AutoModelForSequenceClassification
        code = {"trust_remote_code": self.trust_remote_code}
        model = self.weights_of(auto, partial(auto.from_config, config, **code), config, **code)
        self._require_answers()
        return model

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score the answers to each prompt."""
        rows, truncated = [], 0
        for prompt, given in zip(prompts, answers, strict=True):
            texts = [self._truncated(self._tokens(prompt, answer)) for answer in given]
            rows.append([ids for ids, _ in texts])
            truncated += sum(too_long for _, too_long in texts)
        if truncated:
            total = sum(map(len, rows))
            logger.warning("RewardModelJudge: %d of %d texts are too long and lost their beginning", truncated, total)
        unique = list(dict.fromkeys(chain(*rows)))  # equal texts tie exactly
        pad = self._pad_id(unique)

        def forward(indices: list[int]) -> Tensor:
            ids, mask = pad_right([unique[index] for index in indices], pad, self.model.device)
            return self.model(input_ids=ids, attention_mask=mask).logits[:, 0]  # type: ignore[no-any-return]

        values = self.run([*map(len, unique)], forward)
        value_of = dict(zip(unique, values, strict=True))
        return [[value_of[ids] for ids in row] for row in rows]

    def _tokens(self, prompt: Prompt, answer: str) -> list[int]:
        if not prompt.messages:
            text = prompt.text + escape_special_tokens(answer, special_tokens(self.tokenizer))
            bos = self.tokenizer.bos_token
            once = not (bos and text.startswith(bos))  # a prompt may begin with the BOS already
            ids: list[int] = self.tokenizer(text, add_special_tokens=once, verbose=False).input_ids
            eos = self.tokenizer.eos_token_id
            return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]  # as in training, here and in TRL
        # The template has the special tokens already: adding them would double the BOS.
        text = self._rendered(prompt, answer)
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids  # type: ignore[no-any-return]

    def _rendered(self, prompt: Prompt, answer: str) -> str:
        special = special_tokens(self.tokenizer)
        turns = [{**turn, "content": escape_special_tokens(str(turn["content"]), special)} for turn in prompt.messages]
        turns.append({"role": "assistant", "content": escape_special_tokens(answer, special)})
        try:
            return self._template.render(turns)
        except ValueError as error:
            raise ValueError(
                f"{prompt.where or self.path}: the chat template of {self.path} cannot render this conversation "
                f"({first_line(error)}); set `chat_template` of RewardModelJudge"
            ) from error

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.chat_template or str(self.tokenizer.get_chat_template()))

    def _require_answers(self) -> None:
        """Refuse a template without the answer, with which all answers would tie silently."""
        if self.chat_template is None and self.tokenizer.chat_template is None:
            return  # for plain text
        prompt = Prompt("", (), ({"role": "user", "content": "?"},))
        try:
            text = self._rendered(prompt, "one")
            same = text == self._rendered(prompt, "another")
        except ValueError:  # it needs other turns; real prompts will show errors
            return
        if same:
            raise ValueError(
                f"{self.path}: the chat template ignores the assistant's answer, so all answers would have the same "
                "score; set `chat_template` of RewardModelJudge"
            )
        bos = self.tokenizer.bos_token
        if bos and text.startswith(2 * bos):
            logger.warning(
                "%s: the chat template adds %s twice; set `chat_template` of RewardModelJudge to one that adds it once",
                self.path,
                bos,
            )

    def _truncated(self, ids: list[int]) -> tuple[tuple[int, ...], bool]:
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        limit = self.max_length or min(int(self.tokenizer.model_max_length), positions or 2**31)
        if len(ids) <= limit:
            return tuple(ids), False
        # The score is read at the end of the text; models were trained with a BOS or CLS at its beginning.
        keeps_first = ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        first = ids[:1] if keeps_first else []
        return (*first, *ids[len(ids) - limit + len(first) :]), True

    def _pad_id(self, rows: Sequence[Sequence[int]]) -> int:
        """Padding token id.

        Classifiers of transformers score the last token that is not padding. For a model without a padding id, an id
        that ends none of the texts makes them score the last token, as without a batch.
        """
        config: Any = self.model.config.get_text_config()
        if self._named_pad is None:
            last = {row[-1] for row in rows}
            config.pad_token_id = next(token for token in range(config.vocab_size) if token not in last)
        return int(config.pad_token_id)
