"""A conversation with a model whose answers stream, and what shows it on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TextStreamer
from typing_extensions import override

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.sft import Conversation
from lion_lightning.data.formats.turns import Message
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.generation.settings import generation_config, without_settings
from lion_lightning.models.policy import position_limit
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.types import Answer


def load_served(path: str, trust_remote_code: bool = False) -> RolloutPolicy:
    """A model as it is served: on the GPU in bf16 where there is one, else on the CPU in fp32.

    Args:
        path: A Hugging Face folder, such as ``lion export`` writes, or a hub id. Safetensors only.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: If there is no such model, it has no weights or no chat template.
    """
    require_model(path)
    device, dtype = _place()
    tokenizer = TokenizerSpec(path, trust_remote_code=trust_remote_code).load()
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{path} has no chat template, so it cannot take turns; a model that was trained with "
            "`tokenizer.chat_template: chatml` and exported has one"
        )
    policy = PolicySpec(path, dtype=dtype, trust_remote_code=trust_remote_code).build()
    return RolloutPolicy(policy.to(device).eval(), tokenizer, Ranks(device=device))


def require_model(name: str) -> None:
    """Find out at once what the hub's client would ask the network for.

    Args:
        name: A Hugging Face folder or a hub id.

    Raises:
        ValueError: It cannot be a hub id, and is no folder with a config and safetensors weights.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"{name} is a file; give a folder: `lion export {name} OUT` writes one from a checkpoint")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{name} holds no model (no config.json); give a folder such as `lion export` writes")
    if path.is_dir() and not list(path.glob("*.safetensors")):
        raise ValueError(f"{name} has no safetensors weights; export the model again, or convert its weights")
    if not path.exists() and (len(path.parts) > 2 or name.startswith((".", "/", "~", "runs/"))):
        raise ValueError(f"{name} does not exist; give the folder of a Hugging Face model or a hub id")


class Chat:
    """Turns of a user and a model, after an optional system turn.

    Args:
        policy: The model.
        system: Text of the system turn; None for none.
        temperature: 0 for greedy answers.
        max_new_tokens: Most tokens of an answer.

    Attributes:
        turns: What has been said so far.

    Raises:
        ValueError: If a setting is out of its range, or the chat template refuses the system turn.
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
        self._encode([*self.turns, Message("user", "?")])

    def say(self, text: str, show: Callable[[str], None]) -> Answer:
        """Say something and have the answer shown while it comes; both are remembered.

        Args:
            text: What the user says.
            show: Takes each piece of the answer.

        Returns:
            The answer; its finish reason is ``interrupted`` if Ctrl-C ended it (before its first word: as if nothing
            had been said).

        Raises:
            ValueError: If the conversation does not fit the model's positions any more; nothing is remembered then.
        """
        asked = Message("user", text)
        ids = self._encode([*self.turns, asked])
        room = self._room(len(ids))
        shown = _Pieces(self.policy.tokenizer, show)
        reason = self._generate(ids, min(room, self.max_new_tokens), shown)
        answer = Answer("".join(shown.pieces).strip(), reason)
        if answer.text or reason != "interrupted":
            self.turns += [asked, Message("assistant", answer.text)]
        return answer

    def undo(self) -> str | None:
        """Forget the last question with its answer, and return the question; None if there is none."""
        if self.turns == self._first:
            return None
        question = self.turns[-2].content
        del self.turns[-2:]
        return question

    def reset(self) -> None:
        """Forget all but the system turn."""
        self.turns = list(self._first)

    def _encode(self, turns: list[Message]) -> list[int]:
        try:
            return self._encoder.prompt(Conversation(tuple(turns), len(turns)))[1]
        except ValueError as error:
            raise ValueError(f"{self.policy.tokenizer.name_or_path}: {error}") from error

    def _room(self, length: int) -> int:
        limit = position_limit(self.policy.model.config)
        if limit is not None and length >= limit:
            raise ValueError(
                f"the conversation has {length} tokens and the model only {limit} positions, so no answer has room; "
                "take turns back with /undo, or start anew with /reset"
            )
        return self.max_new_tokens if limit is None else limit - length

    def _generate(self, ids: list[int], most: int, shown: _Pieces) -> Literal["stop", "length", "interrupted"]:
        """Answer into ``shown``, in this thread: Ctrl-C then ends the loop over the tokens itself."""
        row = torch.tensor([ids], device=self.policy.device)
        model: Any = self.policy.model
        try:
            with without_settings(model):
                output = model.generate(
                    input_ids=row,
                    attention_mask=torch.ones_like(row),
                    generation_config=self._config(most),
                    streamer=shown,
                )
        except KeyboardInterrupt:
            shown.end()  # type: ignore[no-untyped-call]
            return "interrupted"
        return "stop" if int(output[0, -1]) in self.policy.end_ids else "length"

    def _config(self, most: int) -> Any:
        config = generation_config(self.policy.tokenizer)
        drawn = {"temperature": self.temperature, "top_k": 0, "top_p": 1.0} if self.temperature else {}
        stops = list(self.policy.end_ids) or None
        config.update(do_sample=bool(drawn), max_new_tokens=most, eos_token_id=stops, **drawn)  # type: ignore[no-untyped-call]
        return config


class _Pieces(TextStreamer):
    """Hands on finished words of an answer; a character of several tokens comes whole."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.pieces: list[str] = []
        self._show = show

    @override
    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Show and keep a piece of the answer (transformers calls this)."""
        self.pieces.append(text)
        self._show(text)


def _place() -> tuple[str, Literal["float32", "bfloat16"]]:
    return ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
