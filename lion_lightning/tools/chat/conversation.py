"""A conversation with a model, with streamed answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, TextStreamer
from typing_extensions import override

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.sft import Conversation
from lion_lightning.data.formats.turns import Message
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.generation.settings import without_settings
from lion_lightning.models.policy import position_limit
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.types import Answer


def load_served(
    path: str, trust_remote_code: bool = False, template_kwargs: dict[str, Any] | None = None
) -> RolloutPolicy:
    """Load a chat model, in bf16 on the GPU or in fp32 on the CPU.

    Args:
        path: A Hugging Face folder, e.g. of ``lion export``, or a hub id; safetensors only.
        trust_remote_code: Run code that comes with the model.
        template_kwargs: Variables of the chat template, over those that an export has in it.

    Raises:
        ValueError: The model does not exist, or has no weights or no chat template.
    """
    require_model(path)
    tokenizer = TokenizerSpec(path, template_kwargs=template_kwargs, trust_remote_code=trust_remote_code).load()
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{path} has no chat template, so it is not a chat model; train and export one with "
            "`tokenizer.chat_template: chatml`"
        )
    return RolloutPolicy.load(path, tokenizer, trust_remote_code)


def require_model(name: str) -> None:
    """Check a model's path without network access.

    Raises:
        ValueError: It is neither a folder with config and safetensors weights nor a possible hub id.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"{name} is a file; give a folder: `lion export {name} OUT` writes one from a checkpoint")
    if path.is_dir() and not (path / "config.json").is_file():
        exports = sorted(map(str, (*path.glob("export"), *path.glob("*/export"), *path.glob("*/*/export"))))
        if exports:
            raise ValueError(f"{name} is the folder of a run; give a model of it: {', '.join(exports)}")
        raise ValueError(f"{name} is not a model (no config.json); give a folder such as `lion export` writes")
    if path.is_dir() and not list(path.glob("*.safetensors")):
        raise ValueError(f"{name} has no safetensors weights; export the model again, or convert its weights")
    if not path.exists() and (len(path.parts) > 2 or name.startswith((".", "/", "~", "runs/"))):
        raise ValueError(f"{name} does not exist; give the folder of a Hugging Face model or a hub id")


class Chat:
    """A conversation of a user and a model.

    Args:
        policy: The model.
        system: System message; None for none.
        temperature: Sampling temperature; 0 for greedy answers.
        max_new_tokens: Maximum tokens of an answer.

    Attributes:
        turns: All messages so far.

    Raises:
        ValueError: An argument is out of range, or the chat template refuses system messages.
    """

    def __init__(
        self, policy: RolloutPolicy, system: str | None = None, temperature: float = 0.8, max_new_tokens: int = 512
    ) -> None:
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; give 0 for greedy answers, or a number above it")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; give at least 1")
        self.policy, self.temperature, self.max_new_tokens = policy, temperature, max_new_tokens
        self._encoder = ChatEncoder(policy.tokenizer, mask="completion")
        self._first = [Message("system", system)] if system else []
        self.turns = list(self._first)
        self._encode([*self.turns, Message("user", "?")])  # a template that refuses a system message is an error now

    def say(self, text: str, show: Callable[[str], None]) -> Answer:
        """Send a message and stream the answer; both are added to the conversation.

        Args:
            text: The user's message.
            show: Receives each part of the answer.

        Returns:
            The answer; its finish reason is ``interrupted`` after Ctrl-C. If that came before the first word, nothing
            is added to the conversation.

        Raises:
            ValueError: The conversation exceeds the model's positions; nothing is added.
        """
        asked = Message("user", text)
        ids = self._encode([*self.turns, asked])
        most, limit = self.max_new_tokens, position_limit(self.policy.model.config)
        if limit is not None:
            if len(ids) >= limit:
                raise ValueError(
                    f"the conversation has {len(ids)} tokens, but the model only {limit} positions; remove turns with "
                    "/undo or start a new conversation with /reset"
                )
            most = min(most, limit - len(ids))
        shown = _Streamer(self.policy.tokenizer, show)
        reason = self._generate(ids, most, shown)
        answer = Answer("".join(shown.parts).strip(), reason)
        if answer.text or reason != "interrupted":
            self.turns += [asked, Message("assistant", answer.text)]
        return answer

    def undo(self) -> str | None:
        """Remove the last question and its answer, and return the question; None if there is none."""
        if self.turns == self._first:
            return None
        question = self.turns[-2].content
        del self.turns[-2:]
        return question

    def reset(self) -> None:
        """Remove all messages but the system message."""
        self.turns = list(self._first)

    def _encode(self, turns: list[Message]) -> list[int]:
        try:
            return self._encoder.prompt(Conversation(tuple(turns), len(turns)))[1]
        except ValueError as error:
            raise ValueError(f"{self.policy.tokenizer.name_or_path}: {error}") from error

    def _generate(self, ids: list[int], most: int, shown: _Streamer) -> Literal["stop", "length", "interrupted"]:
        """Generate into ``shown``, in this thread, so that Ctrl-C interrupts the loop over tokens."""
        stops = list(self.policy.end_ids)
        drawn = {"temperature": self.temperature, "top_k": 0, "top_p": 1.0} if self.temperature else {}
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=bool(drawn),
            max_new_tokens=most,
            eos_token_id=stops or None,
            pad_token_id=next(iter(stops), 0),  # a single row has no padding, but without one transformers warns
            **drawn,
        )
        row = torch.tensor([ids], device=self.policy.device)
        model: Any = self.policy.model
        try:
            with without_settings(model):
                output = model.generate(
                    input_ids=row, attention_mask=torch.ones_like(row), generation_config=config, streamer=shown
                )
        except KeyboardInterrupt:
            shown.end()  # type: ignore[no-untyped-call]  # shows the last word
            return "interrupted"
        return "stop" if int(output[0, -1]) in self.policy.end_ids else "length"


class _Streamer(TextStreamer):
    """Passes on finished words of an answer, never a part of a character."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.parts: list[str] = []
        self._show = show

    @override
    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.parts.append(text)
        self._show(text)
