"""The policy in training as samplers want it: whole, merged, in evaluation mode; no trace is left of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lion_lightning.distributed.ranks import Process
from lion_lightning.models.embeddings import still_tied
from lion_lightning.models.generation.adapters import ServedAdapters, only_linear_adapters
from lion_lightning.models.generation.greedy import evaluating
from lion_lightning.models.generation.settings import (
    agree_with,
    generation_config,
    stop_ids,
    without_settings,
    write_settings,
)
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.models.weights.gathering import merged, plain_weights
from lion_lightning.models.weights.hash import weights_digest
from lion_lightning.models.weights.safetensors_writer import save_weights
from lion_lightning.models.weights.unsharding import unsharded, with_shapes
from lion_lightning.ops.logprobs import to_the_end


class Serving:
    """A policy that samplers generate from; see :class:`~lion_lightning.sampling.base.ServedPolicy`.

    Args:
        policy: The policy, on its device.
        tokenizer: Its tokenizer.
        process: This process's place among the others, its device and precision.

    Attributes:
        end_ids: Tokens that end an answer.
    """

    def __init__(self, policy: PolicyModel, tokenizer: PreTrainedTokenizerBase, process: Process | None = None) -> None:
        self.policy, self.tokenizer, self.process = policy, tokenizer, process or Process()
        self.end_ids = stop_ids(tokenizer, policy.causal_lm.generation_config)

    @property
    def model(self) -> Any:
        """The causal LM; its layers hold the adapters, where there are some."""
        return self.policy.causal_lm

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return torch.device(self.process.device)

    @property
    def adapters(self) -> ServedAdapters | None:
        """The adapters apart from the rest, where they are all that is trained and an engine can put them on itself."""
        return ServedAdapters(self.policy, self.process) if only_linear_adapters(self.policy) else None

    def digest(self) -> str:
        """Hash of all weights, adapters included."""
        return weights_digest(full_parameters(self.policy))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See :class:`~lion_lightning.sampling.base.ServedPolicy`; a layer is merged when its turn comes."""
        with with_shapes(self.policy):
            yield from plain_weights(self.model, merged)

    def write(self, folder: Path | None) -> None:
        """See :class:`~lion_lightning.sampling.base.ServedPolicy`.

        Raises:
            OSError: The folder cannot be written, here or by another process.
        """
        with self.process.together(), to_the_end(self.weights()) as weights:
            if folder is not None:
                self.write_settings(folder)
            save_weights(weights, folder)

    def write_settings(self, folder: Path) -> None:
        """See :class:`~lion_lightning.sampling.base.ServedPolicy`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = deepcopy(self.model.config)
        config.__dict__.pop("quantization_config", None)  # weights leave as they are multiplied, not in 4 bits
        config.architectures = [type(self.model).__name__]
        if getattr(config, "tie_word_embeddings", False) and not still_tied(self.model):
            config.tie_word_embeddings = False
        agree_with(config, self.tokenizer)
        config.save_pretrained(folder)
        write_settings(generation_config(self.tokenizer, self.model.generation_config), folder)
        self.tokenizer.save_pretrained(folder)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Evaluation mode without gradients, weights whole on every rank; the random state is restored afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            evaluating(self.policy),
            torch.random.fork_rng(devices),
            torch.no_grad(),
            self.process.autocast(),
            without_settings(self.model),
            unsharded(self.policy),
        ):
            yield

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """``(prompts, vocabulary)`` fp32 log-probs of the token after each prompt, on the CPU."""
        with self.generating():
            rows = [self.model(torch.tensor([list(ids)], device=self.device), use_cache=False) for ids in prompts]
            return torch.cat([row.logits[:, -1].float().log_softmax(-1).cpu() for row in rows])
