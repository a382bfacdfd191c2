"""The policy in training as samplers want it: whole, merged, in evaluation mode; no trace is left of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from lion_lightning.models.cached import has_adapters, weights_digest
from lion_lightning.models.export import generation_config
from lion_lightning.models.generation import evaluating, unsharded
from lion_lightning.models.passes import Process
from lion_lightning.models.pieces import whole_parameters
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.tokenizer import end_of_turn_ids


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

    def digest(self) -> str:
        """Hash of all weights, adapters included."""
        return weights_digest(whole_parameters(self.policy))

    def weights(self) -> Mapping[str, Tensor]:
        """All weights, whole and merged, by Hugging Face's names."""
        if not has_adapters(self.policy):
            return {name: _whole(value.detach()) for name, value in self.model.state_dict().items()}
        if any(isinstance(module, FSDPModule) for module in self.policy.modules()):
            raise ValueError("sharded LoRA weights cannot be merged for an engine yet; use TransformersSampler or DDP")
        # A copy: merging in place and taking it back leaves rounding in the frozen weights.
        merged: Any = deepcopy(self.policy.model)
        with torch.no_grad():
            return dict(merged.merge_and_unload().state_dict())

    def write(self, folder: Path) -> None:
        """Write a Hugging Face folder with these weights; a tied head is in it under both of its names."""
        folder.mkdir(parents=True, exist_ok=True)
        config = deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__]
        config.save_pretrained(folder)
        generation_config(self.tokenizer).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        weights = {name: tensor.contiguous().cpu().clone() for name, tensor in self.weights().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Evaluation mode without gradients, weights whole on every rank; the random state is restored afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            evaluating(self.policy),
            torch.random.fork_rng(devices),
            torch.no_grad(),
            self.process.autocast(),
            unsharded(self.policy),
        ):
            yield

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """``(prompts, vocabulary)`` fp32 log-probs of the token after each prompt, on the CPU."""
        with self.generating():
            rows = [self.model(torch.tensor([list(ids)], device=self.device), use_cache=False) for ids in prompts]
            return torch.cat([row.logits[:, -1].float().log_softmax(-1).cpu() for row in rows])


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
