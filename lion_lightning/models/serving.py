"""The policy in training as samplers want it: whole, merged, in evaluation mode; no trace is left of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import PreTrainedTokenizerBase

from lion_lightning.models.adapters import ServedAdapters, only_linear_adapters
from lion_lightning.models.cached import weights_digest
from lion_lightning.models.embeddings import still_tied
from lion_lightning.models.export import generation_config
from lion_lightning.models.gathering import merged, plain_weights
from lion_lightning.models.generation import evaluating
from lion_lightning.models.passes import Process
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.tokenizer import end_of_turn_ids
from lion_lightning.models.writing import save_weights
from lion_lightning.types import PackedBatch, Segment


class Serving:
    """A policy that samplers generate from; see :class:`~lion_lightning.sampling.base.ServedPolicy`.

    Args:
        policy: The policy, on its device.
        tokenizer: Its tokenizer.
        process: This process's place among the others, its device and precision.

    Raises:
        ValueError: If the policy is sharded in a way that it cannot be sampled from.
    """

    def __init__(self, policy: PolicyModel, tokenizer: PreTrainedTokenizerBase, process: Process | None = None) -> None:
        if any(isinstance(module, FullyShardedDataParallel) for module in policy.modules()):
            raise ValueError("answers cannot be sampled under FSDPStrategy; use ModelParallelStrategy (FSDP2) or DDP")
        self.policy, self.tokenizer, self.process = policy, tokenizer, process or Process()

    @property
    def model(self) -> Any:
        """The causal LM; its layers hold the adapters, where there are some."""
        return self.policy.causal_lm

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return torch.device(self.process.device)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return end_of_turn_ids(self.tokenizer)

    @property
    def adapters(self) -> ServedAdapters | None:
        """The adapters apart from the rest, where they are all that is trained and an engine can put them on itself."""
        return ServedAdapters(self.policy, self.process) if only_linear_adapters(self.policy) else None

    def digest(self) -> str:
        """Hash of all weights, adapters included."""
        return weights_digest(dict(self.policy.named_parameters()))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See :class:`~lion_lightning.sampling.base.ServedPolicy`; a layer is merged when its turn comes."""
        return plain_weights(self.model, merged)

    def write(self, folder: Path | None) -> None:
        """See :class:`~lion_lightning.sampling.base.ServedPolicy`.

        Raises:
            OSError: The folder cannot be written, here or by another process.
        """
        with self.process.together():
            if folder is not None:
                self.write_settings(folder)
            save_weights(self.weights(), folder)

    def write_settings(self, folder: Path) -> None:
        """See :class:`~lion_lightning.sampling.base.ServedPolicy`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__]
        if getattr(config, "tie_word_embeddings", False) and not still_tied(self.model):
            config.tie_word_embeddings = False
        config.save_pretrained(folder)
        generation_config(self.tokenizer).save_pretrained(folder)
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
            _unsharded(self.policy),
        ):
            yield

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """``(prompts, vocabulary)`` fp32 log-probs of the token after each prompt, on the CPU."""
        with self.generating():
            rows = [self.model(torch.tensor([list(ids)], device=self.device), use_cache=False) for ids in prompts]
            return torch.cat([row.logits[:, -1].float().log_softmax(-1).cpu() for row in rows])


def _shortest_row() -> PackedBatch:
    zeros = torch.zeros(1, dtype=torch.int64)
    return PackedBatch(zeros.repeat(2), torch.arange(2), (Segment(0, 2),), zeros, zeros, zeros)


@contextmanager
def _unsharded(policy: PolicyModel) -> Iterator[None]:
    """Hold all weights for as long as it lasts, so that ranks may run unequally many forwards without waiting."""
    parts = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if parts:  # FSDP takes the first module that runs for its root, and generation does not run the whole policy
        policy(_shortest_row().to(next(policy.parameters()).device))
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for number, part in enumerate(parts):  # the first is the root, which stays whole between forward and backward
            part.set_reshard_after_forward(number > 0, recurse=False)
            part.reshard()
