"""Base of judges with a local model: loading, unloading and batching."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lion_lightning.errors import first_line
from lion_lightning.models.model_configs import require_safetensors
from lion_lightning.models.weights.checks import WrongWeightsError, all_tensors, load_complete, require_finite
from lion_lightning.models.weights.hash import hash_model
from lion_lightning.models.weights.sharded_loading import require_matching_shapes
from lion_lightning.types import Prompt

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Dtype of a model; ``auto`` for that of its files."""


class ModelJudge(ABC):
    """A judge with a local model, which is loaded for a round and freed afterwards.

    Args:
        model: Hugging Face folder or hub id; safetensors only.
        revision: Branch, tag or commit on the hub.
        dtype: Dtype of the model; ``auto`` for that of its files.
        batch_tokens: Maximum tokens of a batch, padding included; a longer text is a batch by itself.

    Raises:
        ValueError: ``batch_tokens`` is below 1.
    """

    def __init__(self, model: str, revision: str = "main", dtype: Dtype = "auto", batch_tokens: int = 16384) -> None:
        if batch_tokens < 1:
            raise ValueError(f"{type(self).__name__}: batch_tokens is {batch_tokens}; give at least 1")
        self.path, self.revision, self.dtype, self.batch_tokens = model, revision, dtype, batch_tokens
        self._model: Any = None

    @abstractmethod
    def load(self) -> nn.Module:
        """Read model and tokenizer from disk."""

    def weights_of(self, kind: Any, make: Callable[[], nn.Module], config: Any, **options: Any) -> nn.Module:
        """Load a model; its files must have exactly its weights, all finite.

        Args:
            kind: A class of transformers with ``from_pretrained``.
            make: Makes the model with any weights.
            config: The model's config.
            **options: Further arguments of ``from_pretrained``.

        Raises:
            ValueError: Weights are missing, superfluous, of other shapes or not finite.
        """
        require_safetensors(Path(self.path))
        try:
            if not options.get("trust_remote_code"):  # custom code may not run on the meta device
                require_matching_shapes(self.path, self.revision, config, make)
            given = {"config": config, "revision": self.revision, "dtype": self.dtype, "use_safetensors": True}
            model: nn.Module = load_complete(kind.from_pretrained, self.path, **given, **options)
        except (WrongWeightsError, ModuleNotFoundError):
            raise
        except Exception as error:  # transformers raises exceptions of any class for wrong configs
            raise ValueError(f"{self.path}: cannot be loaded as a judge: {first_line(error)}") from error
        require_finite(self.path, all_tensors(model))
        return model

    def open(self, device: torch.device) -> None:
        """Load the model to a device, unless it is loaded already."""
        if self._model is None:
            with torch.random.fork_rng(devices=[]):  # model initialization must not change training's random state
                self._model = self.load().eval().requires_grad_(False)
        self._model.to(device)

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """Check that the model's config is on disk or on the hub."""
        from transformers.utils.hub import cached_file

        try:
            cached_file(self.path, "config.json", revision=self.revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{type(self).__name__}: model {self.path!r} not found ({first_line(error)}); give a folder with a "
                "config.json or a hub id"
            ) from error

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def model(self) -> Any:
        """The loaded model.

        Raises:
            ValueError: The model is not loaded.
        """
        if self._model is None:
            name = type(self).__name__
            raise ValueError(f"{name}: the model is not loaded; call {name}.open(device) before score()")
        return self._model

    def identity(self) -> dict[str, Any]:
        """Settings that determine the scores."""
        model = hash_model(self.path, self.revision)
        return {"judge": type(self).__name__, "model": model, "dtype": self.dtype}

    def run(self, lengths: Sequence[int], forward: Callable[[list[int]], Tensor]) -> list[float]:
        """Compute one number per text, in batches of similar length.

        Args:
            lengths: Number of tokens of each text.
            forward: From the indices of a batch's texts to their numbers, ``(texts,)``.
        """
        values = [0.0] * len(lengths)
        groups = list(batches(lengths, self.batch_tokens))
        with torch.inference_mode():
            for group in tqdm(groups, type(self).__name__, delay=2):
                for index, value in zip(group, forward(group).float().tolist(), strict=True):
                    values[index] = value
        return values


def special_tokens(tokenizer: Any) -> list[str]:
    """All special tokens of a tokenizer, longest first."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Divide texts into batches of similar length, longest first, of at most ``tokens`` with padding.

    Yields:
        Indices of the texts of a batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad_right(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad rows to a tensor and make its attention mask, both ``(rows, longest)`` int64."""
    tensors = [torch.tensor(row) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    return pad_sequence(tensors, batch_first=True, padding_value=value).to(device), mask.to(device)
